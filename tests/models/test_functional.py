"""Modules taken apart into plain parameters, put together again, stacked and scanned."""

import jax
import jax.numpy as jnp
import numpy as np
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


def test_scan_runs_the_layers_asked_for_in_order():
    stack = functional.stacked(Scaled, 4, jax.random.key(0))
    params = functional.split(stack)[1]
    structure = functional.structure(Scaled)
    x = X
    for layer in (1, 2):
        of_layer = jax.tree.map(lambda leaf, i=layer: leaf[i], params)
        x = functional.merge(structure, of_layer)(x, 0.25)
    scanned = functional.scan(stack, X, 0.25, start=1, stop=3)
    np.testing.assert_allclose(scanned, x, rtol=1e-5)
