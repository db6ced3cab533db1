"""What the objectives are handed of a model, and the losses of slots: no model is imported here."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from usfm import mesh

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
        unrolled: paths of parameters that are stacks of layers, and whose loop XLA unrolls.
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
    unrolled: tuple[str, ...] = ()
    auxiliary: Callable[[Any, jax.Array], jax.Array] = lambda aux, valid: jnp.zeros(())

    def encode_all(self, params: Params, batch: Batch, keys: jax.Array) -> tuple[jax.Array, Any]:
        """Maps [S, taps, n, h, w, D] of all slots in training, and what the routers did."""
        if self.encode_slots is not None:
            return self.encode_slots(params, batch["image"], batch["task"], train=True, key=keys)
        return jax.vmap(lambda i, t, k: self.encode(params, i, t, train=True, key=k))(
            batch["image"], batch["task"], keys
        )

    def span(self, kind: str) -> slice:
        """Where the slots of one type lie."""
        kinds = list(self.slots)
        start = sum(self.slots[other] for other in kinds[: kinds.index(kind)])
        return slice(start, start + self.slots[kind])

    def of_type(self, tree: Any, kind: str) -> Any:
        """The part of a tree of [S, ...] arrays that belongs to the slots of one type."""
        return jax.tree.map(lambda a: a[self.span(kind)], tree)


def slot_losses(
    functions: Functions, params: Params, maps: jax.Array, batch: Batch
) -> tuple[jax.Array, jax.Array]:
    """Sums and counts [S] of the slots' losses, from maps [S, taps, n, h, w, D]."""
    parts = []
    own = mesh.whole({part: params[part] for part in ("decoders", "heads")})
    for kind in functions.slots:
        of_kind = spread_slots(*functions.of_type((maps, dict(batch)), kind))
        sums, counts = jax.vmap(
            lambda m, b, k=kind: slot_loss(functions, own, k, m, b), spmd_axis_name=mesh.SLOTS
        )(*of_kind)
        parts.append((sums[: functions.slots[kind]], counts[: functions.slots[kind]]))
    sums, counts = (jnp.concatenate(a) for a in zip(*parts, strict=True))
    return sums, counts


def spread_slots(maps: jax.Array, batch: Batch) -> tuple[jax.Array, Batch]:
    """The slots of a type, spread over all devices that hold slots.

    They seldom divide by the devices. Left as they are, each device would hold pieces of images,
    and the decoder's convolutions would exchange them. So empty slots are added.

    Args:
        maps: [S_type, taps, n, h, w, D].
        batch: of these slots.

    Returns:
        Both with S_type or a few more slots: of zero maps, labelled as the last slot.
    """
    more = -maps.shape[0] % mesh.slot_shards()

    def add(a: jax.Array, mode: str) -> jax.Array:
        padded = jnp.pad(a, [(0, more)] + [(0, 0)] * (a.ndim - 1), mode=mode) if more else a
        return mesh.lie(padded, P(mesh.SLOTS))

    return add(maps, "constant"), {name: add(array, "edge") for name, array in batch.items()}


def slot_loss(
    functions: Functions, params: Params, kind: str, maps: jax.Array, slot: Batch
) -> tuple[jax.Array, jax.Array]:
    """Sum and count [] of one slot's losses, from its maps [taps, n, h, w, D]."""
    outputs = functions.decode(params, kind, maps, slot["task"])
    return functions.loss(kind, outputs, slot, slot["valid"])


def merge_slots(values: jax.Array, task: jax.Array, tasks: int) -> jax.Array:
    """Sums [S] values of slots into [T] values of their tasks."""
    return jax.ops.segment_sum(values, task, tasks)
