"""All that a run carries from step to step, and all that a checkpoint holds."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from usfm.models.m2dino import M2DINO
from usfm.training import sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The train state.

    Attributes:
        step: int32 [], the steps done. The data position and all randomness follow from it.
        params: the model's parameters, nested dicts.
        opt_state: the optimizer's.
        multitask: of a multi-task method that remembers; {} for the others.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    multitask: Any


def create(
    model: M2DINO, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh
) -> tuple[TrainState, TrainState]:
    """The initial state, placed on the mesh, and its shapes with their shardings."""

    def make() -> TrainState:
        params = model.init(jax.random.key(seed))
        state = TrainState(jnp.int32(0), params, optimizer.init(params), {})
        # A weakly typed constant among them would be strong after a step: compiled twice.
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), state)

    return sharding.build(make, mesh), sharding.abstract(make, mesh)
