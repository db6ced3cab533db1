"""What of a split, or of its labels, would make scores flatter: said in words."""

import dataclasses
from collections.abc import Iterable

from usfm.data.folder import Folder, Row
from usfm.data.splits import Splits, leaks

SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was looked for.

    Attributes:
        name: what, as a sentence that is true where all is well.
        found: the first places where it is not.
        count: how many there are.
    """

    name: str
    found: tuple[str, ...]
    count: int


def check_leaks(folder: Folder, splits: Splits) -> list[Check]:
    """Looks for groups and images on two sides, and for equal images with different labels."""
    rows = [row for of_task in folder.rows.values() for row in of_task]
    images: dict[str, list[Row]] = {}
    of_task: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        images.setdefault(row.content, []).append(row)
        of_task.setdefault((row.task_id, row.content), []).append(row)
    detections = {task.id for task in folder.tasks if task.type == "detection"}
    return [
        _check("No patient, video or image group is on two sides.", leaks(splits)),
        _check(
            "No image is on two sides, under whatever name.",
            (
                _told(same, (splits.part(row) for row in same))
                for same in images.values()
                if len({splits.part(row) for row in same}) > 1
            ),
        ),
        _check(
            "No image has two labels in one task.",
            (
                f"{task_id}: {_told(same, (f'line {row.line} of {row.csv}' for row in same))}"
                for (task_id, _), same in of_task.items()
                if task_id not in detections and len(set(map(_label, same))) > 1
            ),
        ),
    ]


def _check(name: str, found: Iterable[str]) -> Check:
    listed = list(found)
    return Check(name, tuple(listed[:SHOWN]), len(listed))


def _told(rows: list[Row], notes: Iterable[str]) -> str:
    """Each row by its path and a note, alike ones once."""
    told = dict.fromkeys(
        f"{row.image_path} ({note})" for row, note in zip(rows, notes, strict=True)
    )
    return ", ".join(told)


def _label(row: Row) -> tuple[object, ...]:
    return row.label, row.points, row.mask_content
