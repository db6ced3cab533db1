"""The stream of training batches: a pure function of the seed and the step."""

import dataclasses
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import zlib
from collections.abc import Mapping

import grain
import numpy as np

from usfm.data.mixing import Mix
from usfm.data.order import ByClass, Epochs
from usfm.data.slots import read_batch
from usfm.data.store import Store
from usfm.errors import UserError

READ_AHEAD = 2  # batches held ready in each process


def slot_batches(
    store: Store,
    mix: Mix,
    indices: Mapping[str, np.ndarray],
    *,
    examples_per_slot: int,
    seed: int,
    classes: Mapping[str, np.ndarray] | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset:
    """Makes the endless dataset whose element [step] is the batch of that step.

    Each task walks through its rows in an order that is new every epoch; every row comes once an
    epoch. So its next slot holds the same images, however often the mix gives it one.

    Args:
        store: holds the rows of all tasks.
        mix: which tasks fill the slots.
        indices: task id -> Row.index of the rows to train on, int [N].
        examples_per_slot: images of a slot.
        seed: of the orders.
        classes: task id -> class of each of its rows, int [N]. The tasks named here have images of
            all classes equally often, and every row of a class once an epoch of that class.
        process_index: which process this is.
        process_count: of processes that share a batch; each reads its own contiguous share of
            the slots.

    Returns:
        Batches as usfm/data/slots.py describes them, with mix.size / process_count slots.

    Raises:
        UserError: a task without rows, a weight that is not above zero, fewer slots than types,
            or slots that cannot be shared equally by the processes.
    """
    walks: list[Epochs | ByClass] = []
    for task in mix.tasks:
        rows = np.asarray(indices.get(task.id, ()), np.int32)
        if not rows.size:
            raise UserError(
                f"task {task.id} has no row to train on; give it rows or leave it out of the run"
            )
        # A seed by name: adding a task to a run leaves the orders of the others as they were.
        seeds = (seed, zlib.crc32(task.id.encode()))
        of_task = (classes or {}).get(task.id)
        walks.append(Epochs(rows, seeds) if of_task is None else ByClass(rows, of_task, seeds))
    share, rest = divmod(sum(mix.slots.values()), process_count)
    if rest:
        raise UserError(
            f"{mix.size} slots cannot be shared by {process_count} processes; "
            f"set train.slots to a multiple of {process_count}"
        )
    read = _ReadSlots(
        store=store,
        mix=mix,
        walks=tuple(walks),
        start=process_index * share,
        stop=(process_index + 1) * share,
        images=examples_per_slot,
    )
    return grain.MapDataset.range(sys.maxsize).map(read)


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
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


@dataclasses.dataclass(frozen=True)
class _ReadSlots:
    """Reads the batch of a step: only the slots from start to stop."""

    store: Store
    mix: Mix
    walks: tuple[Epochs | ByClass, ...]
    start: int
    stop: int
    images: int

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        slots = []
        for task, nth in itertools.islice(self.mix.of(step), self.start, self.stop):
            positions = np.arange(nth * self.images, (nth + 1) * self.images)
            slots.append((task, self.walks[task](positions)))
        return read_batch(self.store, self.mix.tasks, slots, self.images)
