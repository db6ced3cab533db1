"""Building the store: each image of a folder resized once, as a TFDS dataset, one config a task."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import itertools
import os
import pathlib
import shutil
import sys
import urllib.parse
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from usfm.data.folder import Folder, Row
from usfm.data.image import ImageError, read_image, read_mask, resize_image, resize_mask
from usfm.data.progress import progress
from usfm.data.slots import IGNORE
from usfm.data.store import Store, stored_arrays
from usfm.tasks import Task

SPLIT = "rows"
SHARD_BYTES = 64 << 20  # TFDS holds a shard in memory while it writes it
THREADS = os.cpu_count() or 1

# Raised whenever what is stored changes, so that no older store is taken for a current one.
FORMAT = 1


@dataclasses.dataclass(eq=False, kw_only=True)
class TaskConfig(tfds.core.BuilderConfig):
    """The TFDS config of one task.

    Attributes:
        folder: where its rows and files are.
        task: the task.
        image_size: (height, width) of the stored images.
        channels: 1 or 3, of the stored images.
        done: moved on by one for each row written.
    """

    folder: Folder
    task: Task
    image_size: tuple[int, int]
    channels: int
    done: Iterator[object]

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of the arrays of a row."""
        return stored_arrays(self.task, self.image_size, self.channels)


class UltrasoundFolder(tfds.core.ShardBasedBuilder):
    """A folder in the FM_UIA form as a TFDS dataset; row i of a task is example i of its config.

    Shard-based, because a GeneratorBasedBuilder gathers a whole split in memory and beyond 1 GB
    (a large task of FM_UIA at 224 pixels) asks for TensorFlow.
    """

    VERSION = tfds.core.Version(f"{FORMAT}.0.0")
    url_infos = None  # nothing is downloaded; TFDS would look for a list of checksums

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, tfds.features.FeatureConnector] = {
            name: tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")
            for name, (shape, dtype) in self.builder_config.arrays.items()
        }
        for name in ("key", "image_path", "mask_path", "content"):
            features[name] = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(self, dl_manager):
        config = self.builder_config
        rows = config.folder.rows[config.task.id]
        row_bytes = sum(
            int(np.prod(shape)) * dtype.itemsize for shape, dtype in config.arrays.values()
        )
        step = max(1, SHARD_BYTES // row_bytes)
        starts = range(0, len(rows), step)
        return {SPLIT: [functools.partial(self._examples, rows[i : i + step]) for i in starts]}

    def _examples(self, rows: Sequence[Row]) -> Iterator[tuple[int, dict]]:
        example = functools.partial(_example, self.builder_config)
        for row, fields in zip(rows, _map_ahead(example, rows), strict=True):
            yield row.index, fields
            next(self.builder_config.done)

    def _example_writer(self):
        return _RawWriter(file_format=self.info.file_format)

    # TFDS would print about downloads, and warn of configs that are not listed in the class.
    def _log_download_bytes(self):
        pass

    def _log_download_done(self):
        pass

    def _create_builder_config(self, builder_config, version):
        return builder_config


class _RawWriter(tfds.core.writer.ExampleWriter):
    """Writes records uncompressed: up to four times the disk, read at 2.5 times the speed."""

    def write(self, path, examples):
        writer = ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
        for _, example in examples:
            writer.write(example)
        writer.close()


def _example(config: TaskConfig, row: Row) -> dict[str, object]:
    """What is stored of one row; Store.read says what stands for a missing label."""
    folder, task, image_size = config.folder, config.task, config.image_size
    extent = np.array([row.width, row.height], np.float32)
    image = _read(read_image, folder.image_file(row))
    fields: dict[str, object] = {
        "image": resize_image(image, image_size, config.channels),
        "size": np.array([row.height, row.width], np.int32),
        "key": row.key,
        "image_path": row.image_path,
        "mask_path": row.mask_path,
        "content": row.content,
    }
    if task.type == "classification":
        fields["label"] = np.array(-1 if row.label is None else row.label, np.int32)
    elif task.type == "detection":
        box = np.zeros(4, np.float32) if row.box is None else np.array(row.box, np.float32)
        fields["box"] = box / np.tile(extent, 2)
    elif task.type == "regression":
        points = row.points or (None,) * task.num_points
        fields["points_valid"] = np.array([point is not None for point in points])
        fields["points"] = np.array([point or (0, 0) for point in points], np.float32) / extent
    elif row.mask_content:
        fields["mask"] = resize_mask(_read(read_mask, folder.mask_file(row)), image_size)
    else:
        fields["mask"] = np.full(image_size, IGNORE, np.uint8)
    return fields


def _read(reader: Callable[[pathlib.Path], np.ndarray], file: pathlib.Path) -> np.ndarray:
    try:
        return reader(file)
    except ImageError as error:  # read_folder found it good: it has changed since
        raise ImageError(f"{file} {error}; mend the file and run again") from error


def _map_ahead(function: Callable, items: Iterable) -> Iterator:
    """Maps in threads, in order, a bounded number of items ahead of the reader."""
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        items = iter(items)
        ahead = collections.deque(
            pool.submit(function, item) for item in itertools.islice(items, 2 * THREADS)
        )
        while ahead:
            result = ahead.popleft().result()
            ahead.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
            yield result


def open_store(
    folder: Folder, image_size: tuple[int, int], channels: int, cache_dir: str | os.PathLike
) -> Store:
    """Opens the store of a folder, building it on first use.

    A store is named by all it is made from (pixels, labels, paths, settings), so a changed folder
    or setting builds another. It appears under its name only when whole: a killed build leaves a
    folder of another name, which the next build removes.

    Args:
        folder: what read_folder returned.
        image_size: (height, width) to resize to.
        channels: 1 for grey, 3 for RGB.
        cache_dir: where stores lie; local, made if missing.
    """
    path = pathlib.Path(cache_dir) / _fingerprint(folder, image_size, channels)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with _only_builder(path.parent):
            if not path.exists():  # it may have come while we waited
                _build(folder, image_size, channels, path)
    builders = _builders(folder, image_size, channels, path, done=iter(()))
    shards = {
        task_id: tuple(
            (os.fspath(shard.filename), shard.examples_in_shard)
            for shard in builder.info.splits[SPLIT].file_instructions
        )
        for task_id, builder in builders.items()
    }
    return Store(folder.tasks, image_size, channels, shards)


def _fingerprint(folder: Folder, image_size: tuple[int, int], channels: int) -> str:
    tasks = [(task.id, task.type, task.num_classes, task.num_points) for task in folder.tasks]
    rows = [folder.rows[task.id] for task in folder.tasks]
    content = repr((FORMAT, *image_size, channels, tasks, rows))
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _builders(
    folder: Folder,
    image_size: tuple[int, int],
    channels: int,
    path: pathlib.Path,
    done: Iterator[object],
) -> dict[str, UltrasoundFolder]:
    return {
        task.id: UltrasoundFolder(
            data_dir=path,
            file_format="array_record",
            config=TaskConfig(
                name=urllib.parse.quote(task.id, safe=""),
                folder=folder,
                task=task,
                image_size=image_size,
                channels=channels,
                done=done,
            ),
        )
        for task in folder.tasks
    }


def _build(folder: Folder, image_size: tuple[int, int], channels: int, path: pathlib.Path) -> None:
    for leftover in path.parent.glob("*.building"):
        shutil.rmtree(leftover)
    partial = path.with_name(path.name + ".building")
    total = sum(len(rows) for rows in folder.rows.values())
    done = progress(range(total), total, "storing images")
    for builder in _builders(folder, image_size, channels, partial, done).values():
        builder.download_and_prepare()
    partial.rename(path)


@contextlib.contextmanager
def _only_builder(cache_dir: pathlib.Path) -> Generator[None]:
    """Holds the right to build in a folder; the system takes it back when a process dies."""
    with (cache_dir / "build.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for the process that builds in {cache_dir}", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
