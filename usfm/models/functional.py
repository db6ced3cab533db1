"""The one place where NNX modules become plain functions of plain parameters, and back.

Flax NNX defines the layers; everything that runs (jit, grad, vmap, scan, checkpoints, sharding)
sees nested dicts of arrays. nnx.jit and nnx.Optimizer would cost tens of milliseconds of host
time a step for the same work.
"""

from collections.abc import Callable
from typing import Any, cast

import jax
from flax import nnx

Params = dict[str, Any]


def split(module: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """Takes a module apart into its structure and a nested dict of its parameters."""
    graphdef, state = nnx.split(module)
    return graphdef, nnx.to_pure_dict(state)


def merge(graphdef: nnx.GraphDef, params: Params) -> Any:
    """Puts a module together again; the inverse of `split`."""
    return nnx.merge(graphdef, nnx.State(params))


def shapes(make: Callable[[nnx.Rngs], nnx.Module]) -> Any:
    """The module that `make` would build, with shapes in place of its arrays."""
    return nnx.eval_shape(lambda: make(_rngs(jax.random.key(0))))


def structure(make: Callable[[nnx.Rngs], nnx.Module]) -> nnx.GraphDef:
    """The structure of the module that `make` would build, without building its arrays."""
    return nnx.graphdef(shapes(make))


def init(make: Callable[[nnx.Rngs], nnx.Module], key: jax.Array) -> Params:
    """Fresh parameters of the module that `make` builds."""
    return split(make(_rngs(key)))[1]


def init_stacked(make: Callable[[nnx.Rngs], nnx.Module], count: int, key: jax.Array) -> Params:
    """Fresh parameters of `count` equal modules: every array gains a leading axis of `count`."""
    return jax.vmap(lambda k: init(make, k))(jax.random.split(key, count))


def stacked(make: Callable[[nnx.Rngs], nnx.Module], count: int, key: jax.Array) -> Any:
    """`count` equal modules as one whose arrays carry a leading axis; run it with `scan`."""
    return merge(structure(make), init_stacked(make, count, key))


def path_name(path: tuple[Any, ...]) -> str:
    """encoder/blocks/mlp/up/kernel for the path of a leaf."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


class _Keys:
    """Draws the keys that nnx.Rngs(key) draws for parameters, and counts them in Python.

    nnx.Rngs counts in an array. While JAX traces, as it does here, each count takes it a
    millisecond: half of the time of `init`.
    """

    def __init__(self, key: jax.Array):
        self._key, self._drawn = key, 0

    def params(self) -> jax.Array:
        key = jax.random.fold_in(self._key, self._drawn)
        self._drawn += 1
        return key


def _rngs(key: jax.Array) -> nnx.Rngs:
    return cast(nnx.Rngs, _Keys(key))  # modules ask it for nothing but `params`


# What the backward pass finds saved of a layer, and does not compute again (jax.checkpoint).
REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # weights' products
    "full": jax.checkpoint_policies.nothing_saveable,
}


def scan(
    stack: nnx.Module,
    x: jax.Array,
    *args: Any,
    each: Any = None,
    start: int,
    stop: int,
    remat: str = "none",
) -> tuple[jax.Array, Any]:
    """Runs layers start..stop-1 of a stack one after the other: x, out = layer(x, each, *args).

    Args:
        stack: as `stacked` makes it.
        x: what goes from layer to layer.
        *args: the same for every layer.
        each: a tree of arrays with a leading axis of stop - start, or None: a layer gets its own.
        start: first layer, counted in the stack.
        stop: after the last one.
        remat: a name of REMAT.

    Returns:
        x after the last layer, and the layers' `out` on a leading axis.
    """
    graphdef, params = split(stack)
    part = jax.tree.map(lambda array: array[start:stop], params)

    def layer(x: jax.Array, own: tuple[Params, Any]) -> tuple[jax.Array, Any]:
        return merge(graphdef, own[0])(x, own[1], *args)

    if remat != "none":
        layer = jax.checkpoint(layer, policy=REMAT[remat], prevent_cse=False)
    return jax.lax.scan(layer, x, (part, each), unroll=unrolls())


def unrolls() -> bool:
    """Whether `scan` unrolls its loop.

    XLA's CPU backend copies what a loop reads and writes in each turn: a tenth of a step.
    """
    return jax.default_backend() == "cpu"
