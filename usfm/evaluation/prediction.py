"""An answer to one image: what a model says of it, or the truth."""

import dataclasses

import numpy as np

from usfm.data.folder import Folder, Row
from usfm.data.image import read_mask
from usfm.tasks import Task


@dataclasses.dataclass(frozen=True)
class Answer:
    """What is said of one image: a prediction, or the truth.

    Only the fields of the task's type are set.

    Attributes:
        mask: uint8 [H, W], class ids at the size of the original image.
        probs: float32 [C], sums to 1; the truth is one-hot.
        box: float32 [4], x_min, y_min, x_max, y_max as pixel / original size.
        confidence: of a predicted box, the probability that its centre is where it says.
        points: float32 [K, 2], x, y as pixel / original size; NaN is a missing point (truth only).
    """

    mask: np.ndarray | None = None
    probs: np.ndarray | None = None
    box: np.ndarray | None = None
    confidence: float | None = None
    points: np.ndarray | None = None


# The field of Answer that a task of each type fills.
FIELDS = {
    "classification": "probs",
    "detection": "box",
    "regression": "points",
    "segmentation": "mask",
}


def content(task: Task, answer: Answer) -> np.ndarray:
    """The array that `answer` holds for `task`.

    Raises:
        ValueError: the answer holds none, so it is an answer to a task of another type.
    """
    array = getattr(answer, FIELDS[task.type])
    if array is None:
        raise ValueError(f"{task.id}: an answer to a {task.type} task needs {FIELDS[task.type]}")
    return array


def truth(folder: Folder, task: Task, row: Row) -> Answer:
    """Read the truth of one labelled row.

    Raises:
        ValueError: the row has no label, or its mask cannot be decoded.
        FileNotFoundError: its mask file is gone.
    """
    if not row.labelled:
        raise ValueError(f"{row.csv} line {row.line}: {row.key} has no label to score against")
    if task.type == "segmentation":
        return Answer(mask=read_mask(folder.mask_file(row)))
    if task.type == "classification":
        return Answer(probs=np.eye(task.num_classes, dtype=np.float32)[row.label])
    size = np.array([row.width, row.height])
    if task.type == "detection":
        box = np.array(row.box).reshape(2, 2) / size
        return Answer(box=box.reshape(4).astype(np.float32))
    points = np.array([(np.nan, np.nan) if p is None else p for p in row.points])
    return Answer(points=(points / size).astype(np.float32))
