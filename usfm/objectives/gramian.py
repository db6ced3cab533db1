"""Inner products of task gradients: all that most surgery methods ask of them."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from usfm import mesh
from usfm.objectives.functions import Functions, Params
from usfm.objectives.layers import at
from usfm.objectives.task_gradients import SlotGradients, spread

# Columns of two thin matrices that XLA's CPU backend is handed at once: of all of them, it takes
# three times as long for their product. So many chunks a turn of the loop keep several threads
# busy: XLA runs what a turn consists of in sequence while that is few operations.
CHUNK, CHUNKS = 6144, 3
# Its products are twice as fast where their last axis is a multiple of so many (of a CPU's vector).
LANES = 8


@dataclasses.dataclass(frozen=True)
class Groups:
    """Groups of layers whose inner products are kept apart.

    Attributes:
        names: of the groups.
        of: like the parameters with keys encoder and decoders; the number of each leaf's group, or
            int [L] those of the layers that it stacks. Below 0 is what does not count.
    """

    names: tuple[str, ...]
    of: Params


def gramian(
    gradients: SlotGradients,
    functions: Functions,
    groups: Groups | None = None,
    scale: Params | None = None,
) -> jax.Array:
    """Inner products [G, S, S] of the slots' gradients of the shared parameters, by group.

    A decoder is shared among the tasks of its type alone, and adds to their block only. On a mesh
    every device multiplies its share of the parameters, and one sum over devices follows.

    Args:
        gradients: of S slots.
        functions: whose slots they are.
        groups: None = one group of all.
        scale: like the parameters: g_i . (scale * g_j); None = 1.
    """
    slots, count = gradients.sums.shape[0], len(groups.names) if groups else 1
    parts = list(_parts(gradients, functions, groups, scale))
    devices = mesh.current()
    specs = [(spread(stack), None if factor is None else P(*spread(stack)[1:]))
             for _, _, stack, factor in parts]  # fmt: skip

    def local(arrays: list[tuple[jax.Array, jax.Array | None]]) -> jax.Array:
        total = jnp.zeros((count, slots, slots))
        for (own, group, *_), (stack, factor), (spec, _) in zip(parts, arrays, specs, strict=True):
            products = _products(stack, factor, group, count)
            if devices is not None and spec == P():  # every device has the whole of it
                products = jnp.where(_is_first(devices), products, 0)
            total = total.at[:, own, own].add(products)
        return total if devices is None else jax.lax.psum(total, devices.axis_names)

    arrays = [(stack, factor) for _, _, stack, factor in parts]
    if devices is None:
        return local(arrays)
    return jax.shard_map(local, in_specs=(specs,), out_specs=P())(arrays)


def _parts(
    gradients: SlotGradients, functions: Functions, groups: Groups | None, scale: Params | None
) -> Iterator[tuple[slice, Any, jax.Array, jax.Array | None]]:
    """(its slots, group, gradients [S, ...], scale) of every leaf."""
    trees = [({"encoder": gradients.encoder}, slice(None))]
    for kind in functions.slots:
        trees.append(({"decoders": {kind: gradients.decoders[kind]}}, functions.span(kind)))
    for tree, own in trees:
        for path, stack in jax.tree_util.tree_leaves_with_path(tree):
            group = 0 if groups is None else at(groups.of, path)
            if np.any(np.asarray(group) >= 0):
                yield own, group, stack, None if scale is None else at(scale, path)


def _products(
    stack: jax.Array, factor: jax.Array | None, group: int | np.ndarray, count: int
) -> jax.Array:
    """[count, S, S] of one leaf [S, ...]."""
    if np.ndim(group) == 0:
        flat = stack.reshape(stack.shape[0], -1)
        other = flat if factor is None else flat * factor.reshape(-1)
        return jnp.zeros((count, *2 * stack.shape[:1])).at[int(group)].set(_inner(flat, other))
    scaled = stack if factor is None else stack * factor
    layers, other = (a.reshape(*a.shape[:2], -1) for a in (stack, scaled))
    members = jax.nn.one_hot(group, count)
    products = jax.vmap(_inner, 1)(layers, other)
    return jnp.einsum("lst,lg->gst", products, members, precision="highest")


def _inner(left: jax.Array, right: jax.Array) -> jax.Array:
    """[S, S] inner products of the rows [S, P] of two long thin matrices.

    They are symmetric: the rows of one matrix are those of the other, scaled column by column.
    """
    # Accelerators would round the factors, and a conflict is a matter of sign.
    product = functools.partial(jnp.matmul, precision="highest")
    if jax.default_backend() != "cpu":
        return product(left, right.T)
    even = left.shape[0] // LANES * LANES

    def of_columns(start: Any, size: int) -> tuple[jax.Array, jax.Array]:
        """[S, even] and [S - even, S - even] of so many columns: symmetry knows the others."""
        mine, other = (jax.lax.dynamic_slice_in_dim(a, start, size, 1) for a in (left, right))
        return product(mine, other[:even].T), product(mine[even:], other[even:].T)

    def add(number: jax.Array, total: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        for chunk in range(CHUNKS):
            more = of_columns((number * CHUNKS + chunk) * CHUNK, CHUNK)
            total = jax.tree.map(jnp.add, total, more)
        return total

    turn = CHUNKS * CHUNK
    # XLA unrolls a loop of one turn, and then copies all chunks before it multiplies the first.
    turns = left.shape[1] // turn if left.shape[1] >= 2 * turn else 0
    rest = of_columns(turns * turn, left.shape[1] - turns * turn)
    first, corner = jax.lax.fori_loop(0, turns, add, rest) if turns else rest
    return jnp.block([first, jnp.concatenate([first[even:].T, corner])])


def _is_first(devices: jax.sharding.AbstractMesh) -> jax.Array:
    return jnp.stack([jax.lax.axis_index(axis) == 0 for axis in devices.axis_names]).all()
