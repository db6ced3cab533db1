"""All that a run carries from step to step, and all that a checkpoint holds."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from usfm.models.m2dino import M2DINO
from usfm.training.freeze import Params, frozen, merge, split
from usfm.training.method import weighting_of
from usfm.training.names import Layers


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The train state.

    Attributes:
        step: int32 [], the steps done. The data position and all randomness follow from it.
        params: the model's parameters, nested dicts.
        opt_state: the optimizer's, of the trainable parameters.
        multitask: of a multi-task method that remembers (objectives/weighting.py); {} for others.
        ema: moving averages of the trainable parameters, None in place of the frozen ones; {}
            where config.train.ema is 0.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    multitask: Any
    ema: Params = dataclasses.field(default_factory=dict)


def initial(
    model: M2DINO,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    seed: jax.Array | int,
) -> TrainState:
    """The state that a run of a seed starts with."""
    weighting = weighting_of(config.multitask, model.tasks)
    params = model.init(jax.random.key(seed))
    trainable, _ = split(params, frozen(params, config.optimizer.freeze, model.layers))
    opt_state = optimizer.init(trainable)
    ema = trainable if config.train.ema else {}
    multitask = weighting.init(len(model.tasks))
    state = TrainState(jnp.int32(0), params, opt_state, multitask, ema)
    # A weakly typed constant among them would be strong after a step: compiled twice.
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), state)


def started_from(
    state: TrainState,
    abstract: TrainState,
    params: Params,
    model: M2DINO,
    config: ConfigDict,
) -> TrainState:
    """The initial state of a run, but with other parameters (and averages that start there).

    Args:
        state: the initial one, as `initial` makes it.
        abstract: its shapes and shardings.
        params: in place of its own; arrays of JAX or NumPy.
        model: of the run.
        config: of the run.
    """

    def placed(params: Params, like: Params) -> Params:
        return jax.tree.map(
            lambda a, s: jax.device_put(a, s.sharding, may_alias=False), params, like
        )

    params = placed(params, abstract.params)
    if not state.ema:
        return dataclasses.replace(state, params=params)
    trainable, _ = split(params, frozen(params, config.optimizer.freeze, model.layers))
    return dataclasses.replace(state, params=params, ema=placed(trainable, abstract.ema))


def averaged(ema: Params, trainable: Params, decay: float, step: jax.Array) -> Params:
    """Moves the averages towards the parameters of one more step; {} stays {}.

    Early on, the averages remember no more than a ninth of the steps so far.

    Args:
        ema: the averages.
        trainable: the parameters after the step.
        decay: the averages' share in the result, later on: they remember 1 / (1 - decay) steps.
        step: int32 [], the steps done before.
    """
    if not ema:
        return ema
    new = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    # Not decay * old + new * value, which would round what does not change.
    return jax.tree.map(lambda old, value: old + new * (value - old), ema, trainable)


def evaluated_parts(params: Params, config: ConfigDict, layers: Layers) -> dict[str, Params]:
    """What evaluation needs of a checkpoint, by the state's field; `evaluated_params` takes it.

    Args:
        params: of the model, or their shapes.
        config: the run's.
        layers: of the model's stacks.
    """
    if not config.train.ema:
        return {"params": params}
    trainable, rest = split(params, frozen(params, config.optimizer.freeze, layers))
    return {"params": rest, "ema": trainable}


def evaluated_params(params: Params, ema: Params | None = None) -> Params:
    """The parameters that are evaluated: the moving averages, where there are any."""
    return merge(ema, params) if ema else params
