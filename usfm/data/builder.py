"""The store as a TFDS dataset, one config a task: what is in it, and building it on first use."""

import dataclasses
import functools
import hashlib
import os
import pathlib
import urllib.parse
from collections.abc import Callable, Sequence

import tensorflow_datasets as tfds

from usfm.data.folder import Folder, Row
from usfm.data.records import Form, Source
from usfm.data.shards import Shard, write_shards
from usfm.data.store import Store
from usfm.data.unfinished import make_once

SPLIT = "rows"
SHARD_BYTES = 64 << 20  # what a crash may cost, and what one worker of Beam writes

# Raised whenever what is stored changes, so that no older store is taken for a current one.
FORMAT = 1


@dataclasses.dataclass(eq=False, kw_only=True)
class TaskConfig(tfds.core.BuilderConfig):
    """The TFDS config of one task.

    Attributes:
        folder: where its rows and files are.
        form: how they are stored.
    """

    folder: Folder = dataclasses.field(repr=False)  # TFDS logs what it is given: all rows
    form: Form


class UltrasoundFolder(tfds.core.dataset_builder.FileReaderBuilder):
    """A folder in the FM_UIA form as a TFDS dataset; row i of a task is example i of its config.

    Not a GeneratorBasedBuilder, which gathers a whole split in memory and beyond 1 GB (a large
    task of FM_UIA at 224 pixels) asks for TensorFlow; and not a ShardBasedBuilder, which writes
    one row after another, anew after a crash, and equal rows as other bytes.
    """

    VERSION = tfds.core.Version(f"{FORMAT}.0.0")
    url_infos = None  # nothing is downloaded; TFDS would look for a list of checksums

    def shards(self) -> list[Shard]:
        """Its files, in the order of the rows."""
        config = self.builder_config
        rows = config.folder.rows[config.form.task.id]
        step = max(1, SHARD_BYTES // config.form.row_bytes)
        parts = [rows[start : start + step] for start in range(0, len(rows), step)]
        template = self._get_filename_template(SPLIT)
        return [
            Shard(
                pathlib.Path(template.sharded_filepath(shard_index=i, num_shards=len(parts))),
                tuple(_source(config, row) for row in part),
            )
            for i, part in enumerate(parts)
        ]

    def describe(self) -> None:
        """Writes what TFDS has to know of the shards, once all are whole."""
        self._set_splits()
        self.info.write_to_directory(self.data_dir)

    def _set_splits(self) -> None:
        shards = self.shards()
        split = tfds.core.splits.SplitInfo(
            name=SPLIT,
            shard_lengths=[len(shard.sources) for shard in shards],
            num_bytes=sum(shard.file.stat().st_size for shard in shards),
            filename_template=self._get_filename_template(SPLIT),
        )
        self.info.set_splits(tfds.core.splits.SplitDict([split]))

    def _download_and_prepare(self, dl_manager, download_config=None):
        write_shards(self.shards())
        self._set_splits()

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self, features=self.builder_config.form.features, disable_shuffling=True
        )

    # TFDS would warn of configs that are not listed in the class.
    def _create_builder_config(self, builder_config, version):
        return builder_config


def _source(config: TaskConfig, row: Row) -> Source:
    mask_file = config.folder.mask_file(row) if row.mask_content else None
    return Source(config.form, row, config.folder.image_file(row), mask_file)


def open_store(
    folder: Folder,
    image_size: tuple[int, int],
    channels: int,
    cache_dir: str | os.PathLike,
    write: Callable[[Sequence[Shard]], None] = write_shards,
) -> Store:
    """Opens the store of a folder, building it on first use.

    A store is named by all it is made from (pixels, labels, paths, settings), so a changed folder
    or setting builds another. It appears under its name only when whole; a build that was killed
    is gone on with by the next one of the same store.

    Args:
        folder: what read_folder returned.
        image_size: (height, width) to resize to.
        channels: 1 for grey, 3 for RGB.
        cache_dir: where stores lie; local, made if missing.
        write: writes the shards that are not whole yet.
    """
    path = pathlib.Path(cache_dir) / _fingerprint(folder, image_size, channels)
    builders = functools.partial(_builders, folder, image_size, channels)
    make_once(path, lambda unfinished: _build(unfinished, builders, write))
    shards = {
        task_id: tuple(
            (os.fspath(shard.filename), shard.examples_in_shard)
            for shard in builder.info.splits[SPLIT].file_instructions
        )
        for task_id, builder in builders(path).items()
    }
    return Store(folder.tasks, image_size, channels, shards)


def _fingerprint(folder: Folder, image_size: tuple[int, int], channels: int) -> str:
    tasks = [(task.id, task.type, task.num_classes, task.num_points) for task in folder.tasks]
    rows = [folder.rows[task.id] for task in folder.tasks]
    content = repr((FORMAT, *image_size, channels, tasks, rows))
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _builders(
    folder: Folder, image_size: tuple[int, int], channels: int, path: pathlib.Path
) -> dict[str, UltrasoundFolder]:
    return {
        task.id: UltrasoundFolder(
            data_dir=path,
            file_format="array_record",
            config=TaskConfig(
                name=urllib.parse.quote(task.id, safe=""),
                folder=folder,
                form=Form(task, image_size, channels),
            ),
        )
        for task in folder.tasks
    }


def _build(
    path: pathlib.Path,
    builders: Callable[[pathlib.Path], dict[str, UltrasoundFolder]],
    write: Callable[[Sequence[Shard]], None],
) -> None:
    # Nothing but shards is gone on with: a description may be half-written too.
    for half in (*path.rglob("*.json"), *path.rglob("*.unfinished")):
        half.unlink()
    of_tasks = builders(path).values()
    shards = [shard for builder in of_tasks for shard in builder.shards()]
    write(shards)
    files = {shard.file for shard in shards}
    for file in path.rglob("*"):
        if file.is_file() and file not in files:
            file.unlink()
    for builder in of_tasks:
        builder.describe()
