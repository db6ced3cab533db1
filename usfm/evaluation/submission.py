"""Predictions in the form that the official FM_UIA evaluator reads.

A mask goes to OUT/ + the row's mask_path without "../", as a PNG of class ids at the original
size; answers of the other types to one JSON file a type. image_path is the CSV's own string.
"""

import collections
import json
import pathlib
from collections.abc import Iterable, Iterator

import cv2
import numpy as np
from etils import epath

from usfm.data.folder import Folder, Row
from usfm.data.image import read_mask
from usfm.errors import UserError
from usfm.evaluation.files import write_atomically
from usfm.evaluation.prediction import Answer, content
from usfm.tasks import Task


def write_submission(
    answers: Iterable[tuple[Row, Answer]], folder: Folder, output_dir: epath.PathLike
) -> int:
    """Write answers as they come; each file appears whole.

    Args:
        answers: rows, labelled or not, and what is said of them.
        folder: the folder the rows are from. Types it does not hold get no file.
        output_dir: OUT, made where it is missing.

    Returns:
        The number of answers.

    Raises:
        UserError: two rows name one mask file, or images of two folders have one name; the latter
            before anything is answered.
        ValueError: a mask has the wrong size or classes.
    """
    _check_names(folder)
    output_dir = epath.Path(output_dir)
    tasks = {task.id: task for task in folder.tasks}
    entries: dict[str, list[tuple[tuple[str, int], dict]]] = {
        task.type: [] for task in folder.tasks if task.type != "segmentation"
    }
    masks = set()
    for row, answer in answers:
        task = tasks[row.task_id]
        if task.type != "segmentation":
            entries[task.type].append(((row.task_id, row.index), _entry(task, row, answer)))
            continue
        path = mask_file(row)
        if path in masks:
            raise UserError(f"{row.csv} line {row.line}: another row has the mask_path {path} too")
        masks.add(path)
        write_atomically(output_dir / path, _png(task, row, content(task, answer)))
    for type_, of_type in entries.items():
        ordered = [entry for _, entry in sorted(of_type, key=lambda item: item[0])]
        text = json.dumps(ordered, indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(output_dir / f"{type_}_predictions.json", text.encode() + b"\n")
    return len(masks) + sum(map(len, entries.values()))


def _check_names(folder: Folder) -> None:
    """Refuses images of several folders that the form calls by one name."""
    first: dict[tuple[str, ...], Row] = {}
    for task in folder.tasks:
        for row in folder.rows[task.id]:
            of_task = (task.id, row.image_path)
            name = (str(mask_file(row)),) if task.type == "segmentation" else of_task
            other = first.setdefault(name, row)
            if other.root != row.root:
                raise UserError(
                    f"{row.csv} line {row.line}: {name[-1]} is also the name of {other.csv} line "
                    f"{other.line}, and predictions cannot tell them apart: predict one folder of "
                    f"{folder.place} at a time"
                )


def mask_file(row: Row) -> pathlib.PurePosixPath:
    """Where a row's mask goes, relative to OUT.

    A row without mask_path gets one of FM_UIA's shape: its image_path with IMAGES read as MASKS,
    ending in .png.

    Raises:
        UserError: the path leads out of OUT.
    """
    named = row.mask_path or row.image_path
    path = pathlib.PurePosixPath(*(part for part in named.split("/") if part not in ("", ".")))
    while path.parts[:1] == ("..",):
        path = path.relative_to("..")
    if named.startswith("/") or ".." in path.parts or not path.parts:
        raise UserError(
            f"{row.csv} line {row.line}: the path {named!r} leads out of the output folder;"
            " use one relative to csv_files"
        )
    if row.mask_path:
        return path
    parts = ["MASKS" if part == "IMAGES" else part for part in path.parts]
    return pathlib.PurePosixPath(*parts).with_suffix(".png")


def _png(task: Task, row: Row, mask: np.ndarray) -> bytes:
    size = (row.height, row.width)
    if mask.shape != size or mask.dtype != np.uint8 or mask.max() >= task.num_classes:
        raise ValueError(
            f"{task.id}: the mask of {row.key} must be uint8 {size} with classes below"
            f" {task.num_classes}; it is {mask.dtype} {mask.shape} up to {mask.max()}"
        )
    return cv2.imencode(".png", mask)[1].tobytes()


def _entry(task: Task, row: Row, answer: Answer) -> dict:
    """One object of a JSON file."""
    named = {"image_path": row.image_path, "task_id": row.task_id}
    values = content(task, answer).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{task.id}: the answer to {row.key} is not finite: {values.tolist()}")
    if task.type == "classification":
        probs = {"predicted_class": int(values.argmax()), "predicted_probs": values.tolist()}
        return named | probs
    pixels = (values.reshape(-1, 2) * [row.width, row.height]).ravel().tolist()
    if task.type == "detection":
        return named | {"bbox_normalized": values.tolist(), "bbox_pixels": pixels}
    return named | {
        "predicted_points_normalized": values.ravel().tolist(),
        "predicted_points_pixels": pixels,
    }


def read_submission(
    folder: Folder, output_dir: epath.PathLike, rows: Iterable[Row]
) -> Iterator[tuple[Row, Answer]]:
    """Read a submission back; rows that it does not answer are left out.

    Only what the official evaluator scores by is read: masks, predicted_probs and the pixel
    values.

    Args:
        folder: the folder that was answered.
        output_dir: OUT.
        rows: the rows to read, in reading order where several are of one image.
    """
    output_dir = epath.Path(output_dir)
    tasks = {task.id: task for task in folder.tasks}
    entries = collections.defaultdict(collections.deque)
    for type_ in {task.type for task in folder.tasks}:
        file = output_dir / f"{type_}_predictions.json"
        for entry in json.loads(file.read_bytes()) if file.exists() else ():
            entries[entry["task_id"], entry["image_path"]].append(entry)
    for row in rows:
        task = tasks[row.task_id]
        if task.type == "segmentation":
            file = output_dir / mask_file(row)
            if file.exists():
                yield row, Answer(mask=read_mask(pathlib.Path(file)))
        elif found := entries[row.task_id, row.image_path]:
            yield row, _answer(task, row, found.popleft())


def _answer(task: Task, row: Row, entry: dict) -> Answer:
    """The inverse of `_entry`."""
    if task.type == "classification":
        return Answer(probs=np.array(entry["predicted_probs"], np.float32))
    size = [row.width, row.height]
    if task.type == "detection":
        box = np.reshape(entry["bbox_pixels"], (2, 2)) / size
        return Answer(box=box.ravel().astype(np.float32))
    points = np.reshape(entry["predicted_points_pixels"], (-1, 2)) / size
    return Answer(points=points.astype(np.float32))
