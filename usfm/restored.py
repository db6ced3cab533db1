"""The model that a run trained, from its workdir or one of its checkpoints."""

import dataclasses
import os
import pathlib

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from usfm.data.source import say
from usfm.errors import UserError
from usfm.evaluation.features import Extractor, program_of
from usfm.evaluation.predict import Options, Predictor, make_predictor, programs_of
from usfm.models.functional import Params
from usfm.models.m2dino import M2DINO
from usfm.tasks.suggest import suggest
from usfm.training import sharding
from usfm.training.checkpoint import Checkpoints, directory_of, tasks_from_meta
from usfm.training.program import make_model
from usfm.training.state import evaluated_params, evaluated_parts

CHECKPOINTS = "checkpoints"  # in a workdir


@dataclasses.dataclass(frozen=True)
class Restored:
    """A trained model.

    Attributes:
        config: of its run.
        model: its functions.
        params: on the mesh; the moving averages, where the run keeps them.
        mesh: of devices.
    """

    config: ConfigDict
    model: M2DINO
    params: Params
    mesh: Mesh


def restore(
    config: ConfigDict, workdir: pathlib.Path, *, mesh: Mesh, step: int | None = None
) -> Restored:
    """Reads a checkpoint's parameters onto a mesh.

    Args:
        config: of the run.
        workdir: of the run.
        mesh: of any shape, whatever mesh the run had.
        step: of the checkpoint; where it is not given, what evaluate.checkpoint says.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    directory = directory_of(config, workdir)
    with Checkpoints(directory) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise UserError(f"{workdir} holds no checkpoint: train first, or give its --workdir")
        if step is None:
            step = (
                _best(checkpoints, workdir) if config.evaluate.checkpoint == "best" else steps[-1]
            )
        if step not in steps:
            kept = ", ".join(map(str, steps))
            raise UserError(f"{directory} has no step {step}; kept are: {kept}")
        model = make_model(config, tasks_from_meta(checkpoints.meta(step)))
        placed = sharding.abstract(lambda: model.init(jax.random.key(0)), mesh)
        parts = evaluated_parts(placed, config, model.layers)
        params = evaluated_params(**checkpoints.restore_parts(step, parts))
    return Restored(config, model, params, mesh)


def _best(checkpoints: Checkpoints, workdir: pathlib.Path) -> int:
    step = checkpoints.best()
    if step is None:
        raise UserError(
            f"{workdir} holds no checkpoint that was scored: train with "
            "--config.checkpoint.best_metric, or set evaluate.checkpoint=latest"
        )
    say(f"the best checkpoint is that of step {step}")
    return step


def predictor_of(restored: Restored, *, quick: bool = False) -> Predictor:
    """What answers images as the config has them.

    Args:
        restored: a trained model.
        quick: on a CPU, its programs are compiled in half the time, and take half as long again:
            for few images.
    """
    programs = programs_of(restored.model, restored.mesh, _options(quick))
    tasks = restored.model.tasks
    return make_predictor(restored.config, programs, tasks, restored.params, restored.mesh)


def extractor_of(restored: Restored, *, quick: bool = False) -> Extractor:
    """What says the features of images as the config has them; `quick` as predictor_of takes it.

    Raises:
        UserError: features.task is none of the model's tasks.
    """
    config, model = restored.config, restored.model
    program = program_of(model, restored.mesh, _options(quick))
    size = (config.data.image_size, config.data.image_size)
    task, ids = config.features.task, [task.id for task in model.tasks]
    if task and task not in ids:
        raise UserError(f"features.task: the model has no task {task!r}; {suggest(task, ids)}")
    return Extractor(
        program,
        restored.params,
        restored.mesh,
        size,
        config.data.channels,
        config.evaluate.batch_size,
        ids.index(task) if task else None,
    )


def _options(quick: bool) -> Options:
    if not quick or jax.default_backend() != "cpu":
        return None
    return {"xla_backend_optimization_level": 0}


def one_device_mesh() -> Mesh:
    """A mesh of this process's first device."""
    return sharding.make_mesh({"data": 1, "fsdp": 1, "expert": 1}, jax.local_devices()[:1])


def all_devices_mesh() -> Mesh:
    """A mesh that spreads images over all devices, each with all parameters."""
    return sharding.make_mesh({"data": -1, "fsdp": 1, "expert": 1})


def find_run(checkpoint: str | os.PathLike) -> tuple[pathlib.Path, int | None]:
    """The workdir of a checkpoint and its step, None for the newest.

    Args:
        checkpoint: a workdir, its checkpoints/, or checkpoints/STEP.

    Raises:
        UserError: it is none of these.
    """
    path, step = pathlib.Path(checkpoint).expanduser().absolute(), None
    if path.name.isdigit() and path.parent.name == CHECKPOINTS:
        path, step = path.parent, int(path.name)
    workdir = path.parent if path.name == CHECKPOINTS else path
    if not (workdir / "config.json").is_file():
        raise UserError(
            f"{checkpoint} is no run: give a workdir that holds config.json and {CHECKPOINTS}/, or "
            f"one of its {CHECKPOINTS}/STEP"
        )
    return workdir, step
