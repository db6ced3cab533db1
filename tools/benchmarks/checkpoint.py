"""benchmark checkpoint: how long the training loop waits for a save, and the disk takes."""

import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator

import jax
import numpy as np

from tools.benchmarks.timing import Line, conditions
from usfm import config as usfm_config
from usfm.data.phantoms.catalogue import PHANTOMS
from usfm.training import sharding
from usfm.training.checkpoint import Checkpoints, tasks_to_meta
from usfm.training.program import make_program

STEP = 1.0  # seconds that a step takes
EVERY = 50  # steps from save to save
SAVES = 3


def measure() -> Iterator[Line]:
    """The share of the time in which the loop of a ViT-S is held up by saving."""
    config = usfm_config.base()
    tasks = tuple(PHANTOMS[id].task for id in sorted(PHANTOMS))
    mesh = sharding.make_mesh(config.mesh)
    program = make_program(config, tasks, {}, mesh)
    state = jax.block_until_ready(program.start(np.uint32(0)))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    held_up = []
    with (
        tempfile.TemporaryDirectory() as directory,
        Checkpoints(pathlib.Path(directory) / "checkpoints", keep=2) as checkpoints,
    ):
        began = time.perf_counter()
        for step in range(1, SAVES * EVERY + 1):
            time.sleep(STEP)  # as the loop waits for the device, which needs no core
            if step % EVERY == 0:
                before = time.perf_counter()
                checkpoints.save(step, state, tasks_to_meta(tasks))
                held_up.append(time.perf_counter() - before)
        elapsed = time.perf_counter() - began
        before = time.perf_counter()
        checkpoints.wait()
        written = time.perf_counter() - before + held_up[-1]
        before = time.perf_counter()
        jax.block_until_ready(checkpoints.restore(SAVES * EVERY, program.abstract))
        restored = time.perf_counter() - before
    stated = conditions() | {
        "rounds": SAVES,
        "model": config.model.variant,
        "tasks": len(tasks),
        "state_mb": round(size / 2**20),
        "step_seconds": STEP,
        "every_steps": EVERY,
    }
    for name, value, unit in (
        ("checkpoint/vits16/blocked", round(sum(held_up) / elapsed, 5), "share of the wall time"),
        ("checkpoint/vits16/save", round(statistics.median(held_up), 3), "s that the loop waits"),
        ("checkpoint/vits16/write", round(written, 2), "s until it is on disk"),
        ("checkpoint/vits16/restore", round(restored, 2), "s"),
    ):
        yield {"name": name, "value": value, "unit": unit, "peer": None, "ratio": None,
               "conditions": stated}  # fmt: skip
