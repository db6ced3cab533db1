"""Stopping early: on SIGTERM or Ctrl-C, after the same step in all processes of a run."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

# What the process ends with when a signal stopped it after saving: run it again to go on
# (EX_TEMPFAIL of sysexits.h).
EXIT_TERMINATED = 75


@contextlib.contextmanager
def told_to_stop() -> Iterator[Callable[[int], str]]:
    """Takes SIGTERM and Ctrl-C, which then do not end the process.

    Yields:
        step -> the signal after which training ends with this step, or "". Asked once a step, by
        all processes. A process that is told asks the others by JAX's coordination service, of
        which jax.distributed runs a thread: none waits for the device, nor for another process
        unless one was told.
    """
    came: list[str] = []
    alone = jax.process_count() == 1

    def note(number: int, _: Any) -> None:
        came.append(signal.Signals(number).name)
        if number == signal.SIGINT:  # who presses again does not want to wait
            signal.signal(number, signal.default_int_handler)
            if not alone:
                signal.raise_signal(signal.SIGTERM)

    def of_one(step: int) -> str:
        del step
        return came[0] if came else ""

    def of_all(step: int) -> str:
        stopping = multihost_utils.reached_preemption_sync_point(step)
        return (came or ["SIGTERM"])[0] if stopping else ""

    # With several processes SIGTERM is taken by jax.distributed, which tells the others.
    taken = (signal.SIGTERM, signal.SIGINT) if alone else (signal.SIGINT,)
    before = {number: signal.getsignal(number) for number in taken}
    for number in before:
        signal.signal(number, note)
    try:
        yield of_one if alone else of_all
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
