"""Gradients of equal layers, one by one.

The encoder holds equal layers as one array, a stack. Where XLA unrolls the loop over them (on a
CPU), their gradients come one by one too, and slots' gradients of a whole stack would be a copy of
the largest arrays of a step, which is then taken apart again. So they stay apart: a tuple of
layers takes the place of each stacked leaf until the tasks are one gradient.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp


def apart(params: Any, stacks: Iterable[str]) -> Any:
    """The same tree, with a tuple of layers for every leaf [L, ...] under one of the paths."""
    prefixes = tuple(f"{stack}/" for stack in stacks)

    def layers(path: Any, leaf: jax.Array) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return tuple(leaf) if name.startswith(prefixes) else leaf

    return jax.tree_util.tree_map_with_path(layers, params)


def together(tree: Any) -> Any:
    """The tree that `apart` had: layers are stacked again."""

    def is_layers(node: Any) -> bool:
        return isinstance(node, tuple)

    return jax.tree.map(
        lambda node: jnp.stack(node) if is_layers(node) else node, tree, is_leaf=is_layers
    )


def at(tree: Any, path: Any) -> Any:
    """What a tree of stacked leaves says of the leaf at a path, which may be a layer of a stack.

    A leaf without an axis says the same of all its layers.
    """
    for key in path:
        if isinstance(key, jax.tree_util.SequenceKey):
            return tree[key.idx] if jnp.ndim(tree) else tree
        tree = tree[key.key]
    return tree
