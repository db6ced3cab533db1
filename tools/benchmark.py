"""Times parts of usfm, one JSON line a measurement.

python tools/benchmark.py NAME ...

A line holds name, value, unit, peer (what it is compared with, or null), ratio (to that peer) and
conditions. Names: step.
"""

import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import numpy as np
from ml_collections import ConfigDict

from usfm import config as usfm_config
from usfm.data.phantoms.catalogue import PHANTOMS
from usfm.data.slots import slots_per_type, type_slices
from usfm.tasks import Task
from usfm.training import optimizer as optimizers
from usfm.training import sharding
from usfm.training.state import create
from usfm.training.step import make_step
from usfm.training.train import make_model

ROUNDS = 7
STEPS = 5  # of a round

Line = dict[str, object]


def step() -> Iterator[Line]:
    """Images a second of the whole compiled step, by how task gradients are combined."""
    config = usfm_config.debug(usfm_config.base())
    tasks = tuple(PHANTOMS[id].task for id in sorted(PHANTOMS))
    mesh = sharding.make_mesh(config.mesh)
    batch = sharding.place_batch(_random_batch(config, tasks), mesh)
    plain, pcgrad = "step/tiny/plain", "step/tiny/stack/pcgrad"
    rounds = {
        plain: _stepper(config, "sum", tasks, mesh, batch),
        pcgrad: _stepper(config, "pcgrad", tasks, mesh, batch),
    }
    seconds = _alternating(rounds)
    images = batch["valid"].size
    conditions = _conditions() | {
        "tasks": len(tasks),
        "slots": config.train.slots,
        "examples_per_slot": config.train.examples_per_slot,
        "image_size": config.data.image_size,
        "dtype": config.model.dtype,
    }
    for name, of_name in seconds.items():
        ratios = [ours / theirs for ours, theirs in zip(of_name, seconds[plain], strict=True)]
        yield {
            "name": name,
            "value": round(images / statistics.median(of_name), 2),
            "unit": "images/s",
            "peer": None if name == plain else plain,
            "ratio": None if name == plain else round(statistics.median(ratios), 3),
            "conditions": conditions,
        }


def _stepper(
    config: ConfigDict,
    method: str,
    tasks: tuple[Task, ...],
    mesh: jax.sharding.Mesh,
    batch: Mapping[str, jax.Array],
) -> Callable[[], None]:
    """A function that makes STEPS training steps and waits for them."""
    config = config.copy_and_resolve_references()
    config.multitask.method = method
    model = make_model(config, tasks)
    optimizer = optimizers.make(config.optimizer, steps=config.train.steps)
    state, abstract = create(model, optimizer, config.train.seed, mesh)
    slots = slots_per_type(tasks, None, config.train.slots)
    make = make_step(model, slots, optimizer, config, abstract)

    def run() -> None:
        nonlocal state
        for _ in range(STEPS):
            state, _ = make(state, batch)
        jax.block_until_ready(state)

    return run


def _alternating(runs: Mapping[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Seconds a step in each of ROUNDS rounds, in which all take their turn after a warm-up."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            seconds[name].append((time.perf_counter() - began) / STEPS)
    return seconds


def _random_batch(config: ConfigDict, tasks: tuple[Task, ...]) -> dict[str, np.ndarray]:
    """A slot batch of noise; slots take the tasks of their type in turn."""
    rng = np.random.default_rng(0)
    size, shape = config.data.image_size, (config.train.slots, config.train.examples_per_slot)
    task = np.zeros(config.train.slots, np.int32)
    for kind, span in type_slices(slots_per_type(tasks, None, config.train.slots)).items():
        task[span] = np.resize([i for i, t in enumerate(tasks) if t.type == kind], task[span].size)
    points = max(t.num_points for t in tasks)
    return {
        "image": rng.integers(0, 256, (*shape, size, size, config.data.channels), np.uint8),
        "task": task,
        "valid": np.ones(shape, bool),
        "row": np.zeros(shape, np.int32),
        "label": rng.integers(0, 2, shape, np.int32),
        "box": np.tile(np.array([0.2, 0.3, 0.6, 0.7], np.float32), (*shape, 1)),
        "points": rng.random((*shape, points, 2), np.float32),
        "points_valid": np.ones((*shape, points), bool),
        "mask": rng.integers(0, 2, (*shape, size, size), np.uint8),
    }


def _conditions() -> Line:
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "rounds": ROUNDS,
        "steps_a_round": STEPS,
    }


BENCHMARKS = {"step": step}


def main(names: list[str]) -> None:
    """Runs the named benchmarks."""
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown or not names:
        sys.exit(f"benchmark: give one or more of {', '.join(BENCHMARKS)}; got {' '.join(names)}")
    for name in names:
        for line in BENCHMARKS[name]():
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
