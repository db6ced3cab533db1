"""Reading the store: rows of one task as stacked arrays, with little Python a row."""

import bisect
import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from usfm.data.shard_reader import ShardReader
from usfm.errors import UserError
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
            UserError: a row is damaged, or another version of usfm has stored it.
        """
        task = next(task for task in self.tasks if task.id == task_id)
        layout = _layout(task, self.image_size, self.channels)
        if out is None:
            out = {
                name: np.empty((len(indices), *shape), dtype)
                for name, (shape, dtype) in layout.arrays.items()
            }
        shards = self.shards[task_id]
        ends = list(itertools.accumulate(rows for _, rows in shards))
        indices = np.asarray(indices)
        if indices.size and not 0 <= indices.min() <= indices.max() < ends[-1]:
            raise IndexError(f"{task_id} has rows 0 to {ends[-1] - 1}, asked for {indices}")
        for place, index in enumerate(indices.tolist()):
            shard = bisect.bisect_right(ends, index)
            file, rows = shards[shard]
            row = {name: array[place : place + 1].data.cast("B") for name, array in out.items()}
            try:
                _opened(file, layout).read(index - ends[shard] + rows, row)
            except (ValueError, LookupError) as error:
                raise UserError(
                    f"{file}: row {index} of {task_id} is not as this version of usfm "
                    f"writes it ({error}); remove the store's folder, so that it is built again"
                ) from error
        return out


@dataclasses.dataclass(frozen=True, eq=False)
class _Layout:
    """The arrays of a row: name -> (shape, dtype)."""

    arrays: Mapping[str, tuple[tuple[int, ...], np.dtype]]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each."""
        return {
            name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in self.arrays.items()
        }


@functools.cache
def _layout(task: Task, image_size: tuple[int, int], channels: int) -> _Layout:
    return _Layout(stored_arrays(task, image_size, channels))


@functools.cache
def _opened(file: str, layout: _Layout) -> ShardReader:
    # One a process: a Store that was sent to a worker opens its files there, at the first read.
    return ShardReader(file, layout.sizes)
