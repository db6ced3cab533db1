"""Images and DICOM files without CSV files, to be answered: those of a folder, or those named."""

import os
import pathlib
from collections.abc import Mapping, Sequence
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
    files, closed = _list(root)
    return folder_of_files(root, dict.fromkeys(files, tasks), closed, cache_dir=cache_dir)


def folder_of_files(
    root: pathlib.Path,
    asked: Mapping[str, Sequence[Task]],
    faults: Sequence[Fault],
    *,
    place: pathlib.Path | None = None,
    cache_dir: pathlib.Path | None = None,
) -> Folder:
    """Makes a folder of files without labels; what is no image is left out.

    Args:
        root: the folder.
        asked: for each file, relative to the root or absolute, the tasks it is asked. A "#" and
            the number of a frame may stand behind a file's name; without, all frames are asked.
        faults: of files that are left out already.
        place: what named the files, for messages; the root where it did.
        cache_dir: as check_files takes it.

    Returns:
        As folder_of_images. Tasks that no image is left for are not in it.

    Raises:
        FolderError: there is no image among the files.
    """
    with ThreadPoolExecutor() as pool:
        frames = pool.map(lambda file: _frames(root, file), asked)
    tasks_of = {
        name: tasks
        for of_file, tasks in zip(frames, asked.values(), strict=True)
        for name in of_file
    }
    found = check_files(root, [("image", name) for name in tasks_of], cache_dir)
    images = {name: facts for (_, name), facts in found.items() if isinstance(facts, Facts)}
    skipped = list(faults)
    for (_, name), facts in found.items():
        if isinstance(facts, Unreadable):
            skipped.append(Fault(name, None, "", facts.fault, facts.remedy))
        elif facts is None:
            remedy = "correct or remove what names it"
            skipped.append(Fault(name, None, "", "leads to no file", remedy))
    if not images:
        fault = Fault(str(place or root), None, "", "holds no image", "correct data.root")
        raise FolderError(place or root, [fault, *skipped])
    tasks = {task.id: task for name in images for task in tasks_of[name]}
    rows = {
        id: _rows(
            tasks[id],
            {name: facts for name, facts in images.items() if tasks[id] in tasks_of[name]},
        )
        for id in sorted(tasks)
    }
    return Folder((root,), tuple(tasks[id] for id in sorted(tasks)), rows, tuple(skipped))


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
            key=_from_csv_files(name),
            csv="",
            line=0,
            image_path=_from_csv_files(name),
            mask_path=f"../{task.id}/{inside(name)}.png" if task.type == "segmentation" else "",
            label=None,
            box=None,
            points=(None,) * task.num_points,
            height=facts.height,
            width=facts.width,
            content=facts.content,
        )
        for index, (name, facts) in enumerate(images.items())
    )


def inside(name: str) -> str:
    """A file's name, relative or absolute, as one below a folder of answers."""
    steps = pathlib.PurePath(name).relative_to(pathlib.PurePath(name).anchor).parts
    while steps[:1] == (os.pardir,):
        steps = steps[1:]
    return "/".join(steps)


def _from_csv_files(name: str) -> str:
    """A file's name as the CSV of an FM_UIA folder would give it."""
    return name if os.path.isabs(name) else f"../{name}"
