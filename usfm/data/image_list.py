"""A list of images to be answered: a text file of paths, or a CSV of paths and tasks."""

import csv
import io
import os
import pathlib
from collections.abc import Sequence

from usfm.data.faults import Fault, FolderError
from usfm.data.folder import Folder
from usfm.data.unlabelled import folder_of_files, inside
from usfm.errors import UserError
from usfm.tasks import Task
from usfm.tasks.suggest import suggest

# (1-based line, path, task_id or "" for all tasks)
_Entry = tuple[int, str, str]


def images_of_list(
    path: pathlib.Path,
    known: Sequence[Task],
    chosen: Sequence[Task],
    *,
    cache_dir: pathlib.Path | None = None,
) -> Folder:
    """Reads a list and the images it names.

    Args:
        path: of a .csv with the column image_path and perhaps task_id, or of a text file of one
            path a line. Paths are absolute or relative to the list's folder; "#" and the number of
            a frame may stand behind them.
        known: the tasks that task_id may name.
        chosen: what an image without a task_id is asked; one with a task_id is asked that task, if
            it is among these.
        cache_dir: as check_files takes it.

    Returns:
        As folder_of_images returns it, of the list's folder.

    Raises:
        UserError: the list cannot be read, names an unknown task, or two files that would be
            answered under one name.
        FolderError: it names no image.
    """
    asked: dict[str, list[Task]] = {}
    named: dict[str, tuple[int, str]] = {}
    twice: list[Fault] = []
    tasks = {task.id: task for task in known}
    for line, name, task_id in _read(path):
        if task_id and task_id not in tasks:
            raise UserError(
                f"{path} line {line}, task_id: the model has no task {task_id!r}; "
                f"{suggest(task_id, tasks)}"
            )
        name = os.path.normpath(name)
        first, other = named.setdefault(inside(name), (line, name))
        if other != name:
            raise UserError(
                f"{path} line {line}: {name} and {other} (line {first}) would be answered under "
                "one name; predict them by two lists, with a --workdir each"
            )
        of_image = asked.setdefault(name, [])
        wanted = [task for task in chosen if task_id in ("", task.id)]
        if any(task in of_image for task in wanted):
            fault = f"{name} is named before, on line {first}"
            twice.append(Fault(path.name, line, "image_path", fault, "name it once"))
        of_image += [task for task in wanted if task not in of_image]
    asked = {name: of_image for name, of_image in asked.items() if of_image}
    if not asked:
        fault = Fault(path.name, None, "", "names no image of the chosen tasks", "correct it")
        raise FolderError(path, [fault])
    return folder_of_files(path.parent, asked, twice, place=path, cache_dir=cache_dir)


def _read(path: pathlib.Path) -> list[_Entry]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read as a list of images ({error}); data.root is a folder, or a "
            ".txt or .csv file in UTF-8 that names images"
        ) from error
    if path.suffix.lower() != ".csv":
        lines = enumerate(map(str.strip, text.splitlines()), start=1)
        return [(number, line, "") for number, line in lines if line]
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if "image_path" not in (reader.fieldnames or ()):
        raise UserError(f"{path}: the column image_path is missing; add it, or give a .txt instead")
    entries = []
    for fields in reader:
        name = (fields["image_path"] or "").strip()
        if not name:
            raise UserError(f"{path} line {reader.line_num}, image_path: is empty; name an image")
        entries.append((reader.line_num, name, (fields.get("task_id") or "").strip()))
    return entries
