"""A thread that tells where a run hangs when no step has ended for long."""

import collections
import faulthandler
import os
import pathlib
import statistics
import sys
import threading
import time

from usfm.training.stop import EXIT_TERMINATED

# Without a limit of the user's: so many median steps, and at least so many seconds.
STEPS, SECONDS = 30, 300.0
FEWEST = 3  # steps whose median says something


class Watchdog:
    """Dumps the stacks of all threads when no step ends for too long; a context manager.

    Args:
        file: that the stacks are appended to; they go to stderr too.
        seconds: without the end of a step; 0 = 30 median steps, at least five minutes.
        exits: whether the process is then ended, with EXIT_TERMINATED, to be started again.
    """

    def __init__(self, file: pathlib.Path, seconds: float = 0.0, *, exits: bool = False):
        self._file, self._seconds, self._exits = file, seconds, exits
        self._took: collections.deque[float] = collections.deque(maxlen=100)
        self._last = time.monotonic()
        self._told = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._last = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def step(self) -> None:
        """Says that a step has ended."""
        now = time.monotonic()
        self._took.append(now - self._last)
        self._last, self._told = now, False

    def limit(self) -> float:
        """Seconds that the next step may take; infinite before enough is known."""
        if self._seconds:
            return self._seconds
        took = list(self._took)
        if len(took) < FEWEST:
            return float("inf")
        return max(SECONDS, STEPS * statistics.median(took))

    def _watch(self) -> None:
        while not self._over.wait(min(self.limit() / 10, SECONDS / 10)):
            silent = time.monotonic() - self._last
            if silent > self.limit() and not self._told:
                self._told = True
                self._tell(silent)
                if self._exits:
                    os._exit(EXIT_TERMINATED)

    def _tell(self, silent: float) -> None:
        stderr = sys.__stderr__ or sys.stderr  # other processes than the first have theirs silenced
        print(
            f"no step has ended for {silent:.0f} s: where every thread is follows, and is in "
            f"{self._file}",
            file=stderr,
            flush=True,
        )
        faulthandler.dump_traceback(stderr, all_threads=True)
        with self._file.open("a") as file:
            file.write(f"{time.ctime()}: no step has ended for {silent:.0f} s\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
