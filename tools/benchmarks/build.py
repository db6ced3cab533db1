"""benchmark build: building the store of a folder on one core, on two and on all.

Every build starts its own processes, as a first run does; the images lie in the page cache.
"""

import contextlib
import dataclasses
import os
import pathlib
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator

from tools.benchmarks import timing
from tools.benchmarks.timing import Line
from tools.benchmarks.worker import Worker, started
from usfm.data.builder import open_store
from usfm.data.folder import read_folder
from usfm.data.parallel import cores
from usfm.data.phantoms import write_planted

IMAGES = 200  # of the largest phantom task
REPEATS = 8  # of each row: so that a build takes some times as long as processes take to start
SIZE = 256  # pixels a side of stored images


def measure() -> Iterator[Line]:
    """Rows a second of a build by its cores, and how much faster that is than on one."""
    numbers = sorted({1, min(2, cores()), cores()})
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        root = pathlib.Path(folder) / "phantoms"
        write_planted(root, rows=IMAGES)
        workers = {number: stack.enter_context(_worker(root, number)) for number in numbers}
        taken: dict[int, list[tuple[float, float]]] = {number: [] for number in numbers}
        for _ in range(timing.ROUNDS):
            for number, worker in workers.items():
                seconds, cpu_seconds = map(float, worker.run().split())
                taken[number].append((seconds, cpu_seconds))
        rows = int(workers[1].about)
    walls = {number: [wall for wall, _ in of_number] for number, of_number in taken.items()}
    for number in numbers:
        times = timing.ratio(walls[1], walls[number])
        yield {
            "name": f"build/{number}_core{'s' if number > 1 else ''}",
            "value": round(rows / statistics.median(walls[number]), 1),
            "unit": "rows/s",
            "peer": "build/1_core" if number > 1 else None,
            "ratio": times if number > 1 else None,
            "conditions": timing.conditions() | {
                "rows": rows,
                "image_size": SIZE,
                "share_of_linear": round(times / number, 3),
                "cpu_seconds": round(statistics.median(cpu for _, cpu in taken[number]), 2),
            },
        }  # fmt: skip


def _worker(root: pathlib.Path, number: int) -> contextlib.AbstractContextManager[Worker]:
    # Not -m: the processes that build would import this module again, and JAX with it.
    program = "import sys; from tools.benchmarks.build import work; work(*sys.argv[1:])"
    return started(sys.executable, "-c", program, str(root), str(number), str(REPEATS))


def work(root: str, number: str, repeats: str) -> None:
    """A worker: says how many rows there are, then builds their store for every line of input."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(number)])
    folder = read_folder(root)
    rows = {
        task: tuple(
            dataclasses.replace(row, index=i) for i, row in enumerate(int(repeats) * of_task)
        )
        for task, of_task in folder.rows.items()
    }
    folder = dataclasses.replace(folder, rows=rows)
    print(sum(map(len, rows.values())), flush=True)
    for _ in sys.stdin:
        with tempfile.TemporaryDirectory() as cache:
            began = time.perf_counter(), _cpu_seconds()
            open_store(folder, (SIZE, SIZE), 1, cache)
            print(time.perf_counter() - began[0], _cpu_seconds() - began[1], flush=True)


def _cpu_seconds() -> float:
    """Of this process and those that it started and that have ended, in user and system mode."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
