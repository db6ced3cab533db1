"""One function of many items on all cores: in order, and no more in memory than a few at a time."""

import collections
import concurrent.futures
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK = 8  # items that are handed over at once
AHEAD = 4  # chunks a core that are worked on, or done and not yet taken
# A process costs half a second to start. Threads cost nothing, but take turns wherever Python is
# at work and not a library: with images of 256 x 256, a third to a half of the time.
WORTH_PROCESSES = 2000  # items


def cores() -> int:
    """Cores that this process may use; taskset, Slurm and containers may keep some from it."""
    import joblib  # here, because it takes a third of a second, which workers need not wait for

    return joblib.cpu_count()


def all_cores(items: int) -> concurrent.futures.Executor:
    """A worker for each core: threads for few items, processes for many."""
    workers = cores()
    if workers == 1 or items < WORTH_PROCESSES:
        return concurrent.futures.ThreadPoolExecutor(workers)
    context = multiprocessing.get_context("spawn")  # JAX does not survive a fork
    return concurrent.futures.ProcessPoolExecutor(workers, context, _begin)


def map_ahead(
    pool: concurrent.futures.Executor, function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Result]:
    """Maps in order, a bounded number of items ahead of who takes the results.

    Args:
        pool: of all_cores. For processes, the function and its items have to be picklable.
        function: of one item.
        items: are taken as they are needed.
    """
    items = iter(items)
    chunks = iter(lambda: list(itertools.islice(items, CHUNK)), [])
    submitted = (pool.submit(_each, function, chunk) for chunk in chunks)
    ahead = collections.deque(itertools.islice(submitted, AHEAD * cores()))
    while ahead:
        results = ahead.popleft().result()
        ahead.extend(itertools.islice(submitted, 1))
        yield from results


def end_with_parent() -> None:
    """Makes this worker process end when its parent dies, which may not have time to say so."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _each(function: Callable[[Item], Result], chunk: list[Item]) -> list[Result]:
    return [function(item) for item in chunk]


def _begin() -> None:
    import cv2  # here, because pipeline.py's workers do without

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    end_with_parent()
    cv2.setNumThreads(1)  # each core has its process
