"""A plain folder of images or DICOM files, without CSV files, to be answered."""

import os
import pathlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from usfm.data.faults import Fault, FolderError
from usfm.data.files import Facts, Unreadable, check_files
from usfm.data.folder import Folder, Row
from usfm.data.image import count_frames
from usfm.data.limits import ImageError
from usfm.tasks import Task


def folder_of_images(
    root: str | pathlib.Path, tasks: Sequence[Task], *, cache_dir: pathlib.Path | None = None
) -> Folder:
    """Reads a folder and all folders in it; each image, or frame of one, is a row of every task.

    Files are known as images by their content. What is hidden (its name begins with a dot) is
    passed over; links are followed.

    Args:
        root: the folder.
        tasks: what will be asked of the images.
        cache_dir: as check_files takes it.

    Returns:
        The images in the order of their paths, and in `skipped` the files left out and why. A mask
        will go to TASK/PATH.png in the folder of answers.

    Raises:
        FolderError: there is no such folder, or no image in it.
    """
    root = pathlib.Path(root)
    if not root.is_dir():
        raise FolderError(root, [Fault(str(root), None, "", "is no folder", "correct data.root")])
    files, skipped = _list(root)
    with ThreadPoolExecutor() as pool:
        frames = pool.map(lambda file: _frames(root, file), files)
    names = [name for of_file in frames for name in of_file]
    found = check_files(root, [("image", name) for name in names], cache_dir)
    images = {name: facts for (_, name), facts in found.items() if isinstance(facts, Facts)}
    for (_, name), facts in found.items():
        if isinstance(facts, Unreadable):
            skipped.append(Fault(name, None, "", facts.fault, facts.remedy))
        elif facts is None:
            skipped.append(Fault(name, None, "", "leads to no file", "correct or remove the link"))
    if not images:
        fault = Fault(str(root), None, "", "holds no image", "correct data.root")
        raise FolderError(root, [fault, *skipped])
    tasks = sorted(tasks, key=lambda task: task.id)
    rows = {task.id: _rows(task, images) for task in tasks}
    return Folder((root,), tuple(tasks), rows, tuple(skipped))


def _list(root: pathlib.Path) -> tuple[list[str], list[Fault]]:
    """The files below a folder, relative to it and sorted, and the folders that stay closed."""
    files: list[str] = []
    closed: list[OSError] = []
    entered = set()
    for folder, folders, names in os.walk(root, onerror=closed.append, followlinks=True):
        # A link may lead back: where several lead to one folder, it is entered once.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if (place := os.path.realpath(folder)) in entered:
            folders.clear()
            continue
        entered.add(place)
        inside = os.path.relpath(folder, root)
        files += [os.path.normpath(os.path.join(inside, name)) for name in names if name[0] != "."]
    remedy = "correct its permissions"
    faults = [
        Fault(str(e.filename), None, "", f"cannot be entered ({e.strerror})", remedy)
        for e in closed
    ]
    return sorted(files), faults


def _frames(root: pathlib.Path, file: str) -> list[str]:
    try:
        count = count_frames(root / file) if (root / file).is_file() else 1
    except ImageError:  # check_files says why
        count = 1
    return [file] if count == 1 else [f"{file}#{number}" for number in range(1, count + 1)]


def _rows(task: Task, images: dict[str, Facts]) -> tuple[Row, ...]:
    return tuple(
        Row(
            task_id=task.id,
            index=index,
            key=f"../{name}",
            csv="",
            line=0,
            image_path=f"../{name}",
            mask_path=f"../{task.id}/{name}.png" if task.type == "segmentation" else "",
            label=None,
            box=None,
            points=(None,) * task.num_points,
            height=facts.height,
            width=facts.width,
            content=facts.content,
        )
        for index, (name, facts) in enumerate(images.items())
    )
