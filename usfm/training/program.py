"""The compiled half of a run. Runs that differ in their seed and their rows alone share it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import numpy as np
from ml_collections import ConfigDict

from usfm.models.dinov3 import VARIANTS
from usfm.models.lora import LoRA
from usfm.models.m2dino import M2DINO
from usfm.models.moe import Mixture
from usfm.tasks import Task
from usfm.training import optimizer as optimizers
from usfm.training import sharding
from usfm.training.state import TrainState, initial
from usfm.training.step import Step, make_step


@dataclasses.dataclass(frozen=True)
class Program:
    """A model's training, compiled.

    Attributes:
        model: what is trained.
        abstract: shapes and shardings of the state.
        start: seed -> the initial state on the mesh.
        step: of training.
        recorded_step: the same, and it records; `step` itself where all steps do or none does.
        record_every: every so many steps are recorded ones.
    """

    model: M2DINO
    abstract: TrainState
    start: Callable[[jax.Array | np.uint32], TrainState]
    step: Step
    recorded_step: Step
    record_every: int

    def step_at(self, number: int) -> Step:
        """The step that makes step `number`, which counts from 1."""
        return self.step if number % self.record_every else self.recorded_step


def make_program(
    config: ConfigDict,
    tasks: tuple[Task, ...],
    slots: Mapping[str, int],
    mesh: jax.sharding.Mesh,
) -> Program:
    """What a config's runs on these tasks share.

    Args:
        config: the run's; its train.seed and what chooses rows do not matter.
        tasks: sorted by id.
        slots: slots of each type, in a batch's order.
        mesh: of devices.
    """
    model = make_model(config, tasks)
    optimizer = optimizers.make(config.optimizer, config.train.steps, model.layers)
    make = functools.partial(initial, model, optimizer, config)
    abstract = abstract_state(config, tasks, mesh)
    every = config.multitask.record_every
    step = recorded_step = make_step(model, slots, optimizer, config, abstract)
    if config.multitask.record and every > 1:
        silent = config.copy_and_resolve_references()
        silent.multitask.record = False
        step = make_step(model, slots, optimizer, silent, abstract)
    return Program(model, abstract, sharding.builder(make, abstract), step, recorded_step, every)


def abstract_state(
    config: ConfigDict, tasks: tuple[Task, ...], mesh: jax.sharding.Mesh
) -> TrainState:
    """Shapes and shardings of the state of a config's run on these tasks."""
    model = make_model(config, tasks)
    optimizer = optimizers.make(config.optimizer, config.train.steps, model.layers)
    return sharding.abstract(functools.partial(initial, model, optimizer, config, 0), mesh)


def make_model(config: ConfigDict, tasks: tuple[Task, ...]) -> M2DINO:
    """The model that a config describes, for these tasks."""
    model = config.model
    return M2DINO(
        tasks,
        variant=model.variant,
        decoder_width=dict(model.decoder_width),
        mixture=_mixture(model) if model.moe.experts else None,
        lora=LoRA(**model.lora),
        rope_rescale=model.rope_rescale,
        drop_path=model.drop_path,
        remat=model.remat,
        dtype=model.dtype,
    )


def _mixture(model: ConfigDict) -> Mixture:
    layers = VARIANTS[model.variant].layers
    return Mixture(
        experts=model.moe.experts,
        layers=tuple(model.moe.layers) or tuple(range(layers // 2, layers)),
        top_k=model.moe.top_k,
        capacity=model.moe.capacity,
    )
