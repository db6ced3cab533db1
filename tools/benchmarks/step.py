"""benchmark step: the whole compiled step, by how task gradients are made."""

import statistics
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from ml_collections import ConfigDict

from tools.benchmarks import loop
from tools.benchmarks.timing import Line, alternating, conditions, ratio
from usfm import config as usfm_config
from usfm.data.phantoms.catalogue import PHANTOMS
from usfm.data.slots import slots_per_type, type_slices
from usfm.tasks import Task
from usfm.training import sharding
from usfm.training.program import make_program
from usfm.training.step import Own

STEPS = 5  # of a round


def measure() -> Iterator[Line]:
    """The whole compiled step, by how task gradients are made; then the loop around it."""
    config = usfm_config.debug(usfm_config.base())
    tasks = tuple(PHANTOMS[id].task for id in sorted(PHANTOMS))
    mesh = sharding.make_mesh(config.mesh)
    batch = sharding.place_batch(_random_batch(config, tasks), mesh)
    plain = "step/tiny/plain"
    rounds = {plain: _stepper(config, "sum", "plain", tasks, mesh, batch)} | {
        f"step/tiny/{engine}/pcgrad": _stepper(config, "pcgrad", engine, tasks, mesh, batch)
        for engine in ("stack", "stack_map")
    }
    seconds = alternating(rounds)
    images = batch["valid"].size
    stated = conditions() | {
        "steps_a_round": STEPS,
        "tasks": len(tasks),
        "slots": config.train.slots,
        "examples_per_slot": config.train.examples_per_slot,
        "image_size": config.data.image_size,
        "dtype": config.model.dtype,
    }
    for name, of_name in seconds.items():
        yield {
            "name": name,
            "value": round(images * STEPS / statistics.median(of_name), 2),
            "unit": "images/s",
            "peer": None if name == plain else plain,
            "ratio": None if name == plain else ratio(of_name, seconds[plain]),
            "conditions": stated,
        }
    yield from loop.measure()


def _stepper(
    config: ConfigDict,
    method: str,
    engine: str,
    tasks: tuple[Task, ...],
    mesh: jax.sharding.Mesh,
    batch: Mapping[str, jax.Array],
) -> Callable[[], None]:
    """A function that makes STEPS training steps and waits for them."""
    config = config.copy_and_resolve_references()
    config.multitask.method, config.multitask.engine = method, engine
    slots = slots_per_type(tasks, None, config.train.slots)
    program = make_program(config, tasks, slots, mesh)
    own = Own(np.uint32(config.train.seed))
    state = program.start(own.seed)

    def run() -> None:
        nonlocal state
        for _ in range(STEPS):
            state, _ = program.step(state, batch, own)
        jax.block_until_ready(state)

    return run


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
