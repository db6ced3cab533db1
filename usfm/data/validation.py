"""What is wrong with the lines of a data folder and the files that they name."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from usfm.data.duplicates import Entry, find_duplicates
from usfm.data.faults import Fault
from usfm.data.files import Facts, Unreadable, check_files
from usfm.data.image import stored_size
from usfm.data.labels import Label, columns, outside, parse_label, whole_number
from usfm.data.lines import Line, from_root, leaves_root
from usfm.data.stated import SIZES, stated
from usfm.tasks import TYPES, Task
from usfm.tasks.suggest import suggest


@dataclasses.dataclass
class _Candidate:
    """A line under examination: its paths are relative to the root, "" where unusable."""

    line: Line
    task: Task
    label: Label | None
    image: str
    mask: str
    faults: list[Fault]


def validate(
    root: pathlib.Path,
    lines: Sequence[Line],
    known: Mapping[str, Task],
    chosen: Sequence[Task],
    require_labels: bool,
    cache_dir: pathlib.Path | None,
) -> tuple[list[Entry], list[Fault]]:
    """Checks the lines of the chosen tasks.

    Args:
        root: the data folder.
        lines: all of its lines.
        known: all of its tasks by id.
        chosen: those to check.
        require_labels: an empty label, or a missing mask, is a fault.
        cache_dir: as check_files takes it.

    Returns:
        The lines with nothing wrong, in reading order, and all faults.
    """
    tasks = {task.id: task for task in chosen}
    faults = _missing_columns(lines, tasks, require_labels)
    candidates = []
    for line in lines:
        task = tasks.get(line.task_id)
        if line.excess:
            if task is not None or line.task_id not in known:
                faults.append(line.wrong_count())
        elif not line.task_id:
            faults.append(line.fault("task_id", "is empty", "name the task or remove the row"))
        elif task is not None:
            candidates.append(_examine(line, task, require_labels))
    wanted = dict.fromkeys(("image", each.image) for each in candidates if each.image)
    wanted |= dict.fromkeys(("mask", each.mask) for each in candidates if each.mask)
    files = check_files(root, wanted, cache_dir)
    entries = []
    for each in candidates:
        image, mask = files.get(("image", each.image)), files.get(("mask", each.mask))
        each.faults += _file_faults(root, each, image, mask, require_labels)
        faults += each.faults
        if not each.faults and each.label is not None and isinstance(image, Facts):
            mask = mask if isinstance(mask, Facts) else None
            entries.append(Entry(each.line, each.task, each.label, each.image, image, mask))
    duplicates = find_duplicates(entries)
    faults += duplicates.values()
    return [entry for k, entry in enumerate(entries) if k not in duplicates], faults


def _missing_columns(
    lines: Sequence[Line], tasks: Mapping[str, Task], require_labels: bool
) -> list[Fault]:
    faults: dict[Fault, None] = {}
    for line in lines:
        task = tasks.get(line.task_id)
        if task is None or line.excess:
            continue
        for column in _needed(task, require_labels):
            if column not in line.fields:
                remedy = f"add it: task {task.id!r} needs it"
                faults[Fault(line.csv, None, column, "the column is missing", remedy)] = None
    return list(faults)


def _needed(task: Task, require_labels: bool) -> tuple[str, ...]:
    always = "image_path", "task_name", "num_classes"
    if task.type == "segmentation" or (task.type and require_labels):
        return always + columns(task)
    return always


def _examine(line: Line, task: Task, require_labels: bool) -> _Candidate:
    faults = []
    fields = line.fields
    if "task_name" in fields and fields["task_name"].strip().lower() not in TYPES:
        fault = f"{fields['task_name']!r} is no type of task"
        faults.append(line.fault("task_name", fault, suggest(fields["task_name"].lower(), TYPES)))
    if "num_classes" in fields and whole_number(fields["num_classes"]) not in SIZES:
        fault = f"{fields['num_classes']!r} is not a whole number from 1 to {SIZES[-1]}"
        faults.append(line.fault("num_classes", fault, "give the number of classes or points"))
    image, path_faults = _path(line, "image_path")
    faults += path_faults
    mask, label = "", None
    # Read by another type or size than its own, a line would seem full of faults.
    if stated(line) == (task.type, task.size) and all(
        column in fields for column in _needed(task, require_labels)
    ):
        label, label_faults = parse_label(line, task, require_labels)
        faults += label_faults
        if label.mask_path:
            mask, path_faults = _path(line, "mask_path")
            faults += path_faults
    return _Candidate(line, task, label, image, mask, faults)


def _path(line: Line, field: str) -> tuple[str, list[Fault]]:
    text = line.fields.get(field)
    if text is None:
        return "", []
    if not text.strip():
        return "", [line.fault(field, "is empty", "give a path relative to csv_files")]
    path = from_root(text)
    if leaves_root(path):
        remedy = "give a path relative to csv_files that stays in the folder"
        return "", [line.fault(field, f"{text!r} leaves the folder", remedy)]
    return path, []


def _file_faults(
    root: pathlib.Path,
    each: _Candidate,
    image: Facts | Unreadable | None,
    mask: Facts | Unreadable | None,
    require_labels: bool,
) -> list[Fault]:
    line, faults = each.line, []
    if each.image:
        faults += _unusable(line, "image_path", each.image, image)
    if each.mask and (require_labels or mask is not None):
        faults += _unusable(line, "mask_path", each.mask, mask)
    if isinstance(image, Facts) and each.label is not None:
        faults += _place_faults(root / each.image, line, each.label, image, mask)
    if isinstance(mask, Facts):
        faults += _class_faults(each, mask)
    return faults


def _place_faults(
    path: pathlib.Path, line: Line, label: Label, image: Facts, mask: Facts | Unreadable | None
) -> list[Fault]:
    faults = outside(line, label, image.height, image.width)
    if isinstance(mask, Facts) and (mask.height, mask.width) != (image.height, image.width):
        fault = (
            f"the mask is {mask.width} x {mask.height}, its image {image.width} x {image.height}"
        )
        faults.append(line.fault("mask_path", fault, "give a mask of the image's size"))
    height, width = stored_size(path) if faults else (image.height, image.width)
    if (height, width) == (image.height, image.width):
        return faults
    note = (
        f"; it is stored as {width} x {height} and read turned by its EXIF, or cropped to its "
        "ultrasound region (docs/data.md)"
    )
    return [dataclasses.replace(fault, remedy=fault.remedy + note) for fault in faults]


def _unusable(line: Line, field: str, path: str, file: Facts | Unreadable | None) -> list[Fault]:
    if file is None:
        remedy = "correct the path or bring the file"
        return [line.fault(field, f"there is no file {path}", remedy)]
    if isinstance(file, Unreadable):
        return [line.fault(field, f"{path} {file.fault}", file.remedy)]
    return []


def _class_faults(each: _Candidate, mask: Facts) -> list[Fault]:
    faults = []
    last = each.task.num_classes - 1
    wrong = [str(value) for value in mask.values if value > last]
    if wrong == ["255"] and set(mask.values) <= {0, 255}:
        remedy = f"write class ids 0 to {last}: for two classes, divide the mask by 255"
        faults.append(each.line.fault("mask_path", "the mask is 0/255", remedy))
    elif wrong:
        listed = ", ".join(wrong[:5]) + (", ..." if len(wrong) > 5 else "")
        remedy = f"write class ids 0 to {last}; num_classes counts the background"
        fault = f"the mask holds values out of range ({listed})"
        faults.append(each.line.fault("mask_path", fault, remedy))
    return faults
