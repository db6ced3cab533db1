"""What a run starts from: its own newest checkpoint, another run, a pretrained encoder, nothing."""

import dataclasses
import functools
import pathlib
import platform
import subprocess
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

import usfm
from usfm import config as usfm_config
from usfm.data.source import say
from usfm.errors import UserError
from usfm.models import weights
from usfm.models.dinov3 import VARIANTS
from usfm.models.functional import Params
from usfm.models.m2dino import M2DINO
from usfm.tasks import Task
from usfm.training import sharding
from usfm.training.carry import carried, told
from usfm.training.checkpoint import Checkpoints, directory_of, tasks_from_meta, tasks_to_meta
from usfm.training.program import Program, abstract_state, make_model
from usfm.training.state import TrainState, evaluated_params, evaluated_parts

# (model, its fresh parameters, placed) -> parameters to start with
Start = Callable[[M2DINO, Params], Params]


def describe(config: ConfigDict, tasks: tuple[Task, ...]) -> dict[str, Any]:
    """What is kept beside a state: the tasks, the config and the versions of the code."""
    code = {"usfm": usfm.__version__, "jax": jax.__version__, "python": platform.python_version()}
    if commit := _commit():
        code["commit"] = commit
    return {**tasks_to_meta(tasks), "config": usfm_config.to_dict(config), "code": code}


@functools.cache
def _commit() -> str:
    """What git calls the code that runs, '-dirty' where it was changed; "" outside of git."""
    root = pathlib.Path(usfm.__file__).parents[1]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def check_same_run(config: ConfigDict, tasks: tuple[Task, ...], meta: dict[str, Any]) -> None:
    """Compares a run with a checkpoint that it is to go on from, and says what is another.

    Raises:
        UserError: the config or the tasks differ, and checkpoint.accept_changes is not set; or a
            task has another form.
    """
    accepted = config.checkpoint.accept_changes
    if old := meta.get("config"):
        usfm_config.check_same(old, config, "its newest checkpoint was made")
    begun = tasks_from_meta(meta)
    if begun != tasks:
        what = told(begun, tasks)
        if not accepted:
            raise UserError(
                f"the run was begun on other tasks: {what}; choose those it was begun with by "
                "--config.tasks, give another --workdir, or accept the change by "
                "--config.checkpoint.accept_changes=True"
            )
        say(what)
    code, now = meta.get("code", {}), describe(config, tasks)["code"]
    if others := [f"{name} {code[name]}" for name in code if code[name] != now.get(name)]:
        say(f"the checkpoint was made with {', '.join(others)}")


def check_same_directory(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Refuses to begin again where a run's checkpoints lie elsewhere.

    Raises:
        UserError: the workdir's run kept its checkpoints in another folder, and this one has none.
    """
    if not usfm_config.holds_run(workdir):
        return
    before = directory_of(usfm_config.of_run(workdir, {}), workdir)
    now = directory_of(config, workdir)
    if before != now and before.exists():
        raise UserError(
            f"{now} holds no checkpoint, and those of {workdir} lie in {before}: give that as "
            "--config.checkpoint.directory, move them, or give another --workdir"
        )


def resumed(
    checkpoints: Checkpoints, step: int, config: ConfigDict, program: Program, fresh: TrainState
) -> TrainState:
    """The state of a step, for the tasks of this run; `check_same_run` has compared them.

    Raises:
        UserError: it does not fit, or cannot be read.
    """
    begun, tasks = tasks_from_meta(checkpoints.meta(step)), program.model.tasks
    if begun == tasks:
        return checkpoints.restore(step, program.abstract)
    mesh = jax.tree.leaves(program.abstract)[0].sharding.mesh
    old = checkpoints.restore(step, abstract_state(config, begun, mesh))
    return _placed(carried, program.abstract)(old, fresh, begun, tasks)


def source_of(config: ConfigDict, tasks: tuple[Task, ...]) -> Start | None:
    """What model.init_from names, an encoder or the workdir of another run; None where it is empty.

    Raises:
        UserError: it cannot be read, or does not fit.
    """
    path = config.model.init_from
    if not path:
        return None
    directory = pathlib.Path(path).expanduser()
    if usfm_config.holds_run(directory):
        return _of_run(config, directory, tasks)
    encoder = _encoder(config)
    say(f"the encoder starts from {path}")
    return lambda model, params: model.with_encoder(params, encoder)


def _of_run(config: ConfigDict, workdir: pathlib.Path, tasks: tuple[Task, ...]) -> Start:
    theirs = usfm_config.of_run(workdir, {})
    lie = directory_of(theirs, workdir)
    with Checkpoints(lie) as checkpoints:
        step = checkpoints.latest()
        if step is None:
            raise UserError(f"model.init_from={workdir} holds no checkpoint yet")
        begun = tasks_from_meta(checkpoints.meta(step))
    say(f"the model starts from step {step} of {workdir}; {told(begun, tasks)}")

    def start(model: M2DINO, fresh: Params) -> Params:
        old = make_model(config, begun)
        mesh = jax.tree.leaves(fresh)[0].sharding.mesh
        placed = sharding.abstract(lambda: old.init(jax.random.key(0)), mesh)
        parts = evaluated_parts(placed, theirs, old.layers)
        with Checkpoints(lie) as checkpoints:
            params = evaluated_params(**checkpoints.restore_parts(step, parts))
        return _placed(carried, fresh)(params, fresh, begun, tasks)

    return start


def _placed(make: Callable[..., Any], like: Any) -> Callable[..., Any]:
    """`carried` as one program, so that every device makes its own part."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
    return jax.jit(make, static_argnums=(2, 3), out_shardings=shardings)


def _encoder(config: ConfigDict) -> Params:
    path = config.model.init_from
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
