"""Several small runs of one program at once, stacked by vmap: what fills an accelerator.

What differs between them, their seeds and rows, is data of the program, so that a stacked run
learns what it would learn alone.
"""

import contextlib
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from usfm import config as usfm_config
from usfm.data.folder import Folder
from usfm.data.pipeline import iterate
from usfm.data.splits import Splits
from usfm.data.store import Store
from usfm.training.checkpoint import Checkpoints, tasks_to_meta
from usfm.training.inputs import inputs_of
from usfm.training.logs import Log
from usfm.training.method import RECORDED
from usfm.training.program import Program
from usfm.training.record import Record
from usfm.training.writers import JsonLines


def train_together(
    configs: Sequence[ConfigDict],
    workdirs: Sequence[pathlib.Path],
    folders: Sequence[Folder],
    splits: Splits,
    *,
    store: Store,
    program: Program,
) -> None:
    """Trains new runs of tasks of equal shapes from their first step to their last.

    Args:
        configs: of the runs, alike but for train.seed and what chooses tasks and rows.
        workdirs: of the runs, without checkpoints; each gets what `train` leaves there.
        folders: whose rows each is trained on.
        splits: of these folders.
        store: of a folder with all of these tasks.
        program: of all of them, on a mesh of one device.

    Raises:
        NonFiniteError: of a run; the others have then not ended either.
    """
    steps = configs[0].train.steps
    inputs = [
        inputs_of(config, folder, splits, store)
        for config, folder in zip(configs, folders, strict=True)
    ]
    own = jax.tree.map(jnp.asarray, _stack([of_run.own for of_run in inputs]))
    stacked = {
        step: jax.jit(jax.vmap(step), donate_argnums=0)
        for step in (program.step, program.recorded_step)
    }
    starts = [program.start(seed) for seed in own.seed]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    del starts
    with contextlib.ExitStack() as stack:
        streams, logs, records, checkpoints = [], [], [], []
        for config, workdir, folder, of_run in zip(configs, workdirs, folders, inputs, strict=True):
            ids = [task.id for task in folder.tasks]
            usfm_config.write(config, workdir / "config.json")
            stream = iterate(of_run.batches, 0, config.data.workers)
            stack.callback(stream.close)
            streams.append(stream)
            every, writers = config.train.log_every, [JsonLines(workdir / "metrics.jsonl", 0)]
            log = Log(writers, folder.tasks, start=0, steps=steps, every=every)
            logs.append(stack.enter_context(log))
            records.append(Record(workdir / "gramians", ids, RECORDED, 0))
            checkpoints.append(
                stack.enter_context(Checkpoints(workdir / "checkpoints", config.checkpoint.keep))
            )
        for done in range(1, steps + 1):
            began = time.perf_counter()
            batch = _stack([next(stream) for stream in streams])
            waited = time.perf_counter() - began
            state, metrics = stacked[program.step_at(done)](state, batch, own)
            images = batch["valid"][0].size
            for place, (log, record) in enumerate(zip(logs, records, strict=True)):
                of_run = _one(metrics, place)
                log.add(done, of_run, images, waited)
                record.add(done, of_run)
        for place, (log, record) in enumerate(zip(logs, records, strict=True)):
            log.flush()
            record.write(steps)
            checkpoints[place].save(steps, _one(state, place), tasks_to_meta(folders[place].tasks))


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _one(tree: Mapping[str, Any] | Any, place: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[place], tree)
