"""One image with the truth, a prediction or both drawn over it."""

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
    """One image and what is said of it.

    Attributes:
        task: what was asked.
        row_key: of which row.
        image: uint8 [H, W], [H, W, 1] or [H, W, 3], of any size but the original's shape.
        truth: the truth; None where it is not known.
        predicted: the answer; None where there is none, or nothing but the labels is to be shown.
    """

    task: Task
    row_key: str
    image: np.ndarray
    truth: Answer | None
    predicted: Answer | None = None


def draw(example: Example, side: int = SIDE) -> np.ndarray:
    """Draw mask outlines, box or points; the answer over the truth, joined to it point by point.

    A classification is not drawn: `caption` says it in words. Where there is one of the two alone,
    its points are numbered.

    Returns:
        uint8 [h, w, 3] RGB, the longer side `side` pixels.
    """
    height, width = example.image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    grey = example.image.ndim == 3 and example.image.shape[2] == 1
    picture = resize_image(example.image[..., 0] if grey else example.image, size, 3)
    said = [
        (content(example.task, answer), colour)
        for answer, colour in ((example.truth, TRUTH), (example.predicted, PREDICTED))
        if answer is not None
    ]
    if example.task.type == "segmentation":
        for c in range(1, example.task.num_classes):
            for mask, colour in said:
                _outline(picture, mask == c, colour)
    elif example.task.type == "detection":
        for box, colour in said:
            low, high = _pixels(box.reshape(2, 2), size)
            cv2.rectangle(picture, low, high, colour, 2, cv2.LINE_AA)
    elif example.task.type == "regression" and len(said) == 2:
        _joined_points(picture, said[0][0], said[1][0])
    elif example.task.type == "regression" and said:
        _numbered_points(picture, *said[0])
    return picture


def caption(example: Example) -> str:
    """What the picture cannot say: the classes of a classification, else nothing."""
    if example.task.type != "classification":
        return ""
    said = []
    if example.truth is not None:
        said.append(f"class {content(example.task, example.truth).argmax()}")
    if example.predicted is not None:
        probs = content(example.task, example.predicted)
        said.append(f"class {probs.argmax()} ({probs.max():.0%})")
    return f"truth: {said[0]}; model: {said[1]}" if len(said) == 2 else "".join(said)


def _numbered_points(picture: np.ndarray, points: np.ndarray, colour: tuple[int, int, int]) -> None:
    present = np.flatnonzero(~np.isnan(points).any(axis=1))
    places = _pixels(points[present], picture.shape[:2])
    for k, (x, y) in zip(present, places, strict=True):
        cv2.circle(picture, (x, y), 5, colour, 2, cv2.LINE_AA)
        corner, font = (x + 8, y - 4), cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(picture, str(k + 1), corner, font, 0.5, colour, 1, cv2.LINE_AA)


def _joined_points(picture: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> None:
    size = picture.shape[:2]
    present = np.flatnonzero(~np.isnan(true).any(axis=1))
    places = _pixels(true[present], size)
    for a, b in zip(places, _pixels(predicted[present], size), strict=True):
        cv2.line(picture, a, b, (255, 255, 255), 1, cv2.LINE_AA)
        cv2.circle(picture, a, 7, TRUTH, 2, cv2.LINE_AA)
        cv2.drawMarker(picture, b, PREDICTED, cv2.MARKER_TILTED_CROSS, 14, 2, cv2.LINE_AA)


def _outline(picture: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> None:
    height, width = picture.shape[:2]
    resized = resize_mask(mask.astype(np.uint8), (height, width))
    outlines, _ = cv2.findContours(resized, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, colour, 2, cv2.LINE_AA)


def _pixels(points: np.ndarray, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Points x, y relative to the image as pixels of a picture of `size` (height, width)."""
    scaled = np.rint(points * [size[1], size[0]]).astype(int)
    return [(int(x), int(y)) for x, y in scaled]
