"""Task gradients at the price of one backward pass.

A slot holds images of one task, so its gradient needs its own images only: under `vmap` over slots
every image is back-propagated once, whatever the number of tasks. The slots of one task merge
linearly, and everything a surgery method asks is the T x T Gramian of the merged gradients.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

Params = dict[str, Any]
Batch = Mapping[str, jax.Array]


class Encode(Protocol):
    """The encoder: maps of one slot, and what its routers did."""

    def __call__(
        self, params: Params, image: jax.Array, task: jax.Array, *, train: bool, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See M2DINO.encode."""
        ...


@dataclasses.dataclass(frozen=True)
class Functions:
    """What a multi-task step is handed: the model's functions, the loss, and the slots' layout.

    Attributes:
        encode: as M2DINO.encode.
        decode: (params, type, maps, task) -> outputs of one slot.
        loss: (type, outputs, labels, valid) -> (sum, count) of one slot.
        slots: number of slots of each type present, in the order of the batch's slots.
        tasks: T, the number of tasks.
        encode_slots: encode of all slots in one call, every array with a leading axis S; without
            it, `encode` is vmapped.
        auxiliary: (what `encode` returns beside the maps, of all slots; valid [S, n]) -> a loss []
            that is added to those of the tasks.
    """

    encode: Encode
    decode: Callable[[Params, str, jax.Array, jax.Array], Mapping[str, Any]]
    loss: Callable[
        [str, Mapping[str, Any], Mapping[str, Any], jax.Array], tuple[jax.Array, jax.Array]
    ]
    slots: Mapping[str, int]
    tasks: int
    encode_slots: Encode | None = None
    auxiliary: Callable[[Any, jax.Array], jax.Array] = lambda aux, valid: jnp.zeros(())

    def encode_all(self, params: Params, batch: Batch, keys: jax.Array) -> tuple[jax.Array, Any]:
        """Maps [S, taps, n, h, w, D] of all slots in training, and what the routers did."""
        if self.encode_slots is not None:
            return self.encode_slots(params, batch["image"], batch["task"], train=True, key=keys)
        return jax.vmap(lambda i, t, k: self.encode(params, i, t, train=True, key=k))(
            batch["image"], batch["task"], keys
        )

    def of_type(self, tree: Any, kind: str) -> Any:
        """The part of a tree of [S, ...] arrays that belongs to the slots of one type."""
        kinds = list(self.slots)
        start = sum(self.slots[other] for other in kinds[: kinds.index(kind)])
        return jax.tree.map(lambda a: a[start : start + self.slots[kind]], tree)


def slot_losses(
    functions: Functions, params: Params, maps: jax.Array, batch: Batch
) -> tuple[jax.Array, jax.Array]:
    """Sums and counts [S] of the slots' losses, from maps [S, taps, n, h, w, D]."""
    parts = []
    for kind in functions.slots:
        of_kind = functions.of_type((maps, dict(batch)), kind)
        parts.append(
            jax.vmap(lambda m, b, k=kind: _slot_loss(functions, params, k, m, b))(*of_kind)
        )
    sums, counts = (jnp.concatenate(a) for a in zip(*parts, strict=True))
    return sums, counts


def _slot_loss(
    functions: Functions, params: Params, kind: str, maps: jax.Array, slot: Batch
) -> tuple[jax.Array, jax.Array]:
    outputs = functions.decode(params, kind, maps, slot["task"])
    return functions.loss(kind, outputs, slot, slot["valid"])


def merge_slots(values: jax.Array, task: jax.Array, tasks: int) -> jax.Array:
    """Sums [S] values of slots into [T] values of their tasks."""
    return jax.ops.segment_sum(values, task, tasks)


@dataclasses.dataclass(frozen=True)
class SlotGradients:
    """Gradients of the slots' summed losses, not yet divided by any count.

    Attributes:
        sums, counts: float32 [S].
        aux: what the encoder says beside its maps, every leaf [S, ...].
        encoder: every leaf [S, ...].
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
    functions: Functions, params: Params, batch: Batch, key: jax.Array
) -> SlotGradients:
    """One vmapped backward pass that keeps the slots' gradients apart (the "stack" engine).

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
        return rest, pull_back(cotangent)[0]

    indices = jnp.arange(batch["task"].shape[0])
    keys = jax.random.split(key, indices.size)
    rest, own = jax.vmap(one_slot, out_axes=(None, 0))(dict(batch), indices, keys)
    sums, counts, aux, decoders, heads = rest
    return SlotGradients(
        sums, counts, aux, own["encoder"], decoders, heads, own.get("task_embedding", {})
    )


def _heads_of_all_slots(functions: Functions, params: Params, batch: Batch) -> Callable[..., Any]:
    """(maps and aux of a slot, its index) -> (their cotangents, all else that the heads know)."""

    def of_all(out: tuple[jax.Array, Any]) -> tuple[tuple[jax.Array, Any], Any]:
        maps, aux = out
        cotangents, sums, counts, decoders, heads = [], [], [], {}, {}
        for kind in functions.slots:

            def loss(
                own: Params, m: jax.Array, b: Batch, kind: str = kind
            ) -> tuple[jax.Array, jax.Array]:
                return _slot_loss(functions, own, kind, m, b)

            own = {part: {kind: params[part][kind]} for part in ("decoders", "heads")}
            gradient = jax.vmap(jax.value_and_grad(loss, (0, 1), has_aux=True), (None, 0, 0))
            (s, c), (g, cotangent) = gradient(own, *functions.of_type((maps, dict(batch)), kind))
            sums, counts, cotangents = [*sums, s], [*counts, c], [*cotangents, cotangent]
            decoders[kind], heads[kind] = g["decoders"][kind], g["heads"][kind]
        sums, counts, cotangent = map(jnp.concatenate, (sums, counts, cotangents))

        of_aux = jax.grad(functions.auxiliary)(aux, batch["valid"])
        times = merge_slots(counts, batch["task"], functions.tasks)[batch["task"]]
        of_aux = jax.tree.map(lambda a: a * times.reshape(-1, *[1] * (a.ndim - 1)), of_aux)
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


def gramian(gradients: SlotGradients, functions: Functions) -> jax.Array:
    """[S, S] inner products of the slots' gradients of the shared parameters.

    A decoder is shared among the tasks of its type alone, and adds to their block only.
    """
    slots = gradients.sums.shape[0]
    result = jnp.zeros((slots, slots)) + _products(gradients.encoder)
    start = 0
    for kind, count in functions.slots.items():
        stop = start + count
        result = result.at[start:stop, start:stop].add(_products(gradients.decoders[kind]))
        start = stop
    return result


def _products(stack: Params) -> jax.Array | float:
    """[S, S], summed over the leaves; 0 where none is trained."""
    # Accelerators would round the factors, and a conflict is a matter of sign.
    leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(stack)]
    products = [jnp.matmul(leaf, leaf.T, precision="highest") for leaf in leaves]
    return jnp.stack(products).sum(0) if products else 0.0
