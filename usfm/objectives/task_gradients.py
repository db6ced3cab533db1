"""Task gradients at the price of one backward pass.

A slot holds images of one task, so its gradient needs its own images only: under `vmap` over slots
every image is back-propagated once, whatever the number of tasks. The slots of one task merge
linearly, and all that a surgery method asks of them are inner products (gramian.py).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from usfm import mesh
from usfm.objectives.functions import (
    Batch,
    Functions,
    Params,
    merge_slots,
    slot_loss,
    spread_slots,
)
from usfm.objectives.layers import apart


@dataclasses.dataclass(frozen=True)
class SlotGradients:
    """Gradients of the slots' summed losses, not yet divided by any count.

    Attributes:
        sums, counts: float32 [S].
        aux: what the encoder says beside its maps, every leaf [S, ...].
        encoder: every leaf [S, ...], of the functions' unrolled stacks every layer (layers.py).
        decoders: by type, every leaf [S_type, ...].
        heads: by type, every leaf [S_type, T_type, ...], zero but in the row of the slot's task.
        task_embedding: [S, T, D] likewise, {} where there is none.
    """

    sums: jax.Array
    counts: jax.Array
    aux: Any
    encoder: Params
    decoders: dict[str, Params]
    heads: dict[str, Params]
    task_embedding: Any


def slot_gradients(
    functions: Functions, params: Params, batch: Batch, keys: jax.Array
) -> SlotGradients:
    """One vmapped backward pass that keeps the slots' gradients apart (the "stack" engine).

    Randomness is drawn from keys [S], one a slot.

    The encoder is one call vmapped over all slots, though each type has a decoder of its own: seen
    from inside that call, the decoders are one function with a vmap rule, which meets the maps of
    all slots at once and serves each type its share.

    The auxiliary loss belongs to no task. A slot's share of its gradient is added to the slot's,
    times the count of the slot's task, so that it is whole again once a task's gradient is divided
    by its count.
    """
    shared = {name: params[name] for name in ("encoder", "task_embedding") if name in params}
    answer = _heads_of_all_slots(functions, params, batch)

    def one_slot(slot: Batch, index: jax.Array, key: jax.Array) -> tuple[Any, Params]:
        out, pull_back = jax.vjp(
            lambda p: functions.encode(p, slot["image"], slot["task"], train=True, key=key), shared
        )
        cotangent, rest = answer(out, index)
        return rest, apart(pull_back(cotangent)[0], functions.unrolled)

    indices = jnp.arange(batch["task"].shape[0])
    of_all = jax.vmap(one_slot, out_axes=(None, 0), spmd_axis_name=mesh.SLOTS)
    rest, own = of_all(dict(batch), indices, keys)
    sums, counts, aux, decoders, heads = rest
    encoder, decoders = _spread_all((own["encoder"], decoders))
    return SlotGradients(sums, counts, aux, encoder, decoders, heads, own.get("task_embedding", {}))


def _heads_of_all_slots(functions: Functions, params: Params, batch: Batch) -> Callable[..., Any]:
    """(maps and aux of a slot, its index) -> (their cotangents, all else that the heads know)."""

    def of_all(out: tuple[jax.Array, Any]) -> tuple[tuple[jax.Array, Any], Any]:
        maps, aux = out
        cotangents, sums, counts, decoders, heads = [], [], [], {}, {}
        for kind in functions.slots:

            def loss(
                own: Params, m: jax.Array, b: Batch, kind: str = kind
            ) -> tuple[jax.Array, jax.Array]:
                return slot_loss(functions, own, kind, m, b)

            own = mesh.whole({part: {kind: params[part][kind]} for part in ("decoders", "heads")})
            gradient = jax.vmap(
                jax.value_and_grad(loss, (0, 1), has_aux=True),
                (None, 0, 0),
                spmd_axis_name=mesh.SLOTS,
            )
            of_kind = spread_slots(*functions.of_type((maps, dict(batch)), kind))
            (s, c), (g, cotangent) = jax.tree.map(
                lambda a, count=functions.slots[kind]: a[:count],
                gradient(own, *of_kind),
            )
            sums, counts, cotangents = [*sums, s], [*counts, c], [*cotangents, cotangent]
            decoders[kind], heads[kind] = g["decoders"][kind], g["heads"][kind]
        sums, counts, cotangent = map(jnp.concatenate, (sums, counts, cotangents))

        of_aux = jax.grad(functions.auxiliary)(aux, batch["valid"])
        of_aux = _times_count(functions, batch, counts, of_aux)
        return (cotangent, of_aux), (sums, counts, aux, decoders, heads)

    @jax.custom_batching.custom_vmap
    def answer(out: tuple[jax.Array, Any], index: jax.Array) -> tuple[Any, Any]:
        # Never run: only its shapes count. A slot by itself says the same as all of them do.
        slots = batch["task"].shape[0]
        everything = jax.tree.map(lambda a: jnp.broadcast_to(a, (slots, *a.shape)), out)
        cotangents, rest = of_all(everything)
        return jax.tree.map(lambda a: a[index], cotangents), rest

    @answer.def_vmap
    def _(size: int, batched: Any, out: tuple[jax.Array, Any], index: jax.Array) -> tuple[Any, Any]:
        del size, batched, index
        cotangents, rest = of_all(out)
        everywhere = jax.tree.map(lambda _: True, cotangents)
        return (cotangents, rest), (everywhere, jax.tree.map(lambda _: False, rest))

    return answer


def mapped_slot_gradients(
    functions: Functions, params: Params, batch: Batch, keys: jax.Array, at_once: int
) -> SlotGradients:
    """The same, `at_once` slots after the other (the "stack_map" engine).

    Only as many slots keep what their backward pass needs. An auxiliary loss is of all slots
    together: where there is one, a forward pass of all of them comes first.

    Args:
        functions: as for slot_gradients.
        params: likewise.
        batch: likewise.
        keys: likewise.
        at_once: slots of a type that are vmapped; those left over of a type are so by themselves.
    """
    of_aux = auxiliary_cotangents(functions, params, batch, keys, at_once)
    sums, counts, aux, encoder, embedding, decoders, heads = [], [], [], [], [], {}, {}
    for kind in functions.slots:
        own = functions.of_type((dict(batch), keys, of_aux), kind)
        gradient = one_slot_gradient(functions, params, kind)
        (s, c, a), g = _map(lambda o, f=gradient: _apart(f(o), functions), own, at_once)
        sums, counts, aux = [*sums, s], [*counts, c], [*aux, a]
        encoder, embedding = [*encoder, g["encoder"]], [*embedding, g.get("task_embedding", {})]
        decoders |= g["decoders"]
        heads |= g["heads"]
    sums, counts, aux, encoder, embedding = (
        jax.tree.map(lambda *parts: jnp.concatenate(parts), *of_kinds)
        for of_kinds in (sums, counts, aux, encoder, embedding)
    )
    encoder, decoders = _spread_all((encoder, decoders))
    return SlotGradients(sums, counts, aux, encoder, decoders, heads, embedding)


def _apart(answer: tuple[Any, Params], functions: Functions) -> tuple[Any, Params]:
    rest, gradient = answer
    return rest, apart(gradient, functions.unrolled)


def one_slot_gradient(
    functions: Functions, params: Params, kind: str
) -> Callable[[tuple[Batch, jax.Array, Any]], tuple[Any, Params]]:
    """The backward pass of one slot of a type.

    Returns:
        (slot, its key, what the auxiliary loss asks of its `aux`) -> (sum, count, aux), gradient
        with the keys encoder, decoders, heads and perhaps task_embedding.
    """
    own = {name: params[name] for name in ("encoder", "task_embedding") if name in params}
    own |= {part: {kind: params[part][kind]} for part in ("decoders", "heads")}

    def gradient(given: tuple[Batch, jax.Array, Any]) -> tuple[Any, Params]:
        slot, key, pull = given

        def total(params: Params) -> tuple[jax.Array, Any]:
            maps, aux = functions.encode(params, slot["image"], slot["task"], train=True, key=key)
            value, count = slot_loss(functions, params, kind, maps, slot)
            pulled = jax.tree.map(jnp.vdot, aux, pull)
            return value + sum(jax.tree.leaves(pulled)), (value, count, aux)

        grads, rest = jax.grad(total, has_aux=True)(own)
        return rest, grads

    return gradient


def auxiliary_cotangents(
    functions: Functions, params: Params, batch: Batch, keys: jax.Array, at_once: int
) -> Any:
    """What the auxiliary loss asks of each slot's `aux`, times the count of the slot's task."""

    def forward(kind: str, own: tuple[Any, jax.Array]) -> tuple[jax.Array, Any]:
        slot, key = own
        maps, aux = functions.encode(params, slot["image"], slot["task"], train=True, key=key)
        return slot_loss(functions, params, kind, maps, slot)[1], aux

    if not jax.tree.leaves(jax.eval_shape(functions.encode_all, params, batch, keys)[1]):
        return {}
    parts = []
    for kind in functions.slots:
        own = functions.of_type((dict(batch), keys), kind)
        parts.append(_map(lambda o, k=kind: forward(k, o), own, at_once))
    counts, aux = jax.tree.map(lambda *of_kinds: jnp.concatenate(of_kinds), *parts)
    return _times_count(
        functions, batch, counts, jax.grad(functions.auxiliary)(aux, batch["valid"])
    )


def _times_count(functions: Functions, batch: Batch, counts: jax.Array, tree: Any) -> Any:
    """[S, ...] arrays, each slot's times the count of its task."""
    times = merge_slots(counts, batch["task"], functions.tasks)[batch["task"]]
    return jax.tree.map(lambda a: a * times.reshape(-1, *[1] * (a.ndim - 1)), tree)


def _map(function: Callable[[Any], Any], slots: Any, at_once: int) -> Any:
    """The function of every slot, `at_once` of them in one go."""
    count = jax.tree.leaves(slots)[0].shape[0]
    return jax.lax.map(function, slots, batch_size=min(at_once, count))


def spread(stack: jax.Array) -> P:
    """How the gradients [S, ...] of a leaf lie on the mesh: its largest axis over all devices.

    Every slot's gradient comes from the devices that hold the slot. Spread like parameters
    under FSDP instead, S of them take as much memory on each device as S / devices do, and
    their inner products are sums over devices.
    """
    devices = mesh.current()
    if devices is None:
        return P()
    # Not a stack's layers, which groups tell apart.
    axes = range(2 if stack.ndim > 2 else 1, stack.ndim)
    fits = [axis for axis in axes if stack.shape[axis] % devices.size == 0]
    if not fits:
        return P()
    largest = max(fits, key=lambda axis: stack.shape[axis])
    return P(*[None] * largest, devices.axis_names)


def everywhere(tree: Any) -> Any:
    """Small arrays as a whole on every device: what is made of them there needs no exchange."""
    return mesh.lie(tree, P())


def _spread_all(tree: Any) -> Any:
    return jax.tree.map(lambda g: mesh.lie(g, spread(g)), tree)
