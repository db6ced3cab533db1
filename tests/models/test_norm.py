import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from usfm.models.norm import LayerNorm


@pytest.fixture
def inputs():
    """Rows of different means and spreads, scale and bias."""
    chance = np.random.default_rng(0)
    x = chance.normal(size=(3, 4, 6)) * chance.uniform(0.1, 10, (3, 4, 1)) + 3
    return x, chance.normal(size=6), chance.normal(size=6)


def ours(x, scale, bias):
    norm = LayerNorm(6, nnx.Rngs(0))
    norm.scale, norm.bias = nnx.Param(scale), nnx.Param(bias)
    return norm(x)


def of_flax(x, scale, bias):
    norm = nnx.LayerNorm(6, epsilon=1e-5, dtype=scale.dtype, rngs=nnx.Rngs(0))
    norm.scale, norm.bias = nnx.Param(scale), nnx.Param(bias)
    return norm(x)


def once(function):
    return lambda *inputs: jnp.sin(function(*inputs)).sum()


def by_slot(function):
    """Derivatives of each of the first axis, as task gradients are, differentiated again."""

    def mapped(x, scale, bias):
        derivatives = jax.vmap(jax.grad(once(function), (1, 2)), (0, None, None))(x, scale, bias)
        return sum(jnp.square(of).sum() for of in derivatives)

    return mapped


@pytest.mark.parametrize("use", [once, by_slot])
def test_it_and_its_derivatives_are_those_of_flax(inputs, use):
    with jax.enable_x64(True):
        inputs = [jnp.asarray(a, jnp.float64) for a in inputs]
        ours_, theirs = (
            jax.value_and_grad(use(function), (0, 1, 2))(*inputs) for function in (ours, of_flax)
        )
    for mine, other in zip(jax.tree.leaves(ours_), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-10, atol=1e-10)


def test_of_bfloat16_it_is_computed_in_float32_and_its_derivative_comes_as_the_inputs(inputs):
    x, scale, bias = (jnp.asarray(a, jnp.float32) for a in inputs)
    x = x.astype(jnp.bfloat16)
    np.testing.assert_allclose(ours(x, scale, bias), of_flax(x, scale, bias), rtol=1e-5, atol=1e-5)
    assert ours(x, scale, bias).dtype == jnp.float32
    derivatives = jax.grad(once(ours), (0, 1, 2))(x, scale, bias)
    assert [a.dtype for a in derivatives] == [jnp.bfloat16, jnp.float32, jnp.float32]


def test_equal_numbers_have_derivatives_too(inputs):
    _, scale, bias = (jnp.asarray(a, jnp.float32) for a in inputs)
    value, derivatives = jax.value_and_grad(once(ours), (0, 1, 2))(
        jnp.full((2, 6), 0.1), scale, bias
    )
    assert all(np.isfinite(a).all() for a in (value, *derivatives))


def test_its_derivative_keeps_no_array_as_large_as_the_inputs_but_these(inputs):
    x, scale, bias = (jnp.asarray(a, jnp.float32) for a in inputs)
    _, derivative = jax.vjp(ours, x, scale, bias)
    large = [a for a in jax.tree.leaves(derivative) if jnp.size(a) >= x.size]
    assert len(large) == 1
    np.testing.assert_array_equal(large[0], x)
