"""Reads rows of a store, or makes batches of them, on one core: for input.py to time.

Argument: a file with a pickled Store. Says in one line how many rows a turn has; then, for every
line it reads, takes a turn and says its seconds and CPU seconds: all take the same rows,

- read: with ArrayRecord alone, one after the other, each dropped at once;
- read_slots: likewise, the rows of a slot with one call;
- read_first: as the store reads a row for the first time, when it is checked and its arrays found;
- pipeline: as batches, through all that training reads them by.

On "memory" it makes the batches in a worker process, and says the peak of its resident set in MiB.
"""

import contextlib
import itertools
import os
import pathlib
import pickle
import resource
import sys
import time

import numpy as np
from absl import flags
from array_record.python.array_record_module import ArrayRecordReader

from usfm.data.mixing import Mix
from usfm.data.pipeline import iterate, slot_batches
from usfm.data.shard_reader import READER, ShardReader
from usfm.data.store import stored_arrays

SLOTS, EXAMPLES, STEPS = 32, 4, 20
ROWS = SLOTS * EXAMPLES * STEPS


def main(file: str) -> None:
    """Takes a turn for every line of its input."""
    if hasattr(os, "sched_setaffinity"):  # on Linux
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    flags.FLAGS.mark_as_parsed()  # grain hands them to its workers
    store = pickle.loads(pathlib.Path(file).read_bytes())
    indices = {task.id: np.arange(store.num_rows(task.id)) for task in store.tasks}
    mix = Mix(store.tasks, SLOTS)
    batches = slot_batches(store, mix, indices, examples_per_slot=EXAMPLES, seed=0)
    slots = []
    with contextlib.closing(iterate(batches, 0, 0)) as stream:
        for batch in itertools.islice(stream, STEPS):
            for task, rows in zip(batch["task"].tolist(), batch["row"].tolist(), strict=True):
                slots.append((store.tasks[task].id, rows))
    readers = {
        task.id: [(ArrayRecordReader(path, **READER), rows) for path, rows in store.shards[task.id]]
        for task in store.tasks
    }

    def located(task_id: str, index: int) -> tuple[ArrayRecordReader, int]:
        for reader, rows in readers[task_id]:
            if index < rows:
                return reader, index
            index -= rows
        raise IndexError(index)

    alone = [located(task_id, row) for task_id, rows in slots for row in rows]
    together = []  # by slot and file
    for start in range(0, len(alone), EXAMPLES):
        by_reader: dict[ArrayRecordReader, list[int]] = {}
        for reader, row in alone[start : start + EXAMPLES]:
            by_reader.setdefault(reader, []).append(row)
        together += by_reader.items()

    def read() -> None:
        for reader, row in alone:
            reader.read([row])

    def read_slots() -> None:
        for reader, rows in together:
            reader.read(rows)

    def read_first() -> None:
        rows = 0
        while rows < ROWS:
            for task in store.tasks:
                arrays = stored_arrays(task, store.image_size, store.channels)
                out = {name: np.empty(*of) for name, of in arrays.items()}
                sizes = {name: array.nbytes for name, array in out.items()}
                buffers = {name: array.data.cast("B") for name, array in out.items()}
                for file, of_file in store.shards[task.id]:
                    reader = ShardReader(file, sizes)
                    for row in range(min(of_file, ROWS - rows)):
                        reader.read(row, buffers)
                        rows += 1

    def pipeline(workers: int = 0) -> None:
        with contextlib.closing(iterate(batches, 0, workers)) as stream:
            for _ in itertools.islice(stream, STEPS):
                pass

    turns = {"read": read, "read_slots": read_slots, "read_first": read_first, "pipeline": pipeline}
    print(ROWS, flush=True)
    for line in sys.stdin:
        if line.strip() == "memory":
            pipeline(workers=1)
            print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, flush=True)
            continue
        wall, cpu = time.perf_counter(), time.process_time()
        turns[line.strip()]()
        print(time.perf_counter() - wall, time.process_time() - cpu, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
