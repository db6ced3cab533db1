"""Fair timing on a shared machine: everything takes its turn in every round."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

ROUNDS = 7
WARM_UPS = 3  # The first run compiles; a few more, and the memory that is used again is there.

Line = dict[str, object]  # name, value, unit, peer, ratio, conditions


def alternating(runs: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of each run in each of ROUNDS rounds: all take their turn, after warming up."""
    for run in runs.values():
        for _ in range(WARM_UPS):
            jax.block_until_ready(run())
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median over rounds of ours / theirs, which noise that lasts a round leaves alone."""
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3)


def conditions() -> Line:
    """The machine and its software."""
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "rounds": ROUNDS,
    }
