"""What the labels of a task say, in counts: its classes, boxes or points."""

import concurrent.futures
import dataclasses
from collections.abc import Sequence

import numpy as np

from usfm.data.folder import Folder, Row
from usfm.data.image import read_mask
from usfm.data.progress import progress
from usfm.tasks import Task

# Ends of classes of a box's area, as shares of its image.
AREAS = (0.01, 0.03, 0.1, 0.3, 1.0)


@dataclasses.dataclass(frozen=True)
class Share:
    """How often something occurs.

    Attributes:
        name: of what.
        share: of the labelled rows, 0 to 1.
        count: the same in words.
    """

    name: str
    share: float
    count: str


def shares(folder: Folder, task: Task) -> list[Share]:
    """How often each class of a task occurs; of a detection boxes by area, of a regression points.

    The masks of a segmentation are read, in threads; nothing else is.
    """
    rows = [row for row in folder.rows[task.id] if row.labelled]
    if not rows:
        return []
    match task.type:
        case "classification":
            counts = np.bincount([row.label or 0 for row in rows], minlength=task.num_classes)
            return [_of(f"class {c}", int(n), len(rows)) for c, n in enumerate(counts)]
        case "detection":
            return _areas(rows)
        case "regression":
            present = np.array([[point is not None for point in row.points] for row in rows])
            counts = present.sum(axis=0)
            return [_of(f"point {k}", int(n), len(rows)) for k, n in enumerate(counts, start=1)]
        case _:
            return _classes(folder, task, rows)


def _of(name: str, count: int, total: int) -> Share:
    return Share(name, count / total, f"{count:,} ({count / total:.1%})")


def _areas(rows: Sequence[Row]) -> list[Share]:
    areas = np.array(
        [
            (row.box[2] - row.box[0]) * (row.box[3] - row.box[1]) / (row.width * row.height)
            for row in rows
            if row.box is not None
        ]
    )
    places = np.searchsorted(AREAS[:-1], areas)  # a box as large as an end is below it
    counts = np.bincount(places, minlength=len(AREAS))
    return [
        _of(f"area {low:.0%} to {high:.0%}", int(n), len(rows))
        for low, high, n in zip((0.0, *AREAS[:-1]), AREAS, counts, strict=True)
    ]


def _classes(folder: Folder, task: Task, rows: Sequence[Row]) -> list[Share]:
    def pixels(row: Row) -> np.ndarray:
        mask = read_mask(folder.mask_file(row))
        return np.bincount(mask.ravel(), minlength=task.num_classes) / mask.size

    with concurrent.futures.ThreadPoolExecutor() as pool:
        counted = progress(pool.map(pixels, rows), len(rows), f"counting pixels of {task.id}")
        of_images = np.stack(list(counted))
    having, areas = (of_images > 0).sum(axis=0).tolist(), of_images.mean(axis=0).tolist()
    told = [_of(f"class {c}", n, len(rows)) for c, n in enumerate(having)]
    return [
        dataclasses.replace(each, count=f"{each.count} of images, {area:.1%} of area")
        for each, area in zip(told, areas, strict=True)
    ]
