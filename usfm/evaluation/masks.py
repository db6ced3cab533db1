"""Overlap and distances of two masks, at the size of the original image.

A mask's surface is its pixels with one of the four neighbours outside of it or of the image, and a
surface distance is that from the centre of such a pixel to the nearest of the other mask: the
convention of medpy.metric.binary with connectivity 1, in pixels. (DeepMind's surface-distance puts
the surface between pixels and weighs its elements by length.)

Distances are computed within the box round both masks, which holds every pixel that can be
nearest, and are exact: OpenCV's are rounded to what they are, roots of whole numbers.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np

# Up to this distance a surface counts as found, in pixels of the original image. One choice for all
# organs: what two readers of one differ by is not known of FM_UIA's tasks.
NSD_TOLERANCE = 2.0
CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def compare(ours: np.ndarray, theirs: np.ndarray, num_classes: int) -> dict[str, float]:
    """Scores of one mask against another.

    DSC is 2|P∩G| / (|P|+|G|). HD is the Hausdorff distance between all pixels of two masks, of
    which their surfaces' can differ. HD95 is the 95th percentile of the surface distances of both
    masks taken together (medpy's hd95; MONAI takes the larger of the two percentiles). NSD is the
    share of both surfaces within NSD_TOLERANCE of the other one (Nikolov et al. 2021, JMIR 23(7);
    Metrics Reloaded, Maier-Hein et al. 2024, Nature Methods 21). Two empty masks agree: DSC and
    NSD 1, distances 0. Where one is empty, DSC and NSD are 0 and distances the image's diagonal.
    DSC and HD are those of the official FM_UIA evaluator.

    Args:
        ours: uint8 [H, W] class ids below num_classes, 0 is the background.
        theirs: likewise, the truth.
        num_classes: with the background.

    Returns:
        dsc, hd, hd95 and nsd as means over the classes other than the background, and of each of
        these (dsc_1, ...), with true_1, ... (1 where the truth has the class, else 0); and dsc_0
        and hd_0 of the background, which only the official evaluator reports.
    """
    diagonal = math.hypot(*ours.shape)
    box = cv2.boundingRect(cv2.bitwise_or(ours, theirs))
    scores = {}
    inner_ours, inner_theirs = _cut(ours, box), _cut(theirs, box)
    for c in range(1, num_classes):
        a, b = ((mask == c).view(np.uint8) for mask in (inner_ours, inner_theirs))
        n_a, n_b = _count(a), _count(b)
        scores[f"dsc_{c}"] = _dice(n_a, n_b, _count(a & b))
        if n_a and n_b:
            of_class = _distances(a, b)
        else:
            of_class = (diagonal, diagonal, 0.0) if n_a or n_b else (0.0, 0.0, 1.0)
        scores |= zip((f"hd_{c}", f"hd95_{c}", f"nsd_{c}"), of_class, strict=True)
        scores[f"true_{c}"] = float(n_b > 0)
    means = {
        name: sum(scores[f"{name}_{c}"] for c in range(1, num_classes)) / (num_classes - 1)
        for name in ("dsc", "hd", "hd95", "nsd")
    }
    n_a, n_b = (mask.size - _count(mask) for mask in (ours, theirs))
    both = ours.size - _count(inner_ours | inner_theirs)
    far = _background_distance(ours, theirs, box) if n_a and n_b else diagonal
    background = {"dsc_0": _dice(n_a, n_b, both), "hd_0": far if n_a or n_b else 0.0}
    return means | scores | background


def _count(mask: np.ndarray) -> int:
    return cv2.countNonZero(mask) if mask.size else 0


def _dice(n_a: int, n_b: int, both: int) -> float:
    return 2 * both / (n_a + n_b) if n_a or n_b else 1.0


def _cut(mask: np.ndarray, box: Sequence[int]) -> np.ndarray:
    x, y, width, height = box
    return np.ascontiguousarray(mask[y : y + height, x : x + width])


def _distances(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """HD, HD95 and NSD of two masks of 0 and 1, neither of which is empty."""
    box = cv2.boundingRect(cv2.bitwise_or(a, b))
    a, b = _cut(a, box), _cut(b, box)
    surface_a, surface_b = _surface(a), _surface(b)
    to_a, to_b = _transform(1 - surface_a), _transform(1 - surface_b)
    # From outside of a mask, its nearest pixel is one of its surface.
    farthest = max(_farthest(to_b, cv2.subtract(a, b)), _farthest(to_a, cv2.subtract(b, a)))
    between = _exact(np.concatenate([to_b[surface_a.view(bool)], to_a[surface_b.view(bool)]]))
    within = np.count_nonzero(between <= NSD_TOLERANCE) / len(between)
    return farthest, float(np.percentile(between, 95)), within


def _background_distance(ours: np.ndarray, theirs: np.ndarray, box: Sequence[int]) -> float:
    """Hausdorff distance between the backgrounds of two masks, neither of which is empty.

    Pixels of one that are not of the other lie in the box round what is not background, and those
    nearest to them there or one pixel beside it.
    """
    x, y, width, height = box
    if not width:
        return 0.0
    left, top = max(x - 1, 0), max(y - 1, 0)
    box = (left, top, x + width + 1 - left, y + height + 1 - top)  # a cut ends with the image
    a, b = _cut(ours, box), _cut(theirs, box)
    lost, extra = (
        (inside == 0).view(np.uint8) & (other != 0) for inside, other in ((a, b), (b, a))
    )
    return max(_farthest(_transform(b), lost), _farthest(_transform(a), extra))


def _surface(mask: np.ndarray) -> np.ndarray:
    inner = cv2.erode(mask, CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return cv2.subtract(mask, inner)


def _transform(mask: np.ndarray) -> np.ndarray:
    """Distance of each pixel to the nearest that is 0: float32 [H, W], exact but for rounding."""
    return cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def _farthest(distances: np.ndarray, mask: np.ndarray) -> float:
    """The largest distance within a mask; 0 where it is empty."""
    return float(_exact(np.array(cv2.minMaxLoc(distances, mask)[1])))


def _exact(distances: np.ndarray) -> np.ndarray:
    """Float32 distances as float64: up to 2,048 pixels the nearest whole square is the true one."""
    return np.sqrt(np.rint(np.square(distances, dtype=np.float64)))
