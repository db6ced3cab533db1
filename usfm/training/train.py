"""The training loop, from a config to the last checkpoint. Read it top to bottom."""

import contextlib
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from usfm import config as usfm_config
from usfm import processes
from usfm.data.folder import Folder
from usfm.data.pipeline import iterate
from usfm.data.source import say
from usfm.data.splits import Splits
from usfm.data.store import Store
from usfm.errors import UserError
from usfm.evaluation.selection import comparable
from usfm.models.functional import Params
from usfm.tasks import Task
from usfm.training import sharding, utilisation
from usfm.training.checkpoint import Checkpoints, directory_of
from usfm.training.freeze import frozen, trained
from usfm.training.inputs import Inputs, inputs_of
from usfm.training.logs import Log, NonFiniteError
from usfm.training.memory import abstract_batch, compile_steps
from usfm.training.method import RECORDED, weighting_of
from usfm.training.program import Program, make_program
from usfm.training.record import Record
from usfm.training.start import (
    check_same_directory,
    check_same_run,
    describe,
    resumed,
    source_of,
)
from usfm.training.state import TrainState, evaluated_params, started_from
from usfm.training.step import Own, Step
from usfm.training.stop import EXIT_TERMINATED, told_to_stop
from usfm.training.watch import Watch
from usfm.training.writers import writers_of

PROBE_STEPS = 10


def train(
    config: ConfigDict,
    workdir: pathlib.Path,
    folder: Folder,
    splits: Splits,
    *,
    store: Store | None = None,
    program_of: Callable[..., Program] = make_program,
    score: Callable[[Params], float] | None = None,
) -> Params:
    """Trains to the last step, going on from the newest checkpoint of the workdir.

    Args:
        config: checked; workdir/config.json is written from it, with the number of steps that
            train.seconds came to.
        workdir: of the run.
        folder: whose rows to train on. Its images are read only if the store is still to be built.
        splits: of that folder.
        store: of that folder, or of one with more tasks; None = it is opened.
        program_of: makes the program, or finds one that runs of equal shapes share.
        score: what checkpoint.best_metric is with the parameters that would be evaluated, NaN where
            it has no value. Asked at every checkpoint; None = nothing is scored.

    Returns:
        The parameters to evaluate.

    Raises:
        NonFiniteError: a loss or gradient was not finite, and train.on_nonfinite is "stop".
        SystemExit: SIGTERM or Ctrl-C came; all is saved.
        UserError: among others, at the end, that something could not be saved.
    """
    # ---- Devices and data ----
    weighting_of(config.multitask, folder.tasks)  # what is wrong there is said before all work
    mesh = sharding.make_mesh(config.mesh)
    jax.set_mesh(mesh)
    sharding.check_slots(config.train.slots, mesh)
    inputs = processes.in_turn(lambda: inputs_of(config, folder, splits, store))
    own = sharding.place_everywhere(inputs.own, mesh)
    for line in inputs.shares():
        say(line)

    # ---- Model, step and state ----
    directory = directory_of(config, workdir)
    with Checkpoints(
        directory,
        config.checkpoint.keep,
        every=config.checkpoint.keep_every,
        metric=config.checkpoint.best_metric,
    ) as checkpoints:
        newest = checkpoints.latest()
        if newest is not None:
            check_same_run(config, folder.tasks, checkpoints.meta(newest))
        else:
            check_same_directory(config, workdir)
        source = source_of(config, folder.tasks) if newest is None else None
        config = _with_steps(config, workdir, folder.tasks, inputs, own, mesh)
        steps = config.train.steps
        program = program_of(config, folder.tasks, inputs.mix.slots, mesh)
        model, abstract, params = program.model, program.abstract, program.abstract.params
        say(sharding.table(params, mesh))
        say(trained(params, frozen(params, config.optimizer.freeze, model.layers)))
        start = newest or 0
        # Before anything is begun: what does not fit is said here.
        compiled = compile_steps(program, config, own, mesh) if start < steps else {}
        state = program.start(own.seed)
        if newest is not None:
            state = resumed(checkpoints, newest, config, program, state)
            say(f"going on from step {start} of {steps}")
        elif source is not None:
            state = started_from(state, abstract, source(model, state.params), model, config)
        del source  # and the arrays that it holds
        if processes.is_first():
            usfm_config.write(config, workdir / "config.json")

        # ---- The loop ----
        meta = describe(config, folder.tasks)
        log = Log(
            writers_of(config, workdir, start),
            folder.tasks,
            start=start,
            steps=steps,
            every=config.train.log_every,
            ideal_seconds=_ideal_seconds(program, config, own, mesh),
        )
        watch = Watch(config.watch, workdir, start)
        record = Record(
            workdir / "gramians",
            [task.id for task in folder.tasks],
            RECORDED,
            start,
        )
        stopping, batches = told_to_stop(), _closing(inputs.batches, start, config)
        with log, watch, stopping as stop, batches as stream:
            for done in range(start + 1, steps + 1):
                began = time.perf_counter()
                batch = next(stream)
                waited = time.perf_counter() - began
                images = batch["valid"].size * jax.process_count()
                step = compiled[program.step_at(done)]
                with watch.step(done, waited):
                    state, metrics = step(state, sharding.place_batch(batch, mesh), own)
                del batch  # An exception would keep it, and the memory it shares with a worker.
                told = stop(done)  # asked once, for a signal comes at any moment
                last = bool(told) or done == steps
                try:
                    log.add(done, metrics, images, waited)
                    record.add(done, metrics)
                    if done % config.checkpoint.every_steps == 0 or last:
                        log.flush()  # What is saved is known to be finite.
                        scored = math.nan
                        if score is not None and not told:
                            with watch.aside("evaluation"):
                                value = score(evaluated_params(state.params, state.ema))
                            log.note(done, {f"val/{config.checkpoint.best_metric}": value})
                            scored = comparable(config.checkpoint.best_metric, value)
                        with watch.aside("checkpoint"):
                            record.write(done)
                            checkpoints.save(done, state, meta, scored, last=last)
                except NonFiniteError as error:
                    raise _explained(error, checkpoints, directory) from None
                if told:
                    say(f"{told}: step {done} is saved; run the same command again to go on")
                    raise SystemExit(EXIT_TERMINATED)
    if processes.is_first() and not (workdir / "config.json").exists():
        # The workdir was deleted meanwhile: what is saved since is of no use without its config.
        usfm_config.write(config, workdir / "config.json")
    if lost := [text for text in (log.unsaved(), record.unsaved()) if text]:
        raise UserError(f"not all is saved: {'; '.join(lost)}; the model is")
    say(inputs.drawn(steps, config.train.examples_per_slot))
    return evaluated_params(state.params, state.ema)


def _ideal_seconds(
    program: Program, config: ConfigDict, own: Own, mesh: jax.sharding.Mesh
) -> float | None:
    """What a step would take at the devices' peak; None where that is not known."""
    rate = utilisation.peak(mesh.devices.flat[0].device_kind)
    if rate is None:
        return None
    batch = abstract_batch(program, config, mesh)
    traced = jax.make_jaxpr(program.step)(program.abstract, batch, own)
    return utilisation.flops(traced) / (rate * mesh.size)


def _with_steps(
    config: ConfigDict,
    workdir: pathlib.Path,
    tasks: tuple[Task, ...],
    inputs: Inputs,
    own: Own,
    mesh: jax.sharding.Mesh,
) -> ConfigDict:
    """Turns train.seconds into train.steps: as before when the run goes on, else by a probe.

    The probe compiles the dearest step of the run and times it; what it computes is thrown away.
    """
    if not config.train.seconds:
        return config
    config = config.copy_and_resolve_references()
    if (workdir / "config.json").exists():
        config.train.steps = usfm_config.read(workdir / "config.json").train.steps
        return config
    began = time.perf_counter()
    # The number of steps only shapes the learning rate, not the program.
    config.train.steps = PROBE_STEPS
    program = make_program(config, tasks, inputs.mix.slots, mesh)
    step = compile_steps(program, config, own, mesh)[program.recorded_step]
    compiling = time.perf_counter() - began
    state = program.start(own.seed)
    batch = inputs.batches[0]
    assert batch is not None  # grain allows for filters, and there is none
    copies = _copies(state, PROBE_STEPS + 1)
    seconds = [_timed(step, copy, batch, own, mesh) for copy in copies]
    per_step = statistics.median(seconds[1:])
    # The run will compile again.
    left = config.train.seconds - (time.perf_counter() - began) - compiling
    config.train.steps = processes.agreed(max(1, int(left / per_step)))
    say(
        f"a step takes {per_step:.3f} s: {config.train.steps} steps in "
        f"{config.train.seconds:g} s, of which the probe took {time.perf_counter() - began:.0f}"
    )
    return config


def _copies(state: TrainState, count: int) -> Iterator[TrainState]:
    """Copies that a step may eat; the last one is the state itself."""
    for _ in range(count - 1):
        yield jax.block_until_ready(jax.tree.map(jax.numpy.copy, state))
    yield state


def _timed(
    step: Step,
    state: TrainState,
    batch: Mapping[str, np.ndarray],
    own: Own,
    mesh: jax.sharding.Mesh,
) -> float:
    began = time.perf_counter()
    jax.block_until_ready(step(state, sharding.place_batch(batch, mesh), own))
    return time.perf_counter() - began


@contextlib.contextmanager
def _closing(batches: Any, start: int, config: ConfigDict) -> Iterator[Any]:
    """The batches from a step on; their workers are ended whatever happens."""
    stream = iterate(batches, start, config.data.workers)
    try:
        yield stream
    finally:
        stream.close()


def _explained(
    error: NonFiniteError, checkpoints: Checkpoints, directory: epath.Path
) -> NonFiniteError:
    with contextlib.suppress(UserError):
        checkpoints.wait()
    newest = checkpoints.latest()
    good = "none was saved yet" if newest is None else f"{directory}/{newest}"
    error.args = (
        f"{error.args[0]}; the update was not made. Last good checkpoint: {good}. Go on with "
        "--config.train.on_nonfinite=skip_task, or look at the task's rows, or begin again in "
        "another --workdir with a lower optimizer.learning_rate",
    )
    return error
