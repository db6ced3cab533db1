"""A split as a CSV: read where one is given, written so that it says what was trained on."""

import csv
import functools
import os
import pathlib
from collections.abc import Sequence

from usfm.data.faults import Fault, FolderError
from usfm.data.folder import Folder
from usfm.data.lines import read_csv
from usfm.data.splits import DEFAULT_PATTERNS, PARTS, Splits, groups_of

COLUMNS = ("task_id", "image_path", "part")
# Of rows of several folders.
ROOT = "root"


def read_splits(
    path: pathlib.Path, folder: Folder, *, patterns: Sequence[str] = DEFAULT_PATTERNS
) -> Splits:
    """Reads a given split: a CSV with task_id, image_path and part, other columns aside.

    Lines of tasks that the folder has not, or that were not chosen, are passed over. Of several
    folders, the column root says which is meant; it may be absent where the image_path says it.

    Args:
        path: of the CSV.
        folder: whose rows must all be in it.
        patterns: as make_splits takes them, to name the groups.

    Raises:
        FolderError: all of its faults together.
    """
    path = pathlib.Path(path)
    given = _given(path, folder)
    parts = {
        (row.task_id, row.key): given[row.task_id, row.image_path, row.root]
        for rows in folder.rows.values()
        for row in rows
    }
    return Splits(parts, groups_of(folder, patterns))


def write_splits(path: pathlib.Path, splits: Splits, folder: Folder) -> None:
    """Writes task_id, image_path, part and group, a line a row, as read_splits reads them.

    Where rows are of several folders, root follows.
    """
    several = len(folder.roots) > 1
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow((*COLUMNS, "group", ROOT) if several else (*COLUMNS, "group"))
        for task in folder.tasks:
            for row in folder.rows[task.id]:
                record = task.id, row.image_path, splits.part(row), splits.group(row)
                writer.writerow((*record, folder.roots[row.root]) if several else record)
    os.replace(unfinished, path)


# task_id, image_path and the number of the root.
Image = tuple[str, str, int]


def _given(path: pathlib.Path, folder: Folder) -> dict[Image, str]:
    """The part of every image of the folder, as the file gives it."""
    lines, faults = read_csv(path)
    faults += [
        Fault(path.name, None, column, "the column is missing", f"give {', '.join(COLUMNS)}")
        for column in COLUMNS
        if lines and not any(column in line.fields for line in lines)
    ]
    if faults:
        raise FolderError(path, faults)
    images = {
        (row.task_id, row.image_path, row.root) for rows in folder.rows.values() for row in rows
    }
    passed_over = folder.skipped_images - images
    numbers = {root.resolve(): number for number, root in enumerate(folder.roots)}

    @functools.cache
    def roots(named: str) -> tuple[int, ...]:
        """The numbers of the folders that a line may be about."""
        if len(numbers) == 1 or not named:
            return tuple(numbers.values())
        number = numbers.get(pathlib.Path(named).resolve())
        return () if number is None else (number,)

    given: dict[Image, str] = {}
    for line in lines:
        image_path, part = line.fields.get("image_path", ""), line.fields.get("part", "").strip()
        possible = [(line.task_id, image_path, root) for root in roots(line.fields.get(ROOT, ""))]
        meant = [image for image in possible if image in images]
        if line.task_id not in folder.rows or (not meant and not passed_over.isdisjoint(possible)):
            continue
        if line.excess:
            faults.append(line.wrong_count())
        elif not possible:
            fault = f"{line.fields[ROOT]!r} is none of the folders {folder.place}"
            faults.append(line.fault(ROOT, fault, "name one as data.root does"))
        elif not meant:
            fault = f"task {line.task_id!r} has no image {image_path!r}"
            faults.append(line.fault("image_path", fault, "correct or remove the line"))
        elif len(meant) > 1:
            fault = f"{image_path!r} is in several folders"
            faults.append(line.fault(ROOT, fault, "add a column root that names the folder"))
        elif part not in PARTS:
            remedy = f"give one of {', '.join(PARTS)}"
            faults.append(line.fault("part", f"{part!r} is no part", remedy))
        for image in meant or possible:
            if given.setdefault(image, part) != part:
                fault = f"{image_path!r} is in {given[image]!r} by an earlier line"
                faults.append(line.fault("part", fault, "give it one part"))
    for task_id, image_path, root in sorted(images - given.keys()):
        missing = f"task {task_id!r}, image {image_path!r} is missing"
        if len(folder.roots) > 1:
            missing += f" (of {folder.roots[root]})"
        faults.append(Fault(path.name, None, "", missing, "add a line for it"))
    if faults:
        raise FolderError(path, faults)
    return given
