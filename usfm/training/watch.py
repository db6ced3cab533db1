"""What looks after a training run while it goes on: watchdog, profile, and the account of time."""

import contextlib
import pathlib
import time
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from usfm.training import goodput
from usfm.training.logs import LAG
from usfm.training.watchdog import Watchdog

# Seconds between lines of goodput.jsonl: as much is not known of what a killed process did.
EVERY = 10.0


class Watch:
    """Use as a context manager around the steps.

    Args:
        config: the section `watch`, checked.
        workdir: of the run.
        start: the step that training goes on from.
    """

    def __init__(self, config: ConfigDict, workdir: pathlib.Path, start: int):
        self._workdir, self._done, self._start = workdir, start, start
        self._profiled, self._tracing = profiled(config.profile), False
        self._aside: dict[str, float] = {}
        stacks = workdir / f"stacks_{jax.process_index()}.txt"
        self._watchdog = Watchdog(stacks, config.hang_seconds, exits=config.on_hang == "exit")

    def __enter__(self) -> "Watch":
        self._watchdog.__enter__()
        self._note("loop", step=self._start)
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.__exit__()
        if self._tracing:
            jax.profiler.stop_trace()
        if self._done > self._start:
            self._account()

    @contextlib.contextmanager
    def step(self, number: int, waited: float) -> Iterator[None]:
        """Around the dispatch of a step, whose batch was waited for so many seconds."""
        if number in self._profiled and not self._tracing:
            jax.profiler.start_trace(self._workdir / "profile")
            self._tracing = True
        # What was dispatched last may be under way for LAG steps more.
        elif self._tracing and number > self._profiled[-1] + LAG:
            jax.profiler.stop_trace()
            self._tracing, self._profiled = False, range(0)
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield
        self._watchdog.step()
        if self._done == self._start:  # the first one waits for its compilation
            self._note("compiled", step=number)
        else:
            self._aside["data_wait"] = self._aside.get("data_wait", 0.0) + waited
        self._done = number
        if time.monotonic() - self._noted > EVERY:
            self._account()

    @contextlib.contextmanager
    def aside(self, what: str) -> Iterator[None]:
        """Around what the steps have to wait for, such as "checkpoint"."""
        began = time.monotonic()
        yield
        self._aside[what] = self._aside.get(what, 0.0) + time.monotonic() - began

    def _account(self) -> None:
        aside = {what: round(seconds, 3) for what, seconds in self._aside.items()}
        self._aside = {}
        self._note("steps", step=self._done, **aside)

    def _note(self, event: str, **values: float) -> None:
        self._noted = time.monotonic()
        goodput.note(self._workdir, event, **values)


def profiled(steps: str) -> range:
    """The steps that watch.profile names, such as '10:13' for 10, 11 and 12.

    Raises:
        ValueError: it is not of that form.
    """
    if not steps:
        return range(0)
    first, last = (int(number) for number in steps.split(":"))
    if not 0 < first < last:
        raise ValueError(f"{steps} names no step")
    return range(first, last)
