"""Modules taken apart into plain parameters, put together again, stacked and scanned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from usfm.models import functional


class Scaled(nnx.Module):
    """A linear layer in a list, and a parameter that may be absent."""

    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs)])
        self.scale = nnx.Param(jnp.full(3, 0.5))
        self.shift = None

    def __call__(self, x: jax.Array, offset: jax.Array | float) -> jax.Array:
        return jnp.tanh(self.layers[0](x) * self.scale[...]) + offset


X = jnp.arange(6.0).reshape(2, 3)


def test_parameters_are_plain_nested_dicts():
    def is_plain(tree) -> bool:
        return isinstance(tree, jax.Array) or (
            type(tree) is dict and all(is_plain(child) for child in tree.values())
        )

    params = functional.init(Scaled, jax.random.key(0))
    assert is_plain(params)
    paths = [jax.tree_util.keystr(p, simple=True, separator="/")
             for p, _ in jax.tree_util.tree_leaves_with_path(params)]  # fmt: skip
    assert paths == ["layers/0/bias", "layers/0/kernel", "scale"]


def test_parameters_are_those_that_flax_would_draw():
    _, expected = functional.split(Scaled(nnx.Rngs(7)))
    drawn = functional.init(Scaled, jax.random.key(7))
    jax.tree.map(np.testing.assert_array_equal, drawn, expected)


def test_merge_is_the_inverse_of_split():
    module = Scaled(nnx.Rngs(0))
    graphdef, params = functional.split(module)
    np.testing.assert_array_equal(functional.merge(graphdef, params)(X, 1.0), module(X, 1.0))
    doubled = {**params, "scale": 2 * params["scale"]}
    again = functional.split(functional.merge(graphdef, doubled))[1]
    np.testing.assert_array_equal(again["scale"], 2 * params["scale"])


def test_structure_builds_no_arrays_and_fits_the_parameters():
    structure = functional.structure(Scaled)
    params = functional.init(Scaled, jax.random.key(3))
    expected = Scaled(nnx.Rngs(jax.random.key(3)))(X, 0.0)
    np.testing.assert_array_equal(functional.merge(structure, params)(X, 0.0), expected)


def test_stacked_modules_start_apart():
    params = functional.init_stacked(Scaled, 3, jax.random.key(0))
    kernels = params["layers"][0]["kernel"]
    assert kernels.shape == (3, 3, 3)
    assert (kernels[0] != kernels[1]).all()
    assert (kernels[1] != kernels[2]).all()


class Layer(Scaled):
    """One that also takes something of its own, and says something aside."""

    def __call__(self, x, own, offset):
        x = super().__call__(x, offset)
        return x if own is None else own * x, x.sum()


def one_by_one(params, x, own):
    """Layers 1 and 2 of a stack, in a plain loop."""
    structure, asides = functional.structure(Layer), []
    for layer in (1, 2):
        of_layer = jax.tree.map(lambda leaf, i=layer: leaf[i], params)
        x, aside = functional.merge(structure, of_layer)(x, own[layer - 1], 0.25)
        asides.append(aside)
    return x, jnp.stack(asides)


@pytest.mark.parametrize("remat", functional.REMAT)
def test_scan_runs_the_layers_asked_for_in_order_and_so_do_its_gradients(remat):
    params = functional.init_stacked(Layer, 4, jax.random.key(0))
    own = jnp.array([2.0, 3.0])

    def scanned(params, x, own):
        stack = functional.merge(functional.structure(Layer), params)
        return functional.scan(stack, x, 0.25, each=own, start=1, stop=3, remat=remat)

    def with_gradients(f):
        out, pull_back = jax.vjp(f, params, X, own)
        return out, pull_back((jnp.cos(X), jnp.ones(2)))

    actual, expected = jax.jit(lambda: (with_gradients(scanned), with_gradients(one_by_one)))()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), actual, expected
    )


def test_remat_by_name_saves_what_it_says():
    def saved(remat: str) -> int:
        """Numbers that the forward pass hands to the backward pass."""
        params = functional.init_stacked(Layer, 4, jax.random.key(0))
        structure = functional.structure(Layer)

        def run(params, x):
            stack = functional.merge(structure, params)
            return functional.scan(stack, x, 0.25, start=0, stop=4, remat=remat)[0]

        return sum(leaf.size for leaf in jax.tree.leaves(jax.vjp(run, params, X)[1]))

    assert saved("full") < saved("dots") < saved("none")
