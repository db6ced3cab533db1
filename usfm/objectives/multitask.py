"""The multi-task loss and its gradient: the one function that a training step calls."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from usfm.objectives import chain, graddrop
from usfm.objectives.accumulation import accumulated
from usfm.objectives.functions import Batch, Functions, Params, merge_slots, slot_losses
from usfm.objectives.gramian import Groups, gramian
from usfm.objectives.halves import as_slots, halved
from usfm.objectives.layers import together
from usfm.objectives.task_gradients import (
    SlotGradients,
    everywhere,
    mapped_slot_gradients,
    slot_gradients,
)
from usfm.objectives.weighting import Signal, State, Weighting

SUM = chain.make("sum")


@dataclasses.dataclass(frozen=True)
class Products:
    """Inner products of the task gradients, by group of layers.

    Attributes:
        gramian: float32 [G, T, T].
        square_norm: float32 [G, T], unbiased |E g|^2 from products of different slots of a task;
            NaN where it has but one. (The diagonal of the Gramian adds the gradient's noise.)
    """

    gramian: jax.Array
    square_norm: jax.Array


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a step learns of the tasks.

    Attributes:
        losses: float32 [T], NaN where the loss or gradient of a task is not finite and 0 where the
            task is absent.
        present: bool [T], the tasks that made the gradient.
        left_out: bool [T], those that have images in the batch and did not: of a gradient that is
            zero or, with skip_nonfinite, not finite. Only where tasks are kept apart.
        weights: float32 [T], of the task gradients in the shared parameters' gradient.
        grads: like params.
        gramian: float32 [T, T], or None where the engine makes none.
        state: of the weighting.
        aux: what the encoder says beside its maps, every leaf [S, ...].
        products: (groups, scale) -> Products, where all gradients are kept apart, else None.
    """

    losses: jax.Array
    present: jax.Array
    left_out: jax.Array
    weights: jax.Array
    grads: Params
    gramian: jax.Array | None
    state: State
    aux: Any
    products: Callable[[Groups, Params | None], Products] | None = None


def value_and_grad(
    functions: Functions,
    params: Params,
    batch: Batch,
    state: State,
    key: jax.Array,
    *,
    method: str = "sum",
    **settings: Any,
) -> tuple[jax.Array, jax.Array, Params, jax.Array | None, State]:
    """(losses, present, grads, gramian, state) of `answer`, for a method by its name."""
    out = answer(functions, params, batch, state, key, weighting=chain.make(method), **settings)
    return out.losses, out.present, out.grads, out.gramian, out.state


def answer(
    functions: Functions,
    params: Params,
    batch: Batch,
    state: State,
    key: jax.Array,
    *,
    weighting: Weighting = SUM,
    engine: str = "plain",
    at_once: int = 1,
    parts: int = 1,
    skip_nonfinite: bool = False,
    layer: Groups | None = None,
    halves: bool = False,
) -> Answer:
    """Losses of all tasks, and the gradient that a method makes of theirs.

    L_t = sum of values / sum of counts over all slots of task t in the global batch. Shared
    parameters (the encoder, and a type's decoder among its tasks) get sum_t w_t g_t with the
    weighting's weights. Heads and task embeddings get the plain gradient of their own task. An
    auxiliary loss counts once beside the tasks; where tasks are kept apart, each of them carries
    its slots' share of it, and under weights an embedding's part of it is divided by its task's.

    Args:
        functions: the model's functions and the slots' layout.
        params: keys encoder, decoders, heads, and task_embedding where there is one; None for
            a leaf that is not trained.
        batch: a slot batch whose image is float32, normalised [S, n, H, W, 3].
        state: of the weighting.
        key: randomness of this step.
        weighting: the method, from chain.make.
        engine: "plain" (one backward pass of the weighted sum), "layer" (likewise, but the Gramian
            is of the parameters `layer` alone), "stack" (slots' gradients kept apart), "stack_map"
            (likewise, but only some slots at once keep what a backward pass needs) or "stream" (for
            GradDrop: slots one after the other, nothing kept but two sums).
        at_once: how many, for stack_map.
        parts: that a batch is taken in one after the other, for "plain" (accumulation.py).
        skip_nonfinite: leave tasks out whose loss or gradient is not finite (with stack, stack_map
            and stream).
        layer: what belongs to the layer, for "layer".
        halves: take each slot for two of half its images, so that every task has two at least
            (with stack and stack_map, for even n).
    """
    keys, method_key = _keys(key, batch)

    def weigh(
        losses: jax.Array, present: jax.Array, products: jax.Array | None
    ) -> tuple[jax.Array, State]:
        ones = present.astype(losses.dtype)
        losses = jax.lax.stop_gradient(jnp.where(present, losses, 0))
        signal = Signal(losses, present, products, ones, method_key)
        signal, new = weighting.update(signal, state)
        return signal.weights, new

    match engine:
        case "plain" if parts > 1:
            losses, present, weights, grads, new, aux = accumulated(
                functions, params, batch, keys, parts, weighting, weigh
            )
            left_out = jnp.zeros_like(present)
            return Answer(losses, present, left_out, weights, grads, None, new, aux)
        case "plain" | "layer":
            layer = layer if engine == "layer" else None
            return _joint(functions, params, batch, keys, weighting, weigh, layer)
        case "stream":
            return _streamed(functions, params, batch, keys, weigh, skip_nonfinite, method_key)
        case _:
            if halves:
                functions, batch, keys = halved(functions, batch, keys)
            gradients = (
                slot_gradients(functions, params, batch, keys)
                if engine == "stack"
                else mapped_slot_gradients(functions, params, batch, keys, at_once)
            )
            drop_key = method_key if weighting.needs == "gradients" else None
            out = _apart(functions, batch, gradients, weigh, skip_nonfinite, drop_key)
            return dataclasses.replace(out, aux=as_slots(out.aux)) if halves else out


def task_losses(
    functions: Functions, params: Params, batch: Batch, keys: jax.Array
) -> tuple[jax.Array, jax.Array, Any]:
    """Losses [T], which tasks are present [T], and what the encoder says beside its maps.

    Args:
        functions: the model's.
        params: as for `answer`.
        batch: likewise.
        keys: of the slots [S].
    """
    maps, aux = functions.encode_all(params, batch, keys)
    sums, counts = slot_losses(functions, params, maps, batch)
    return *_by_task(functions, batch, sums, counts), aux


def look_back(
    functions: Functions,
    params: Params,
    batch: Batch,
    key: jax.Array,
    out: Answer,
    weighting: Weighting,
) -> State:
    """The weighting's state after the optimizer's update, where it asks what that has done.

    Args:
        functions: as for `answer`.
        params: after the update.
        batch: as for `answer`.
        key: likewise.
        out: the answer from before it.
        weighting: likewise.
    """
    if weighting.after is None:
        return out.state
    keys, _ = _keys(key, batch)
    losses, _, _ = task_losses(functions, params, batch, keys)
    before = jnp.where(out.present, out.losses, 0)
    return weighting.after(out.state, before, losses, out.present)


def _keys(key: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The randomness of a step: a key a slot [S], and the method's."""
    encode_key, method_key = jax.random.split(key)
    return jax.random.split(encode_key, batch["task"].shape[0]), method_key


def _by_task(
    functions: Functions, batch: Batch, sums: jax.Array, counts: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Losses [T] and presence [T] from slots' sums and counts [S]."""
    counts = merge_slots(counts, batch["task"], functions.tasks)
    return merge_slots(sums, batch["task"], functions.tasks) / jnp.maximum(counts, 1), counts > 0


def _joint(
    functions: Functions,
    params: Params,
    batch: Batch,
    keys: jax.Array,
    weighting: Weighting,
    weigh: Callable[..., tuple[jax.Array, State]],
    layer: Groups | None,
) -> Answer:
    """One ordinary backward pass of the tasks' weighted losses."""

    def losses_of(params: Params) -> Any:
        losses, present, aux = task_losses(functions, params, batch, keys)
        return (losses, functions.auxiliary(aux, batch["valid"])), (present, aux)

    (losses, extra), pull_back, (present, aux) = jax.vjp(losses_of, params, has_aux=True)
    products, moving = None, present
    if layer is not None:
        # What is not of the layer is never computed.
        gradients = slot_gradients(functions, params, batch, keys)
        merge, _ = _merge(functions, batch, gradients)
        products = _of_tasks(merge, gramian(gradients, functions, layer)[0])
        moving = present & (jnp.diagonal(products) != 0)
    weights, state = weigh(losses, moving, products)
    grads = pull_back((weights, jnp.ones_like(extra)))[0]
    if weighting.needs != "nothing":  # there, all weights are 1
        grads = _own_gradients(grads, pull_back, losses, extra, weights)
    return Answer(losses, moving, present & ~moving, weights, grads, products, state, aux)


def _own_gradients(
    grads: Params, pull_back: Any, losses: jax.Array, extra: jax.Array, weights: jax.Array
) -> Params:
    """Heads and embeddings as if no task had been weighted."""
    # Nothing but the heads is computed of this.
    plain = pull_back((jnp.ones_like(losses), jnp.ones_like(extra)))[0]
    grads = {**grads, "heads": plain["heads"]}
    if "task_embedding" in grads:
        divisor = jnp.where(weights == 0, 1, weights)[:, None]
        grads["task_embedding"] = grads["task_embedding"] / divisor
    return grads


def _streamed(
    functions: Functions,
    params: Params,
    batch: Batch,
    keys: jax.Array,
    weigh: Callable[..., tuple[jax.Array, State]],
    skip_nonfinite: bool,
    key: jax.Array,
) -> Answer:
    """GradDrop, slot after slot."""
    count = merge_slots(batch["valid"].any(-1).astype(jnp.float32), batch["task"], functions.tasks)
    # Before any loss is known: a weighting before GradDrop's own cannot ask for one.
    weights, state = weigh(jnp.zeros(functions.tasks), count > 0, None)
    signs, plain, said = graddrop.streamed(functions, params, batch, keys, weights, skip_nonfinite)
    losses, present = _by_task(functions, batch, said.sums, said.counts)
    if skip_nonfinite:
        losses = jnp.where(said.broken, jnp.nan, losses)
    kept = present & ~said.broken if skip_nonfinite else present
    grads = {**graddrop.drawn(*signs, key), **plain}
    weights = jnp.where(kept, weights, 0)
    return Answer(losses, kept, present & ~kept, weights, grads, None, state, said.aux)


def _apart(
    functions: Functions,
    batch: Batch,
    gradients: SlotGradients,
    weigh: Callable[..., tuple[jax.Array, State]],
    skip_nonfinite: bool,
    drop_key: jax.Array | None,
) -> Answer:
    """The weighted sum of gradients that are kept apart, or GradDrop's draw where it has a key."""
    task, sums, counts = everywhere((batch["task"], gradients.sums, gradients.counts))
    batch = {**batch, "task": task}
    gradients = dataclasses.replace(gradients, sums=sums, counts=counts)
    losses, present = _by_task(functions, batch, sums, counts)
    merge, share = _merge(functions, batch, gradients)
    slots = gramian(gradients, functions)[0]
    kept, having_images = jnp.ones(task.shape, bool), present
    if skip_nonfinite:
        finite = jnp.isfinite(gradients.sums) & jnp.isfinite(jnp.diagonal(slots))
        broken = merge_slots((~finite).astype(jnp.float32), task, functions.tasks) > 0
        losses, present = jnp.where(broken, jnp.nan, losses), present & ~broken
        kept = ~broken[task]
    both = kept[:, None] & kept[None, :]
    products = _of_tasks(merge, jnp.where(both, slots, 0))
    present &= jnp.diagonal(products) != 0
    weights, state = weigh(losses, present, products)

    def whole(kept: jax.Array, stack: Params) -> Params:
        """The stack, but zeros for what a slot that is left out holds."""
        if not skip_nonfinite:
            return stack
        return jax.tree.map(lambda g: jnp.where(kept.reshape(-1, *[1] * (g.ndim - 1)), g, 0), stack)

    def combine(scale: jax.Array, kept: jax.Array, stack: Params) -> Params:
        """sum_s scale_s g_s."""
        total = functools.partial(jnp.einsum, "s,s...->...", scale, precision="highest")
        return together(jax.tree.map(total, whole(kept, stack)))

    def shared(slots: tuple[jax.Array, ...], stack: Params, number: int) -> Params:
        of_slots, merge, kept = slots
        if drop_key is None:
            return combine(of_slots, kept, stack)
        own = jax.random.fold_in(drop_key, number)
        return graddrop.of_stack(whole(kept, stack), merge.T * weights[:, None], own)

    of_all = (weights[task] * share, merge.T, kept)
    grads: Params = {"encoder": shared(of_all, gradients.encoder, 0), "decoders": {}, "heads": {}}
    for number, kind in enumerate(functions.slots):
        own = functions.of_type(of_all, kind)
        grads["decoders"][kind] = shared(own, gradients.decoders[kind], number + 1)
        mine, ok = functions.of_type((share, kept), kind)
        grads["heads"][kind] = combine(mine, ok, gradients.heads[kind])
    if jax.tree.leaves(gradients.task_embedding):
        grads["task_embedding"] = combine(share, kept, gradients.task_embedding)

    def by_group(groups: Groups, scale: Params | None) -> Products:
        found = jnp.where(both, gramian(gradients, functions, groups, scale), 0)
        return Products(_of_tasks(merge, found), _square_norm(functions, batch, gradients, found))

    return Answer(
        losses, present, having_images & ~present, weights, grads, products, state, gradients.aux,
        by_group,
    )  # fmt: skip


def _merge(
    functions: Functions, batch: Batch, gradients: SlotGradients
) -> tuple[jax.Array, jax.Array]:
    """A [T, S], which makes tasks of slots, G_task = A G_slot A'; and each slot's share [S]."""
    task, counts = everywhere((batch["task"], gradients.counts))
    share = 1 / jnp.maximum(merge_slots(counts, task, functions.tasks), 1)[task]
    return jax.nn.one_hot(task, functions.tasks).T * share, share


def _of_tasks(merge: jax.Array, slots: jax.Array) -> jax.Array:
    """[..., T, T] of [..., S, S]."""
    merge, slots = everywhere((merge, slots))
    return everywhere(jnp.einsum("ts,...sr,ur->...tu", merge, slots, merge, precision="highest"))


def _square_norm(
    functions: Functions, batch: Batch, gradients: SlotGradients, slots: jax.Array
) -> jax.Array:
    """Products.square_norm, from products [G, S, S] of slots."""
    of_task = jax.nn.one_hot(batch["task"], functions.tasks)
    different = slots * (1 - jnp.eye(slots.shape[-1]))
    total = jnp.einsum("st,gsr,rt->gt", of_task, different, of_task, precision="highest")
    counts = gradients.counts
    pairs = (counts @ of_task) ** 2 - counts**2 @ of_task
    return jnp.where(pairs > 0.5, total / jnp.maximum(pairs, 1), jnp.nan)
