"""The batch: a set of slots, each holding n images of one task, ordered by task type.

A batch is a dict of arrays; S slots, images of H x W pixels and C channels, K points:

    image uint8 [S, n, H, W, C]    task int32 [S]: index into the tasks of the run, sorted by id
    row int32 [S, n]: Row.index    valid bool [S, n]: False for images that only fill up a slot

and, where the run has a task of the type that uses it,

    label int32 [S, n]             box float32 [S, n, 4]: x_min, y_min, x_max, y_max
    mask uint8 [S, n, H, W]        points float32 [S, n, K, 2]: x, y; points_valid bool [S, n, K]

Coordinates are pixel / original size; mask pixels of 255 belong to no class; K is the largest
number of points in the run. Entries of slots of other types are zero. Which task fills a slot is
data; how many slots a type has is fixed for a run, so one compiled step serves every batch.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from usfm.data import memory
from usfm.data.store import Store
from usfm.errors import UserError
from usfm.tasks import TYPES, Task

IGNORE = 255  # in a mask: a pixel that belongs to no class

LABELS = {
    "classification": ("label",),
    "detection": ("box",),
    "regression": ("points", "points_valid"),
    "segmentation": ("mask",),
}
_PIXELS = {"image", "mask"}


def task_weights(tasks: Sequence[Task], weights: Mapping[str, float] | None) -> dict[str, float]:
    """How often each task is drawn, relative to the others; equally where weights is None.

    Raises:
        UserError: a task has no weight, or a weight is not above zero.
    """
    if weights is None:
        return {task.id: 1.0 for task in tasks}
    for task in tasks:
        if not 0 < weights.get(task.id, 0) < float("inf"):
            raise UserError(
                f"weight of task {task.id} is {weights.get(task.id)}; give a number above zero, "
                "or leave the task out of the run"
            )
    return {task.id: float(weights[task.id]) for task in tasks}


def type_weights(tasks: Sequence[Task], by_id: Mapping[str, float]) -> dict[str, float]:
    """The summed weight of each type present, in the order of TYPES."""
    return {
        type_: sum(by_id[task.id] for task in tasks if task.type == type_)
        for type_ in TYPES
        if any(task.type == type_ for task in tasks)
    }


def slots_per_type(
    tasks: Sequence[Task], weights: Mapping[str, float] | None, slots: int
) -> dict[str, int]:
    """Shares the slots of a batch among the types present: largest remainder, at least one each.

    Args:
        tasks: of the run.
        weights: task id -> weight, None for equal ones; a type's share is that of its tasks.
        slots: of a batch, all processes together.

    Returns:
        Number of slots of each type present, in the order of TYPES.

    Raises:
        UserError: fewer slots than types, or as task_weights.
    """
    by_type = type_weights(tasks, task_weights(tasks, weights))
    if slots < len(by_type):
        raise UserError(
            f"{slots} slots cannot hold {len(by_type)} task types ({', '.join(by_type)}); "
            f"set train.slots to {len(by_type)} or more"
        )
    total = sum(by_type.values())
    quota = {type_: slots * weight / total for type_, weight in by_type.items()}
    counts = {type_: max(1, int(share)) for type_, share in quota.items()}
    while sum(counts.values()) < slots:
        counts[max(counts, key=lambda type_: quota[type_] - counts[type_])] += 1
    while sum(counts.values()) > slots:  # small types were given their one
        shrinkable = [type_ for type_ in counts if counts[type_] > 1]
        counts[min(shrinkable, key=lambda type_: quota[type_] - counts[type_])] -= 1
    return counts


def type_slices(counts: Mapping[str, int]) -> dict[str, slice]:
    """Where the slots of each type lie in a global batch, from slots_per_type."""
    ends = np.cumsum(list(counts.values())).tolist()
    return {
        type_: slice(end - count, end)
        for (type_, count), end in zip(counts.items(), ends, strict=True)
    }


def read_batch(
    store: Store,
    tasks: Sequence[Task],
    slots: Sequence[tuple[int, np.ndarray]],
    images: int,
) -> dict[str, np.ndarray]:
    """Reads the batch of the given slots.

    Args:
        store: holds the rows.
        tasks: of the run, sorted by id.
        slots: ordered by type; for each its task's index and the Row.index of its images.
        images: n; a slot of fewer images is filled up with zeros, which are not valid.

    Returns:
        The batch described above, of these slots.
    """
    batch = _allocate(store, tasks, len(slots), images)
    for slot, (task, rows) in enumerate(slots):
        count = len(rows)
        batch["task"][slot] = task
        batch["row"][slot, :count] = rows
        batch["valid"][slot, :count] = True
        out = {"image": batch["image"][slot, :count]}
        for name in LABELS[tasks[task].type]:
            out[name] = batch[name][slot, :count]
            if name.startswith("points"):  # a task of fewer points than K fills the first ones
                out[name] = out[name][:, : tasks[task].num_points]
        for name in _PIXELS & batch.keys():
            batch[name][slot, count if name in out else 0 :] = 0
        store.read(tasks[task].id, rows, out)
    return batch


def layout(
    tasks: Sequence[Task], slots: int, images: int, image_size: tuple[int, int], channels: int
) -> dict[str, tuple[tuple[int, ...], type]]:
    """Shape and type of every array of a batch.

    Args:
        tasks: of the run.
        slots: S.
        images: n.
        image_size: (H, W).
        channels: C.
    """
    num_points = max(task.num_points for task in tasks)
    entries: dict[str, tuple[tuple[int, ...], type]] = {
        "image": ((*image_size, channels), np.uint8),
        "row": ((), np.int32),
        "valid": ((), np.bool_),
        "label": ((), np.int32),
        "box": ((4,), np.float32),
        "points": ((num_points, 2), np.float32),
        "points_valid": ((num_points,), np.bool_),
        "mask": (image_size, np.uint8),
    }
    unused = {name for type_ in TYPES for name in LABELS[type_]}
    unused -= {name for task in tasks for name in LABELS[task.type]}
    used = {name: of for name, of in entries.items() if name not in unused}
    arrays = {name: ((slots, images, *shape), dtype) for name, (shape, dtype) in used.items()}
    return {**arrays, "task": ((slots,), np.int32)}


def _allocate(
    store: Store, tasks: Sequence[Task], slots: int, images: int
) -> dict[str, np.ndarray]:
    """A batch of zeros, but for its pixels, which may be anything."""
    arrays = layout(tasks, slots, images, store.image_size, store.channels)
    batch = {name: np.zeros(*of) for name, of in arrays.items() if name not in _PIXELS}
    pixels = {name: shape for name, (shape, _) in arrays.items() if name in _PIXELS}
    sizes = [math.prod(shape) for shape in pixels.values()]
    block = memory.empty((sum(sizes),))
    parts = np.split(block, np.cumsum(sizes)[:-1])
    return batch | {
        name: part.reshape(shape) for (name, shape), part in zip(pixels.items(), parts, strict=True)
    }
