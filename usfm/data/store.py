"""Reading the store: rows of one task as stacked arrays, with little Python a row."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from tensorflow_datasets.proto import tf_example_pb2

from usfm.tasks import Task


def stored_arrays(
    task: Task, image_size: tuple[int, int], channels: int
) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of the arrays stored for one row of a task, by name."""
    labels = {
        "classification": {"label": ((), np.int32)},
        "detection": {"box": ((4,), np.float32)},
        "regression": {
            "points": ((task.num_points, 2), np.float32),
            "points_valid": ((task.num_points,), np.bool_),
        },
        "segmentation": {"mask": (image_size, np.uint8)},
    }[task.type]
    arrays = {"image": ((*image_size, channels), np.uint8), "size": ((2,), np.int32), **labels}
    return {name: (shape, np.dtype(dtype)) for name, (shape, dtype) in arrays.items()}


@dataclasses.dataclass(frozen=True)
class Store:
    """The stored rows of a folder. Small, can be pickled, and needs the folder no more.

    Attributes:
        tasks: sorted by id.
        image_size: (height, width) of the stored images.
        channels: 1 or 3.
        shards: task id -> (file, number of rows), in the order of the rows.
    """

    tasks: tuple[Task, ...]
    image_size: tuple[int, int]
    channels: int
    shards: Mapping[str, tuple[tuple[str, int], ...]]

    def num_rows(self, task_id: str) -> int:
        """Number of rows of a task."""
        return sum(rows for _, rows in self.shards[task_id])

    def read(
        self,
        task_id: str,
        indices: Sequence[int] | np.ndarray,
        out: Mapping[str, np.ndarray] | None = None,
    ) -> Mapping[str, np.ndarray]:
        """Reads rows of one task.

        Args:
            task_id: the task.
            indices: Row.index of n rows, in any order, repeats allowed.
            out: arrays to write to instead of new ones; only those named here are read.

        Returns:
            Arrays with leading axis n: image uint8 [n, h, w, channels], size int32 [n, 2] (height,
            width of the original image), and by the task's type: label int32 [n]; box float32
            [n, 4] xyxy; points float32 [n, K, 2] and points_valid bool [n, K]; mask uint8
            [n, h, w] (255 = ignore). Coordinates are pixel / original size. Unlabelled rows have
            label -1, box 0, no valid point, mask 255.

        Raises:
            IndexError: an index is outside the task.
        """
        task = next(task for task in self.tasks if task.id == task_id)
        arrays = stored_arrays(task, self.image_size, self.channels)
        records = self._records(task_id, np.asarray(indices, np.int64))
        if out is None:
            out = {
                name: np.empty((len(records), *shape), dtype)
                for name, (shape, dtype) in arrays.items()
            }
        for place, record in enumerate(records):
            fields = tf_example_pb2.Example.FromString(record).features.feature  # pyrefly: ignore
            for name, array in out.items():
                shape, dtype = arrays[name]
                value = fields[name].bytes_list.value[0]
                array[place] = np.frombuffer(value, dtype).reshape(shape)
        return out

    def _records(self, task_id: str, indices: np.ndarray) -> list[bytes]:
        files, rows = zip(*self.shards[task_id], strict=True)
        ends = np.cumsum(rows)
        if indices.size and not 0 <= indices.min() <= indices.max() < ends[-1]:
            raise IndexError(f"{task_id} has rows 0 to {ends[-1] - 1}, asked for {indices}")
        records = [b""] * len(indices)
        shards = np.searchsorted(ends, indices, side="right")
        for shard in np.unique(shards):
            places = np.flatnonzero(shards == shard)
            positions = indices[places] - (ends[shard] - rows[shard])
            found = _reader(files[shard]).read(positions.tolist())
            for place, record in zip(places, found, strict=True):
                records[place] = record
        return records


@functools.cache
def _reader(path: str) -> ArrayRecordReader:
    # One a process: a Store that was sent to a worker opens its files there, at the first read.
    return ArrayRecordReader(path, options="readahead_buffer_size:0", file_reader_buffer_size=32768)
