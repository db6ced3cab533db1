"""The plain engine in parts: the gradient of a batch of which a device holds only some images.

A part has some of the images of every slot, so that it has all tasks, lies on the mesh as the batch
does, and needs no other program. A task's loss is still the sum of its values over the sum of its
counts in the whole batch: counts follow from labels, so the weights of the parts' gradients are
known before the first of them. Where a weighting asks for losses, or routers have a loss of their
own (of all images together), a forward pass of all parts comes first: a third of a step.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from usfm import mesh
from usfm.objectives.functions import Batch, Functions, Params, merge_slots, slot_losses
from usfm.objectives.weighting import State, Weighting

Weigh = Callable[[jax.Array, jax.Array, None], tuple[jax.Array, State]]


def accumulated(
    functions: Functions,
    params: Params,
    batch: Batch,
    keys: jax.Array,
    parts: int,
    weighting: Weighting,
    weigh: Weigh,
) -> tuple[jax.Array, jax.Array, jax.Array, Params, State, Any]:
    """The gradient of the tasks' weighted losses, part after part.

    Numbers are those of one pass but for rounding, with two exceptions. Experts of a top-k mixture
    have their capacity for the tokens of a part. And images at the same place of different parts
    leave out the same branches (drop path).

    Args:
        functions: as for multitask.answer.
        params: likewise.
        batch: likewise; its number of images in a slot is a multiple of `parts`.
        keys: of the slots [S].
        parts: how many.
        weighting: the method.
        weigh: (losses [T], present [T], None) -> (weights [T], state).

    Returns:
        losses [T], present [T], weights [T], gradient, state, and what the encoder says beside its
        maps, of all images.
    """
    pieces = _split(batch, parts)
    maps, aux = jax.eval_shape(functions.encode_all, params, batch, keys)
    task, tasks = batch["task"], functions.tasks

    def forward(params: Params, piece: Batch) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        piece = {**piece, "task": task}
        maps, aux = functions.encode_all(params, piece, keys)
        sums, counts = slot_losses(functions, params, maps, piece)
        return sums, (counts, aux)

    # Of whatever maps: the compiler leaves out all that counts do not depend on.
    counts = slot_losses(functions, params, jnp.zeros(maps.shape, maps.dtype), batch)[1]
    total = merge_slots(counts, task, tasks)
    share, present = 1 / jnp.maximum(total, 1)[task], total > 0
    losses, pulls = jnp.zeros(tasks), {}
    if weighting.needs not in ("nothing", "present") or jax.tree.leaves(aux):
        sums, (_, aux) = jax.lax.map(lambda piece: forward(params, piece), pieces)
        losses = merge_slots(sums.sum(0) * share, task, tasks)
        pulls = _split_aux(jax.grad(functions.auxiliary)(_join_aux(aux), batch["valid"]), parts)
    weights, state = weigh(losses, present, None)

    def add(grads: Params, piece: tuple[Batch, Any]) -> tuple[Params, tuple[jax.Array, Any]]:
        own, pull = piece

        def value(params: Params) -> tuple[Any, tuple[jax.Array, Any]]:
            sums, (_, aux) = forward(params, own)
            return (sums, aux), (sums, aux)

        _, pull_back, said = jax.vjp(value, params, has_aux=True)
        new = pull_back((weights[task] * share, pull))[0]
        if weighting.needs != "nothing":  # heads learn as if no task had been weighted
            new = {**new, "heads": pull_back((share, pull))[0]["heads"]}
        return jax.tree.map(jnp.add, grads, new), said

    zeros = jax.tree.map(jnp.zeros_like, params)
    grads, (sums, aux) = jax.lax.scan(add, zeros, (pieces, pulls))
    if weighting.needs != "nothing" and "task_embedding" in grads:
        divisor = jnp.where(weights == 0, 1, weights)[:, None]
        grads["task_embedding"] = grads["task_embedding"] / divisor
    losses = merge_slots(sums.sum(0) * share, task, tasks)
    return losses, present, weights, grads, state, _join_aux(aux)


def _split(batch: Batch, parts: int) -> Batch:
    """[S, n, ...] as [parts, S, n / parts, ...], all but `task`."""
    return {
        name: mesh.lie(
            jnp.moveaxis(array.reshape(array.shape[0], parts, -1, *array.shape[2:]), 1, 0),
            P(None, mesh.SLOTS),
        )
        for name, array in batch.items()
        if name != "task"
    }


def _join_aux(aux: Any) -> Any:
    """[parts, S, layers, n / parts, ...] as [S, layers, n, ...]."""

    def join(a: jax.Array) -> jax.Array:
        a = jnp.moveaxis(a, 0, 2)
        return a.reshape(*a.shape[:2], -1, *a.shape[4:])

    return jax.tree.map(join, aux)


def _split_aux(aux: Any, parts: int) -> Any:
    """The inverse of _join_aux."""

    def split(a: jax.Array) -> jax.Array:
        return jnp.moveaxis(a.reshape(*a.shape[:2], parts, -1, *a.shape[3:]), 2, 0)

    return jax.tree.map(split, aux)
