"""Muon (Jordan et al. 2024): orthogonalised momentum for hidden matrices, and Adam for all else.

A step is as large as Adam's usually are, a root mean square of .2 (arXiv 2502.16982, eq. 4), so
that one learning rate and one weight decay serve both.
"""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from usfm.models.functional import path_name

by_path = jax.tree_util.tree_map_with_path

# Each multiplies small singular values by 3.4, so three are enough for some hundred rows.
NEWTON_SCHULZ_STEPS = 3
ROOT_MEAN_SQUARE = 0.2
BETA = 0.95  # decay of the momentum


def make(adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """The directions of the parameters' steps.

    Args:
        adam: what scales the gradients of all but the hidden matrices.
    """
    orthogonal = optax.contrib.scale_by_muon(
        ns_steps=NEWTON_SCHULZ_STEPS, beta=BETA, weight_dimension_numbers=_dimension_numbers
    )

    def sized(path: Any, update: jax.Array) -> jax.Array:
        return update * ROOT_MEAN_SQUARE * math.sqrt(max(_sides(path, update)))

    def labels(params: Any) -> Any:
        return by_path(lambda path, _: "muon" if is_hidden(path_name(path)) else "adam", params)

    resized = optax.stateless(lambda updates, _: by_path(sized, updates))
    return optax.partition({"muon": optax.chain(orthogonal, resized), "adam": adam}, labels)


def step_sizes(opt_state: Any) -> Any:
    """A factor for each hidden matrix: the norm of its step over the norm of its momentum.

    Orthogonalising is no product with a gradient, but this says how much longer a matrix's step is
    than what it was made of. float32, such as [L, 1, 1] for a stack of layers.
    """
    muon = optax.tree.get(opt_state, "MuonState")
    unbiased = 1 / (1 - BETA**muon.count)

    def size(path: Any, momentum: jax.Array) -> jax.Array:
        squares = jnp.sum((momentum * unbiased) ** 2, _matrix(path, momentum), keepdims=True)
        step = ROOT_MEAN_SQUARE * math.sqrt(math.prod(_sides(path, momentum)))
        return step / (jnp.sqrt(squares) + 1e-8)

    return by_path(size, muon.mu)


def merged(adam: Any, muon: Any) -> Any:
    """One tree from two, each of which has no leaves where the other has."""

    def masked(leaf: Any) -> bool:
        return isinstance(leaf, optax.MaskedNode)

    return jax.tree.map(lambda a, m: m if masked(a) else a, adam, muon, is_leaf=masked)


def is_hidden(name: str) -> bool:
    """Whether a parameter is a matrix between the patches and the heads, and no router's."""
    return re.match(r"(encoder/(moe_)?blocks|decoders)/(?!.*router/).*/kernel$", name) is not None


def _matrix(path: Any, leaf: jax.Array) -> tuple[int, ...]:
    """The axes of a hidden matrix, its outputs last; the others count layers or experts.

    A decoder's convolution is one matrix, whose inputs are all of its window.
    """
    axes = tuple(range(leaf.ndim))
    return axes if path_name(path).startswith("decoders/") else axes[-2:]


def _sides(path: Any, leaf: jax.Array) -> tuple[int, int]:
    """The numbers of a hidden matrix's inputs and outputs."""
    *inputs, outputs = (leaf.shape[axis] for axis in _matrix(path, leaf))
    return math.prod(inputs), outputs


def _dimension_numbers(params: Any) -> Any:
    def numbers(path: Any, leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers:
        *inputs, outputs = _matrix(path, leaf)
        return optax.contrib.MuonDimensionNumbers(tuple(inputs), (outputs,))

    return by_path(numbers, params)
