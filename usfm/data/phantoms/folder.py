"""Writing phantoms as a data folder in the FM_UIA form."""

import concurrent.futures
import csv
import json
import os
import pathlib
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import cv2
import numpy as np

from usfm.data.phantoms import scene
from usfm.data.phantoms.catalogue import PHANTOMS, places
from usfm.errors import UserError
from usfm.tasks import Task

# To be raised with every change of the pixels or labels made from the same arguments, so that a
# folder of older phantoms is not taken for one of these.
VERSION = 1

TASKS = tuple(sorted(PHANTOMS))

STAMP = "phantoms.json"


class Phantoms(Protocol):
    """The phantoms of one task. Images of one path must be drawn alike, whatever their task."""

    @property
    def task(self) -> Task:
        """As the reader finds it."""
        ...

    def count(self, rows: int) -> int:
        """Number of images in a folder of `rows`."""
        ...

    def image(self, number: int) -> str:
        """Path of an image file below the root; its ending says how it is encoded."""
        ...

    def draw(self, seed: int, number: int) -> tuple[scene.Scene, np.random.Generator]:
        """The scene of an image, and the random numbers for its speckle."""
        ...


def write_folder(
    root: str | os.PathLike[str],
    *,
    tasks: Iterable[str] | None = None,
    rows: int = 100,
    seed: int = 0,
    phantoms: Mapping[str, Phantoms] = PHANTOMS,
    knobs: Mapping[str, float] | None = None,
    beside: Mapping[str, Any] | None = None,
) -> None:
    """Writes phantoms of the given tasks, or finds them there already.

    The folder appears under its name only when it is whole. Each image depends on the seed, its
    scene and its own number alone: a longer folder begins with the images of a shorter one. Tasks
    that share a scene (breast_2cls, breast_lesion) have the same images, as in the FM_UIA data.

    Args:
        root: folder to be made; phantoms.json in it says what it was made from.
        tasks: ids out of `phantoms`; None for all.
        rows: images of each task, as far as its phantoms do not say otherwise.
        seed: 0 or more.
        phantoms: the catalogue, by task id.
        knobs: what else the phantoms were made from, for phantoms.json.
        beside: name -> content of JSON files to be written into the root.

    Raises:
        UserError: an unknown task, or rows or seed out of range.
        FileExistsError: root exists and is not the folder that the same arguments give.
    """
    ids = tuple(sorted(phantoms if tasks is None else set(tasks)))
    unknown, known = [task for task in ids if task not in phantoms], ", ".join(sorted(phantoms))
    if unknown:
        raise UserError(f"no phantom task {unknown[0]!r}: choose from {known}")
    if not ids:
        raise UserError(f"no task given: choose from {known}")
    if rows < 1 or seed < 0:
        raise UserError(f"rows must be 1 or more and seed 0 or more, not {rows} and {seed}")
    stamp = {"version": VERSION, "tasks": list(ids), "rows": rows, "seed": seed, **(knobs or {})}
    root = pathlib.Path(root).absolute()
    if _found(root, stamp):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as temporary:
        part = pathlib.Path(temporary, "part")
        for task in ids:
            _write_task(part, phantoms[task], rows, seed)
        for name, content in {STAMP: stamp, **(beside or {})}.items():
            (part / name).write_text(json.dumps(content, indent=2) + "\n")
        try:
            part.rename(root)
        except OSError:
            # Another process may have been faster.
            if not _found(root, stamp):
                raise


def _found(root: pathlib.Path, stamp: dict) -> bool:
    """Whether root is the folder of this stamp; False when there is nothing, an error otherwise."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    remedy = "remove it or give another folder"
    if not (root / STAMP).is_file():
        raise FileExistsError(f"{root} exists and was not made by write_folder: {remedy}")
    found = json.loads((root / STAMP).read_text())
    if found != stamp:
        raise FileExistsError(
            f"{root} holds phantoms made from {json.dumps(found)}, not from {json.dumps(stamp)}: "
            f"{remedy}"
        )
    return True


def _write_task(root: pathlib.Path, phantom: Phantoms, rows: int, seed: int) -> None:
    task = phantom.task
    numbers = range(phantom.count(rows))
    images = pathlib.PurePath(phantom.image(0)).parent
    for place in (images, places(task)[1], "csv_files"):
        (root / place).mkdir(parents=True, exist_ok=True)
    # numpy, scipy and OpenCV release the interpreter while they compute: threads are enough.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        table = list(pool.map(lambda number: _write_row(root, phantom, seed, number), numbers))
    with (root / "csv_files" / f"{task.id}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


def _write_row(root: pathlib.Path, phantom: Phantoms, seed: int, number: int) -> dict[str, str]:
    """Writes one image, and its mask if it has one; returns its line of the CSV."""
    task = phantom.task
    image = phantom.image(number)
    drawn, rng = phantom.draw(seed, number)
    if not (root / image).exists():  # else another task has the same file
        _write_image(root / image, scene.image(drawn, rng))
    row = {"image_path": f"../{image}"}
    if task.type == "segmentation":
        mask = f"{places(task)[1]}/{pathlib.PurePath(image).stem}.png"
        _write_image(root / mask, scene.class_mask(drawn))
        row["mask_path"] = f"../{mask}"
    elif task.type == "classification":
        row["mask"] = str(drawn.label)
    elif task.type == "detection":
        edges = scene.tight_box(scene.class_mask(drawn))
        row |= zip(("x_min", "y_min", "x_max", "y_max"), map(str, edges), strict=True)
    else:
        for index, (x, y) in enumerate(scene.landmarks(drawn), start=1):
            row[f"point_{index}_xy"] = json.dumps([round(x, 2), round(y, 2)])
    name_in_csv = "Regression" if task.type == "regression" else task.type
    return row | {"task_id": task.id, "task_name": name_in_csv, "num_classes": str(task.size)}


def _write_image(path: pathlib.Path, image: np.ndarray) -> None:
    _, encoded = cv2.imencode(path.suffix, image)
    path.write_bytes(encoded.tobytes())
