"""One training step: augment, task losses and their gradient, update. Compiled once."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from usfm.data.augment import augment, normalise
from usfm.models.m2dino import M2DINO
from usfm.objectives import multitask
from usfm.objectives.gramian import Functions
from usfm.objectives.losses import LOSSES
from usfm.training.state import TrainState

Step = Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]


def make_step(
    model: M2DINO,
    slots: Mapping[str, int],
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    abstract_state: TrainState,
) -> Step:
    """The compiled step of a run.

    Args:
        model: whose tasks the batches' `task` indexes.
        slots: slots of each type, in a batch's order.
        optimizer: as given to state.create.
        config: the run's.
        abstract_state: shapes and shardings of the state.

    Returns:
        (state, uint8 batch) -> (new state, metrics): losses [T], present [T], grad_norm [] and
        ok [], whether the update was made. An update that is not finite is never made: what
        follows is then the loop's to decide. The old state's memory is reused.
    """
    functions = Functions(
        encode=model.encode,
        decode=model.decode,
        loss=lambda kind, outputs, labels, valid: LOSSES[kind](outputs, labels, valid),
        slots=dict(slots),
        tasks=len(model.tasks),
    )
    skip = config.train.on_nonfinite == "skip_task"
    method = config.multitask.method
    engine = multitask.choose_engine(config.multitask.engine, method, skip)
    strength, seed = config.data.augment, config.train.seed
    flip_ok = jnp.array([task.flip_ok for task in model.tasks])

    def step(
        state: TrainState, batch: Mapping[str, jax.Array]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        augment_key, task_key = jax.random.split(key)
        batch = augment(batch, augment_key, strength=strength, flip_ok=flip_ok)
        batch = {**batch, "image": normalise(batch["image"])}
        losses, present, grads, _, memory = multitask.value_and_grad(
            functions,
            state.params,
            batch,
            state.multitask,
            task_key,
            method=method,
            engine=engine,
            skip_nonfinite=skip,
        )
        grad_norm = optax.tree.norm(grads)
        # A task that was left out has a NaN loss and is not present; nothing of it is in grads.
        ok = jnp.isfinite(grad_norm) & jnp.all(jnp.isfinite(losses) | ~present) & present.any()
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new = TrainState(state.step, params, opt_state, memory)
        new = jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, state)
        metrics = {"losses": losses, "present": present, "grad_norm": grad_norm, "ok": ok}
        return dataclasses.replace(new, step=state.step + 1), metrics

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
