"""The multi-task loss and its gradient: the one function that a training step calls."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from usfm.errors import UserError
from usfm.objectives import surgery
from usfm.objectives.functions import Batch, Functions, Params, merge_slots, slot_losses
from usfm.objectives.gramian import gramian
from usfm.objectives.task_gradients import mapped_slot_gradients, slot_gradients

ENGINES = ("plain", "stack", "stack_map")


def choose_engine(engine: str, method: str, skip_nonfinite: bool) -> str:
    """The engine that `auto` stands for: plain unless task gradients are needed apart.

    Raises:
        UserError: an unknown engine or method, or plain where task gradients are needed.
    """
    if method not in surgery.METHODS:
        raise UserError(
            f"multitask.method='{method}' is unknown; choose from {', '.join(surgery.METHODS)}"
        )
    if engine not in ("auto", *ENGINES):
        raise UserError(
            f"multitask.engine='{engine}' is unknown; choose from auto, {', '.join(ENGINES)}"
        )
    apart = skip_nonfinite or method not in ("sum", "mean")
    if engine == "plain" and apart:
        reason = f"multitask.method='{method}'" if not skip_nonfinite else "train.on_nonfinite"
        raise UserError(f"multitask.engine='plain' cannot serve {reason}; use auto or stack")
    return ("stack" if apart else "plain") if engine == "auto" else engine


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a step learns of the tasks.

    Attributes:
        losses: float32 [T], NaN where the loss or gradient of a task is not finite and 0 where the
            task is absent.
        present: bool [T], the tasks that made the gradient: where tasks are kept apart, one whose
            gradient is zero is not among them.
        grads: like params.
        gramian: float32 [T, T], or None where the engine does not keep tasks apart.
        state: of the method.
        aux: what the encoder says beside its maps, every leaf [S, ...].
    """

    losses: jax.Array
    present: jax.Array
    grads: Params
    gramian: jax.Array | None
    state: Any
    aux: Any


def value_and_grad(
    functions: Functions, params: Params, batch: Batch, state: Any, key: jax.Array, **options: Any
) -> tuple[jax.Array, jax.Array, Params, jax.Array | None, Any]:
    """(losses, present, grads, gramian, state) of `answer`."""
    out = answer(functions, params, batch, state, key, **options)
    return out.losses, out.present, out.grads, out.gramian, out.state


def answer(
    functions: Functions,
    params: Params,
    batch: Batch,
    state: Any,
    key: jax.Array,
    *,
    method: str = "sum",
    engine: str = "plain",
    at_once: int = 1,
    skip_nonfinite: bool = False,
) -> Answer:
    """Losses of all tasks, and the gradient that a method makes of theirs.

    L_t = sum of values / sum of counts over all slots of task t in the global batch. Shared
    parameters (the encoder, and a type's decoder among its tasks) get sum_t w_t g_t with the
    method's weights, brought to one convention for all methods: the weights of the tasks present
    sum to their number (where they cancel, nothing shared is moved). Heads and task embeddings get
    the plain gradient of their own task. An auxiliary loss counts once beside the tasks; where
    tasks are kept apart, each of them carries its slots' share of it.

    Args:
        functions: the model's functions and the slots' layout.
        params: keys encoder, decoders, heads, and task_embedding where there is one; None for
            a leaf that is not trained.
        batch: a slot batch whose image is float32, normalised [S, n, H, W, 3].
        state: of the method; methods here have none and hand it back.
        key: randomness of this step.
        method: one of surgery.METHODS.
        engine: "plain" (one backward pass of the sum), "stack" (slots' gradients kept apart) or
            "stack_map" (likewise, but only some slots at once keep what a backward pass needs).
        at_once: how many, for stack_map.
        skip_nonfinite: leave tasks out whose loss or gradient is not finite (not with plain).
    """
    if engine == "plain":
        losses, present, grads, aux = _plain(functions, params, batch, key)
        return Answer(losses, present, grads, None, state, aux)

    encode_key, method_key = jax.random.split(key)
    gradients = (
        slot_gradients(functions, params, batch, encode_key)
        if engine == "stack"
        else mapped_slot_gradients(functions, params, batch, encode_key, at_once)
    )
    task, tasks = batch["task"], functions.tasks
    counts = merge_slots(gradients.counts, task, tasks)
    present = counts > 0
    losses = merge_slots(gradients.sums, task, tasks) / jnp.maximum(counts, 1)

    # [T, S]: merges slots into tasks, G_task = A G_slot A'. A task's slots share its mean.
    share = 1 / jnp.maximum(counts, 1)[task]
    merge = jax.nn.one_hot(task, tasks).T * share
    slots = gramian(gradients, functions)
    if skip_nonfinite:
        finite = jnp.isfinite(gradients.sums) & jnp.isfinite(jnp.diagonal(slots))
        broken = merge_slots((~finite).astype(jnp.float32), task, tasks) > 0
        losses, present = jnp.where(broken, jnp.nan, losses), present & ~broken
        kept = ~broken[task]
        slots = jnp.where(kept[:, None] & kept[None, :], slots, 0)
    else:
        kept = jnp.ones(task.shape, bool)
    products = jnp.einsum("ts,sr,ur->tu", merge, slots, merge, precision="highest")

    present &= jnp.diagonal(products) != 0
    weights = surgery.weights(method, products, present=present, key=method_key)
    total = weights.sum()
    some = total > 1e-6 * jnp.abs(weights).sum()
    weights = jnp.where(some, weights * (present.sum() / jnp.where(some, total, 1)), 0)

    def combine(scale: jax.Array, kept: jax.Array, stack: Params) -> Params:
        """sum_s scale_s g_s, without touching what a slot that is left out holds."""

        def leaf(g: jax.Array) -> jax.Array:
            keep = kept.reshape(-1, *[1] * (g.ndim - 1))
            g = jnp.where(keep, g, 0) if skip_nonfinite else g
            return jnp.einsum("s,s...->...", scale, g, precision="highest")

        return jax.tree.map(leaf, stack)

    grads: Params = {"encoder": combine(weights[task] * share, kept, gradients.encoder)}
    grads["decoders"], grads["heads"] = {}, {}
    for kind in functions.slots:
        own, mine, ok = functions.of_type((weights[task] * share, share, kept), kind)
        grads["decoders"][kind] = combine(own, ok, gradients.decoders[kind])
        grads["heads"][kind] = combine(mine, ok, gradients.heads[kind])
    if "task_embedding" in params:
        grads["task_embedding"] = combine(share, kept, gradients.task_embedding)
    return Answer(losses, present, grads, products, state, gradients.aux)


def _plain(
    functions: Functions, params: Params, batch: Batch, key: jax.Array
) -> tuple[jax.Array, jax.Array, Params, Any]:
    """One ordinary backward pass of the sum of the tasks' losses."""
    task, tasks = batch["task"], functions.tasks
    keys = jax.random.split(jax.random.split(key)[0], task.shape[0])

    def total(params: Params) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Any]]:
        maps, aux = functions.encode_all(params, batch, keys)
        sums, counts = slot_losses(functions, params, maps, batch)
        counts = merge_slots(counts, task, tasks)
        losses = merge_slots(sums, task, tasks) / jnp.maximum(counts, 1)
        loss = losses.sum() + functions.auxiliary(aux, batch["valid"])
        return loss, (losses, counts > 0, aux)

    grads, (losses, present, aux) = jax.grad(total, has_aux=True)(params)
    return losses, present, grads, aux
