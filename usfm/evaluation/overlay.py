"""One image with the truth and a prediction drawn over it."""

import dataclasses

import cv2
import numpy as np

from usfm.data.image import resize_image, resize_mask
from usfm.evaluation.prediction import Answer, content
from usfm.tasks import Task

# RGB. Told apart by people of any colour vision, on grey and on black.
TRUTH = (86, 200, 255)
PREDICTED = (255, 160, 40)
# Longest side of the picture in pixels: sharp at twice the size it is shown at.
SIDE = 640


@dataclasses.dataclass(frozen=True)
class Example:
    """One answered image.

    Attributes:
        task: what was asked.
        row_key: of which row.
        image: uint8 [H, W], [H, W, 1] or [H, W, 3], of any size but the original's shape.
        truth: the truth.
        predicted: the answer.
    """

    task: Task
    row_key: str
    image: np.ndarray
    truth: Answer
    predicted: Answer


def draw(example: Example) -> np.ndarray:
    """Draw mask outlines, box or points; the answer over the truth, joined to it point by point.

    A classification is not drawn: `caption` says it in words.

    Returns:
        uint8 [h, w, 3] RGB, the longer side SIDE pixels.
    """
    height, width = example.image.shape[:2]
    scale = SIDE / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    grey = example.image.ndim == 3 and example.image.shape[2] == 1
    picture = resize_image(example.image[..., 0] if grey else example.image, size, 3)
    true, predicted = (content(example.task, a) for a in (example.truth, example.predicted))
    if example.task.type == "segmentation":
        for c in range(1, example.task.num_classes):
            _outline(picture, true == c, TRUTH)
            _outline(picture, predicted == c, PREDICTED)
    elif example.task.type == "detection":
        for box, colour in ((true, TRUTH), (predicted, PREDICTED)):
            low, high = _pixels(box.reshape(2, 2), size)
            cv2.rectangle(picture, low, high, colour, 2, cv2.LINE_AA)
    elif example.task.type == "regression":
        present = ~np.isnan(true).any(axis=1)
        pairs = zip(_pixels(true[present], size), _pixels(predicted[present], size), strict=True)
        for a, b in pairs:
            cv2.line(picture, a, b, (255, 255, 255), 1, cv2.LINE_AA)
            cv2.circle(picture, a, 7, TRUTH, 2, cv2.LINE_AA)
            cv2.drawMarker(picture, b, PREDICTED, cv2.MARKER_TILTED_CROSS, 14, 2, cv2.LINE_AA)
    return picture


def caption(example: Example) -> str:
    """What the picture cannot say: the classes of a classification, else nothing."""
    if example.task.type != "classification":
        return ""
    true, probs = (content(example.task, a) for a in (example.truth, example.predicted))
    return f"truth: class {true.argmax()}; model: class {probs.argmax()} ({probs.max():.0%})"


def _outline(picture: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> None:
    height, width = picture.shape[:2]
    resized = resize_mask(mask.astype(np.uint8), (height, width))
    outlines, _ = cv2.findContours(resized, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, colour, 2, cv2.LINE_AA)


def _pixels(points: np.ndarray, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Points x, y relative to the image as pixels of a picture of `size` (height, width)."""
    scaled = np.rint(points * [size[1], size[0]]).astype(int)
    return [(int(x), int(y)) for x, y in scaled]
