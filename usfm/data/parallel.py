"""Workers for all cores."""

import concurrent.futures
import multiprocessing
import os
import signal
import threading

# A process costs half a second to start. Threads cost nothing, but take turns wherever Python is
# at work and not a library: with images of 256 x 256, half of the time.
WORTH_PROCESSES = 2000  # items


def cores() -> int:
    """Cores that this process may use; taskset, Slurm and containers may keep some from it."""
    import joblib  # here, because it takes a third of a second, which workers need not wait for

    return joblib.cpu_count()


def all_cores(items: int) -> concurrent.futures.Executor:
    """A worker for each core: threads for few items (files or rows), processes for many.

    What processes are handed, and give back, has to be picklable, and should be small.
    """
    if cores() == 1 or items < WORTH_PROCESSES:
        return concurrent.futures.ThreadPoolExecutor(cores())
    context = multiprocessing.get_context("spawn")  # JAX does not survive a fork
    return concurrent.futures.ProcessPoolExecutor(cores(), context, _begin)


def end_with_parent() -> None:
    """Makes this worker process end when its parent dies, which may not have time to say so."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _begin() -> None:
    import cv2  # here, because pipeline.py's workers do without

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it in silence
    end_with_parent()
    cv2.setNumThreads(1)  # each core has its process
