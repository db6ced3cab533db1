"""The training loop, from a config to the last checkpoint. Read it top to bottom."""

import contextlib
import dataclasses
import pathlib
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from usfm import config as usfm_config
from usfm import processes
from usfm.data.folder import Folder
from usfm.data.pipeline import iterate
from usfm.data.source import say
from usfm.data.splits import Splits
from usfm.data.store import Store
from usfm.errors import UserError
from usfm.models import weights
from usfm.models.dinov3 import VARIANTS
from usfm.models.functional import Params
from usfm.tasks import Task
from usfm.training import sharding, utilisation
from usfm.training.checkpoint import Checkpoints, tasks_from_meta, tasks_to_meta
from usfm.training.freeze import frozen, trained
from usfm.training.inputs import Inputs, inputs_of
from usfm.training.logs import Log, NonFiniteError
from usfm.training.method import RECORDED, weighting_of
from usfm.training.program import Program, make_program
from usfm.training.record import Record
from usfm.training.state import TrainState, evaluated_params, started_from
from usfm.training.step import Own, Step
from usfm.training.watch import Watch
from usfm.training.writers import writers_of

# What the process ends with when a signal stopped it after saving: run it again to go on
# (EX_TEMPFAIL of sysexits.h).
EXIT_TERMINATED = 75
PROBE_STEPS = 10


def pretrained(config: ConfigDict) -> Params | None:
    """The encoder that model.init_from names, NumPy parameters; None where it is empty.

    Raises:
        UserError: it cannot be read, or is not of model.variant.
    """
    path = config.model.init_from
    if not path:
        return None
    found, params = weights.read(path)
    wanted = VARIANTS[config.model.variant]
    # layer_scale is of fresh parameters only.
    if dataclasses.replace(found, layer_scale=wanted.layer_scale) != wanted:
        fits = [name for name, v in VARIANTS.items()
                if dataclasses.replace(found, layer_scale=v.layer_scale) == v]  # fmt: skip
        hint = f"set model.variant={fits[0]}" if fits else "no variant has its sizes"
        raise UserError(
            f"model.init_from={path} is not a {config.model.variant}: it has {found.layers} layers "
            f"of width {found.width}, {found.heads} heads and MLPs of {found.mlp_width}; {hint}"
        )
    return params


def train(
    config: ConfigDict,
    workdir: pathlib.Path,
    folder: Folder,
    splits: Splits,
    *,
    store: Store | None = None,
    program_of: Callable[..., Program] = make_program,
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

    Returns:
        The parameters to evaluate.

    Raises:
        NonFiniteError: a loss or gradient was not finite, and train.on_nonfinite is "stop".
        SystemExit: SIGTERM or Ctrl-C came; all is saved.
    """
    # ---- Devices and data ----
    weighting_of(config.multitask, folder.tasks)  # what is wrong there is said before all work
    mesh = sharding.make_mesh(config.mesh)
    jax.set_mesh(mesh)
    if config.train.slots % sharding.slot_shards(mesh):
        raise UserError(
            f"train.slots={config.train.slots} cannot be shared by {sharding.slot_shards(mesh)} "
            "devices (mesh.data x mesh.fsdp): give a multiple"
        )
    inputs = processes.in_turn(lambda: inputs_of(config, folder, splits, store))
    own = sharding.place_everywhere(inputs.own, mesh)
    for line in inputs.shares():
        say(line)

    # ---- Model, step and state ----
    with Checkpoints(workdir / "checkpoints", config.checkpoint.keep) as checkpoints:
        newest = checkpoints.latest()
        if newest is not None:
            _check_tasks(tasks_from_meta(checkpoints.meta(newest)), folder)
        encoder = pretrained(config) if newest is None else None
        config = _with_steps(config, workdir, folder.tasks, inputs, own, mesh)
        steps = config.train.steps
        program = program_of(config, folder.tasks, inputs.mix.slots, mesh)
        model, abstract, params = program.model, program.abstract, program.abstract.params
        state = program.start(own.seed)
        if processes.is_first():
            usfm_config.write(config, workdir / "config.json")
        say(sharding.table(params, mesh))
        say(trained(params, frozen(params, config.optimizer.freeze, model.layers)))
        start = 0
        if newest is not None:
            state, start = checkpoints.restore(newest, abstract), newest
            say(f"going on from step {start} of {steps}")
        elif encoder is not None:
            state = started_from(state, abstract, encoder, model, config)
            say(f"the encoder starts from {config.model.init_from}")
        del encoder

        # ---- The loop ----
        meta = tasks_to_meta(folder.tasks)
        log = Log(
            writers_of(config, workdir, start),
            folder.tasks,
            start=start,
            steps=steps,
            every=config.train.log_every,
            ideal_seconds=_ideal_seconds(program, inputs, own, mesh),
        )
        watch = Watch(config.watch, workdir, start)
        record = Record(
            workdir / "gramians",
            [task.id for task in folder.tasks],
            RECORDED,
            start,
        )
        stopped, batches = _terminated(), _closing(inputs.batches, start, config)
        with log, watch, stopped as terminated, batches as stream:
            for done in range(start + 1, steps + 1):
                began = time.perf_counter()
                batch = next(stream)
                waited = time.perf_counter() - began
                images = batch["valid"].size * jax.process_count()
                step = program.step_at(done)
                with watch.step(done, waited):
                    state, metrics = step(state, sharding.place_batch(batch, mesh), own)
                del batch  # An exception would keep it, and the memory it shares with a worker.
                stopping = bool(terminated)  # read once, for a signal comes at any moment
                try:
                    log.add(done, metrics, images, waited)
                    record.add(done, metrics)
                    if done % config.checkpoint.every_steps == 0 or done == steps or stopping:
                        log.flush()  # What is saved is known to be finite.
                        with watch.aside("checkpoint"):
                            record.write(done)
                            checkpoints.save(done, state, meta)
                except NonFiniteError as error:
                    raise _explained(error, checkpoints, workdir) from None
                if stopping:
                    checkpoints.wait()
                    name = signal.Signals(terminated[0]).name
                    say(f"{name}: step {done} is saved; run the same command again to go on")
                    raise SystemExit(EXIT_TERMINATED)
    say(inputs.drawn(steps, config.train.examples_per_slot))
    return evaluated_params(state.params, state.ema)


def _ideal_seconds(
    program: Program, inputs: Inputs, own: Own, mesh: jax.sharding.Mesh
) -> float | None:
    """What a step would take at the devices' peak; None where that is not known."""
    rate = utilisation.peak(mesh.devices.flat[0].device_kind)
    if rate is None:
        return None
    batch = inputs.batches[0]
    assert batch is not None  # as in _with_steps
    placed = sharding.place_batch(batch, mesh)
    traced = jax.make_jaxpr(program.step)(program.abstract, placed, own)
    return utilisation.flops(traced) / (rate * mesh.size)


def _check_tasks(begun: tuple[Task, ...], folder: Folder) -> None:
    if begun != folder.tasks:
        before, now = (", ".join(task.id for task in tasks) for tasks in (begun, folder.tasks))
        raise UserError(
            f"the run was begun on the tasks {before}; {folder.place} has {now}, or other ones of "
            "these names: give the folder it was begun with, or another --workdir"
        )


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
    state = program.start(own.seed)
    batch = inputs.batches[0]
    assert batch is not None  # grain allows for filters, and there is none
    copies = _copies(state, PROBE_STEPS + 1)
    seconds = [_timed(program.recorded_step, copy, batch, own, mesh) for copy in copies]
    per_step = statistics.median(seconds[1:])
    # The first one compiles, as the run will again.
    left = config.train.seconds - (time.perf_counter() - began) - seconds[0]
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
def _terminated() -> Iterator[list[int]]:
    """A list that SIGTERM and Ctrl-C are put into, instead of ending the process."""
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, _: Any) -> None:
        came.append(number)
        if number == signal.SIGINT:  # who presses again does not want to wait
            signal.signal(number, signal.default_int_handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _closing(batches: Any, start: int, config: ConfigDict) -> Iterator[Any]:
    """The batches from a step on; their workers are ended whatever happens."""
    stream = iterate(batches, start, config.data.workers)
    try:
        yield stream
    finally:
        stream.close()


def _explained(
    error: NonFiniteError, checkpoints: Checkpoints, workdir: pathlib.Path
) -> NonFiniteError:
    checkpoints.wait()
    newest = checkpoints.latest()
    good = "none was saved yet" if newest is None else f"{workdir}/checkpoints/{newest}"
    error.args = (
        f"{error.args[0]}; the update was not made. Last good checkpoint: {good}. Go on with "
        "--config.train.on_nonfinite=skip_task, or look at the task's rows, or begin again in "
        "another --workdir with a lower optimizer.learning_rate",
    )
    return error
