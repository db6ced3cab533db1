"""The trivial predictor: the best that can be said of an image without looking at it."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from usfm.data.folder import Folder, Row
from usfm.data.image import read_mask, resize_mask
from usfm.evaluation.prediction import Answer
from usfm.tasks import Task

# Masks of any size are averaged on a common grid.
GRID = (256, 256)
# Thresholds tried, as shares of the highest mean.
SHARES = np.arange(1, 101) / 100


def fit(folder: Folder, task: Task, rows: Sequence[Row]) -> Callable[[Row], Answer]:
    """Fit the trivial predictor of a task to its training rows.

    It answers every image alike: with the mean mask at its best threshold, the class
    frequencies, the mean box, or the mean points, relative to the image's size.

    Raises:
        ValueError: no rows are given.
    """
    if not rows:
        raise ValueError(f"{task.id}: the trivial predictor needs training rows and has none")
    if task.type == "segmentation":
        mask = _mean_mask(task, _read_masks(folder, rows))
        return lambda row: Answer(mask=resize_mask(mask, (row.height, row.width)))
    if task.type == "classification":
        counts = np.bincount(np.array([row.label for row in rows]), minlength=task.num_classes)
        answer = Answer(probs=(counts / counts.sum()).astype(np.float32))
    elif task.type == "detection":
        boxes = np.array([row.box for row in rows]).reshape(-1, 2, 2) / _sizes(rows)
        # Equally sure of every image.
        answer = Answer(box=boxes.mean(axis=0).reshape(4).astype(np.float32), confidence=1.0)
    else:
        answer = Answer(points=_mean_points(rows).astype(np.float32))
    return lambda row: answer


def _sizes(rows: Sequence[Row]) -> np.ndarray:
    """Widths and heights of the original images: [N, 1, 2], to divide points [N, K, 2] by."""
    return np.array([[(row.width, row.height)] for row in rows])


def _mean_points(rows: Sequence[Row]) -> np.ndarray:
    """Mean of the points that are present [K, 2]; the centre for one that never is."""
    points = np.array([[p or (np.nan, np.nan) for p in row.points] for row in rows]) / _sizes(rows)
    present = ~np.isnan(points)
    counts = present.sum(axis=0)
    sums = np.where(present, points, 0).sum(axis=0)
    return np.where(counts, sums / np.maximum(counts, 1), 0.5)


def _read_masks(folder: Folder, rows: Sequence[Row]) -> np.ndarray:
    """True masks on the grid: uint8 [N, *GRID]."""
    with ThreadPoolExecutor() as pool:
        return np.stack(
            list(pool.map(lambda row: resize_mask(read_mask(folder.mask_file(row)), GRID), rows))
        )


def _mean_mask(task: Task, masks: np.ndarray) -> np.ndarray:
    """One mask for all: where classes overlap, the one furthest above its threshold wins."""
    excess = np.zeros((task.num_classes, *GRID))
    for c in range(1, task.num_classes):
        mean = np.mean(masks == c, axis=0)
        excess[c] = mean / _best_threshold(mean, masks, c)
    return np.where(excess.max(axis=0) >= 1, excess.argmax(axis=0), 0).astype(np.uint8)


def _best_threshold(mean: np.ndarray, masks: np.ndarray, c: int) -> float:
    """The threshold of a class's mean mask with the highest mean DSC over the masks.

    Infinity where the empty mask is best.
    """
    if not mean.any():
        return np.inf
    thresholds = np.append(mean.max() * SHARES, np.inf)
    # A pixel of level k passes the first k thresholds. Counting the levels of a mask's pixels
    # gives its overlap with the mean mask at every threshold at once.
    levels = np.searchsorted(thresholds, mean, side="right")

    def passing(of_pixels: np.ndarray) -> np.ndarray:
        counts = np.bincount(of_pixels, minlength=len(thresholds) + 1)
        return counts[::-1].cumsum()[::-1][1:]

    sizes = passing(levels.ravel())
    total = np.zeros(len(thresholds))
    for mask in masks:
        true = mask == c
        both = sizes + np.count_nonzero(true)
        overlap = passing(levels[true])
        total += np.where(both, 2 * overlap / np.maximum(both, 1), 1)
    return float(thresholds[total.argmax()])
