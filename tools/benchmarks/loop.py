"""benchmark step, continued: what the training loop adds to the bare executable of a step."""

import dataclasses
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from tools.benchmarks import timing
from tools.benchmarks.timing import Line, conditions
from usfm import config as usfm_config
from usfm.data.folder import read_folder
from usfm.data.phantoms import write_folder
from usfm.data.source import open_splits, open_store
from usfm.training import memory, sharding
from usfm.training.inputs import inputs_of
from usfm.training.program import make_program
from usfm.training.train import train

ROWS = 20  # of a phantom task


@dataclasses.dataclass(frozen=True)
class Case:
    """What is trained: in `tiny` so short a step that a millisecond beside it is seen."""

    steps: int  # of a round
    fields: dict[str, Any]


CASES = {
    "tiny": Case(
        60, {"data.image_size": 32, "train.slots": 4, "train.examples_per_slot": 1, "tasks":
             "breast_2cls,breast_lesion,thyroid_nodule_det,fetal_femur"},
    ),
    "vits16": Case(
        6, {"model.variant": "vits16", "data.image_size": 224, "train.slots": 8,
            "train.examples_per_slot": 1},
    ),
}  # fmt: skip


def measure() -> Iterator[Line]:
    """Milliseconds that an iteration of the loop takes beyond its step, and its images a second."""
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch) / "phantoms"
        write_folder(root, rows=ROWS)
        for name, case in CASES.items():
            config = usfm_config.debug(usfm_config.base())
            config.update_from_flattened_dict(
                {"data.root": str(root), "data.cache_dir": scratch, "train.steps": case.steps + 1,
                 "train.log_every": case.steps + 1, "checkpoint.every_steps": case.steps + 1}
                | case.fields
            )  # fmt: skip
            yield from _case(name, case, config, pathlib.Path(scratch))


def _case(name: str, case: Case, config: ConfigDict, scratch: pathlib.Path) -> Iterator[Line]:
    folder = read_folder(config.data.root, tasks=config.tasks, cache_dir=scratch)
    splits, store = open_splits(config, folder), open_store(config, folder)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "expert": 1}, jax.devices()[:1])
    jax.set_mesh(mesh)
    inputs = inputs_of(config, folder, splits, store)
    program = make_program(config, folder.tasks, inputs.mix.slots, mesh)
    own = sharding.place_everywhere(inputs.own, mesh)
    step = memory.compile_step(program.step, program, config, own, mesh)
    read = [inputs.batches[number] for number in range(case.steps + 1)]
    # Those that the loop will see: how long a step takes depends a little on what is in them.
    first, *others = [sharding.place_batch(batch, mesh) for batch in read if batch is not None]

    def bare() -> float:
        """Seconds of a step, of many on batches that are there."""
        state, _ = step(program.start(own.seed), first, own)
        jax.block_until_ready(state)
        began = time.perf_counter()
        for batch in others:
            state, _ = step(state, batch, own)
        jax.block_until_ready(state)
        return (time.perf_counter() - began) / case.steps

    def loop() -> float:
        """Seconds of an iteration of the real loop, by what it writes at its first and last."""
        with tempfile.TemporaryDirectory(dir=scratch) as workdir:
            train(config, pathlib.Path(workdir), folder, splits, store=store,
                  program_of=lambda *_: program)  # fmt: skip
            lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
        begin, end = (json.loads(line) for line in (lines[0], lines[-1]))
        return (end["seconds"] - begin["seconds"]) / (end["step"] - begin["step"])

    seconds: dict[str, list[float]] = {"bare": [], "loop": []}
    for number in range(1 + timing.ROUNDS):  # the first warms up
        for what, run in (("bare", bare), ("loop", loop)):
            taken = run()
            if number:
                seconds[what].append(taken)
    stated = conditions() | {"steps_a_round": case.steps, "images": first["valid"].size,
                             "image_size": config.data.image_size}  # fmt: skip
    more = statistics.median(np.subtract(seconds["loop"], seconds["bare"]))
    of_bare = statistics.median(np.divide(seconds["bare"], seconds["loop"]))
    rate = {what: first["valid"].size / statistics.median(of) for what, of in seconds.items()}
    bare_name = f"step/{name}/bare"
    yield _line(bare_name, round(rate["bare"], 2), "images/s", None, None, stated)
    yield _line(f"step/{name}/loop", round(rate["loop"], 2), "images/s", bare_name,
                round(float(of_bare), 3), stated)  # fmt: skip
    more_ms = round(1e3 * float(more), 3)
    yield _line(f"step/{name}/loop/more", more_ms, "ms", bare_name, None, stated)


def _line(
    name: str, value: float, unit: str, peer: str | None, ratio: float | None, stated: Line
) -> Line:
    return {"name": name, "value": value, "unit": unit, "peer": peer, "ratio": ratio,
            "conditions": stated}  # fmt: skip
