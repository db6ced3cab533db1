"""A TFDS data set as a source: read without TensorFlow, and written once as an FM_UIA folder."""

import concurrent.futures
import csv
import functools
import hashlib
import os
import pathlib
import sys
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from usfm.data.lines import DIRECTORY
from usfm.data.parallel import cores
from usfm.data.progress import progress
from usfm.data.tfds_features import (
    TaskFeature,
    check_image,
    find,
    label_columns,
    task_features,
    value_at,
)
from usfm.data.unfinished import make_once
from usfm.errors import UserError

# Raised whenever what is written changes, so that no older folder is taken for a current one.
FORMAT = 1


def export(name: str, fields: Mapping[str, Any], cache_dir: pathlib.Path) -> pathlib.Path:
    """The folder of a data set, written on first use.

    Images and masks become PNG files of the very pixels that TFDS decodes, labels CSV files. The
    folder is named by the data set's files and by the fields, so what changes gives another. It
    appears under its name only when whole; what a killed export has written is not written again.

    Args:
        name: as TFDS has it: NAME, NAME/CONFIG or NAME/CONFIG:VERSION.
        fields: the config's section data.tfds.
        cache_dir: where the folder lies; local, made if missing.

    Raises:
        UserError: there is no such data set, TensorFlow alone reads it, a feature or split is
            missing or of the wrong kind, or an example is damaged.
    """
    builder = _builder(name, fields["data_dir"])
    tasks, source = _checked(name, builder, fields)
    content = repr((FORMAT, name, _without_place(fields), _files(builder)))
    digest = hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
    folder = cache_dir / f"tfds-{urllib.parse.quote(name, safe='')}-{digest}"

    def write(unfinished: pathlib.Path) -> None:
        print(f"tfds:{name}: writing it as a folder, once: {folder}", file=sys.stderr)
        _write(f"tfds:{name}", source, tasks, fields, unfinished)

    make_once(folder, write)
    return folder


def is_prepared(name: str, data_dir: str) -> bool:
    """Whether TFDS finds a data set of this name that was prepared."""
    try:
        _builder(name, data_dir)
    except UserError:
        return False
    return True


def _builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    place = os.path.expanduser(data_dir) if data_dir else None
    try:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=place)
    except tfds.core.registered.DatasetNotFoundError:
        raise UserError(
            f"tfds:{name}: no prepared data set of this name in "
            f"{place or 'the places where TFDS looks'}: run 'tfds build --file_format="
            "array_record' for it, or correct data.root or data.tfds.data_dir"
        ) from None


def _checked(
    name: str, builder: tfds.core.DatasetBuilder, fields: Mapping[str, Any]
) -> tuple[list[TaskFeature], Sequence[Any]]:
    """The tasks, and the decoded examples by number."""
    features = builder.info.features
    check_image(features, fields["image"])
    tasks = task_features(features, fields["tasks"])
    if fields["group"]:
        find(features, fields["group"], "data.tfds.group")
    unread = {
        path: tfds.decode.SkipDecoding()
        for path, feature in features.items()
        if isinstance(feature, tfds.features.Image)
        and path not in (fields["image"], *(task.feature for task in tasks))
    }
    try:
        return tasks, builder.as_data_source(fields["split"], decoders=unread or None)
    except NotImplementedError:
        place = builder.data_path
        raise UserError(
            f"tfds:{name} was written as {builder.info.file_format.value}, which only TensorFlow "
            f"reads: where it is installed, run 'tfds convert_format --dataset_version_dir={place} "
            "--out_file_format=array_record', which adds files beside the old ones"
        ) from None
    except ValueError as error:
        raise UserError(f"data.tfds.split={fields['split']!r} of tfds:{name}: {error}") from error


def _without_place(fields: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted((name, value) for name, value in fields.items() if name != "data_dir")


def _files(builder: tfds.core.DatasetBuilder) -> list[tuple[str, int, int]]:
    """Name, bytes and time of each file of a data set."""
    paths = sorted(builder.data_path.iterdir())
    return [(path.name, path.stat().length, path.stat().mtime) for path in paths]


def _write(
    name: str,
    source: Sequence[Any],
    tasks: Sequence[TaskFeature],
    fields: Mapping[str, Any],
    folder: pathlib.Path,
) -> None:
    pixels = {fields["image"], *(task.feature for task in tasks if task.type == "segmentation")}
    for feature in pixels:
        _directory(folder, feature).mkdir(parents=True, exist_ok=True)
    rows_of = functools.partial(_example, name, source, tasks, fields, folder)
    rows: dict[str, list[dict[str, str]]] = {task.id: [] for task in tasks}
    with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        done = pool.map(rows_of, range(len(source)))
        for of_example in progress(done, len(source), f"writing {name}"):
            for task_id, of_task in of_example.items():
                rows[task_id] += of_task
    (folder / DIRECTORY).mkdir(exist_ok=True)
    for task_id, of_task in rows.items():
        path = folder / DIRECTORY / f"{urllib.parse.quote(task_id, safe='')}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, of_task[0] if of_task else ("task_id",))
            writer.writeheader()
            writer.writerows(of_task)


def _example(
    name: str,
    source: Sequence[Any],
    tasks: Sequence[TaskFeature],
    fields: Mapping[str, Any],
    folder: pathlib.Path,
    number: int,
) -> dict[str, list[dict[str, str]]]:
    """Writes the pixels of an example; returns the CSV rows of each task."""
    try:
        example = source[number]
    except Exception as error:  # on damaged bytes a decoder may raise anything
        raise UserError(
            f"{name}: example {number} of split {fields['split']!r} cannot be decoded ({error}); "
            "prepare the data set again"
        ) from error

    def png(feature: str, pixels: np.ndarray) -> str:
        path = _directory(folder, feature) / f"{number:07}.png"
        if not path.exists():
            unfinished = path.with_suffix(".tmp")
            unfinished.write_bytes(_png(pixels))
            unfinished.replace(path)
        return os.path.join(os.pardir, path.relative_to(folder))

    image = np.asarray(value_at(example, fields["image"]))
    named = {"image_path": png(fields["image"], image)}
    group = {}
    if fields["group"]:
        value = value_at(example, fields["group"])
        text = value.decode() if isinstance(value, bytes) else str(value)
        # Patient 1 of another data set is somebody else.
        group["split_group"] = f"{name}:{text}" if text else ""
    rows = {}
    for task in tasks:
        value = value_at(example, task.feature)
        if task.type == "segmentation":
            mask = _class_ids(np.asarray(value), f"{name}: example {number}: {task.feature}")
            labels = [{"mask_path": png(task.feature, mask)}]
        else:
            labels = label_columns(task, value, *image.shape[:2])
        said = {"task_id": task.id, "task_name": task.type, "num_classes": str(task.size)}
        rows[task.id] = [named | label | said | group for label in labels]
    return rows


def _directory(folder: pathlib.Path, feature: str) -> pathlib.Path:
    return folder / "pixels" / urllib.parse.quote(feature, safe="")


def _class_ids(mask: np.ndarray, what: str) -> np.ndarray:
    """The mask as uint8, where that loses nothing."""
    ids = mask.astype(np.uint8)
    if np.any(ids != mask):
        raise UserError(
            f"{what} holds class ids from {mask.min()} to {mask.max()}; a mask has 0 to 255"
        )
    return ids


def _png(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 or uint16 [H, W] or [H, W, C], C being 1, 3 (RGB) or 4 (RGBA)."""
    order = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    if pixels.ndim == 3 and pixels.shape[2] in order:
        pixels = cv2.cvtColor(pixels, order[pixels.shape[2]])
    # Speckle hardly compresses: the fastest level costs a few percent of the size.
    return cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
