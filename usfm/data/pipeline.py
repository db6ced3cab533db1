"""The stream of training batches: a pure function of the seed and the step."""

import dataclasses
import functools
import signal
import sys
import zlib
from collections.abc import Mapping, Sequence

import grain
import numpy as np

from usfm.data.parallel import end_with_parent
from usfm.data.slots import read_batch, slots_per_type, task_weights, type_slices
from usfm.data.store import Store
from usfm.errors import UserError
from usfm.tasks import Task

READ_AHEAD = 2  # batches held ready in each process


def slot_batches(
    store: Store,
    tasks: Sequence[Task],
    indices: Mapping[str, np.ndarray],
    *,
    slots: int,
    examples_per_slot: int,
    seed: int,
    weights: Mapping[str, float] | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset:
    """Makes the endless dataset whose element [step] is the batch of that step.

    Within a type, slots are dealt to its tasks in exact proportion to their weights, rounded to
    hundredths of the type's least. Each task walks through its rows in an order that is new every
    epoch; every row comes once an epoch.

    Args:
        store: holds the rows of all tasks.
        tasks: of the run, sorted by id.
        indices: task id -> Row.index of the rows to train on, int [N].
        slots: of a batch, all processes together.
        examples_per_slot: images of a slot.
        seed: of the orders.
        weights: task id -> how often its slots come, relative to the others; None for equally.
        process_index: which process this is.
        process_count: of processes that share a batch; each reads its own contiguous share of
            the slots.

    Returns:
        Batches as usfm/data/slots.py describes them, with slots / process_count slots.

    Raises:
        UserError: a task without rows, a weight that is not above zero, fewer slots than types,
            or slots that cannot be shared equally by the processes.
    """
    if slots % process_count:
        raise UserError(
            f"{slots} slots cannot be shared by {process_count} processes; "
            f"set train.slots to a multiple of {process_count}"
        )
    for task in tasks:
        if not np.size(indices.get(task.id, ())):
            raise UserError(
                f"task {task.id} has no row to train on; give it rows or leave it out of the run"
            )
    by_id = task_weights(tasks, weights)
    counts = slots_per_type(tasks, weights, slots)
    endless = grain.MapDataset.range(sys.maxsize)
    streams: dict[str, list[grain.MapDataset]] = {type_: [] for type_ in counts}
    for place, task in enumerate(tasks):
        rows = np.asarray(indices[task.id], np.int32)
        # A seed by name: adding a task to a run leaves the orders of the others as they were.
        seeds = (seed, zlib.crc32(task.id.encode()))
        streams[task.type].append(endless.map(_TaskSlots(place, rows, examples_per_slot, seeds)))
    orders = {
        type_: grain.MapDataset.mix(
            streams[type_], _hundredths([by_id[task.id] for task in tasks if task.type == type_])
        )
        for type_ in counts
    }
    share = slots // process_count
    read = _ReadSlots(
        store=store,
        tasks=tuple(tasks),
        orders=orders,
        counts=counts,
        places=range(process_index * share, (process_index + 1) * share),
        images=examples_per_slot,
    )
    steps = min(len(orders[type_]) // count for type_, count in counts.items())
    return grain.MapDataset.range(steps).map(read)


def _hundredths(weights: Sequence[float]) -> list[int]:
    """Weights in hundredths of the least, which grain takes as they are.

    Of other numbers it makes such itself, but cuts them off: of 32 ** 0.5 and 8 ** 0.5, which
    are as 2 to 1, it makes 199 and 99.
    """
    least = min(weights)
    return [round(100 * weight / least) for weight in weights]


def iterate(
    dataset: grain.MapDataset, start_step: int, workers: int
) -> grain.DatasetIterator[dict[str, np.ndarray]]:
    """Iterates over the batches from a step on, reading ahead.

    Args:
        dataset: from slot_batches.
        start_step: step of the first batch.
        workers: processes to read in; 0 reads in a thread of this one. The batches are the same.

    Returns:
        An iterator, to be closed after use.
    """
    batches = dataset[start_step:].to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=READ_AHEAD)
    )
    if workers:
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=READ_AHEAD),
            worker_init_fn=_follow_parent,
        )
    return iter(batches)


def _follow_parent(worker: int, workers: int) -> None:
    """Makes a worker process end when its parent closes the iterator or dies, and only then.

    Signals that are sent to the whole group are for the parent, which may want to save first; and
    when the parent is killed, nobody is left to end its workers.
    """
    del worker, workers
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


@dataclasses.dataclass(frozen=True)
class _TaskSlots:
    """The slots of one task one after another, as (place of the task, Row.index of its images).

    Makes its row orders an epoch at a time, because grain's shuffle takes up to 0.2 ms a row for
    tasks of some hundred rows: more than reading the images.
    """

    place: int
    rows: np.ndarray
    images: int
    seed: tuple[int, int]

    def __call__(self, nth: int) -> tuple[int, np.ndarray]:
        positions = np.arange(nth * self.images, (nth + 1) * self.images)
        epochs, positions = np.divmod(positions, len(self.rows))
        parts = [
            _order(len(self.rows), (*self.seed, epoch))[positions[epochs == epoch]]
            for epoch in np.unique(epochs).tolist()
        ]
        return self.place, self.rows[np.concatenate(parts)]


@functools.lru_cache(maxsize=256)  # room for the present and next epoch of every task
def _order(length: int, seed: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).permutation(length).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class _ReadSlots:
    """Reads the batch of a step: only the slots at places, each with one read of the store."""

    store: Store
    tasks: tuple[Task, ...]
    orders: Mapping[str, grain.MapDataset]
    counts: Mapping[str, int]
    places: range
    images: int

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        slots = []
        for type_, span in type_slices(self.counts).items():
            for place in range(
                max(span.start, self.places.start), min(span.stop, self.places.stop)
            ):
                nth = step * self.counts[type_] + place - span.start
                slots.append(self.orders[type_][nth])
        return read_batch(self.store, self.tasks, slots, self.images)
