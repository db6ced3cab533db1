"""Convolutions whose kernels' gradients are products: those of lax's convolution, also by slot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from usfm.models.conv import Conv3x3, convolve


def plain(x, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)


@pytest.mark.parametrize("shape", [(2, 4, 7, 5), (1, 1, 1, 5), (3, 2, 6, 5)])
def test_gradients_are_those_of_the_convolution(shape):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, kernel = rng.standard_normal(shape), rng.standard_normal((3, 3, 5, 4))
        cotangent = rng.standard_normal((*shape[:3], 4))
        out, pull_back = jax.vjp(convolve, x, kernel)
        expected, pull_back_plain = jax.vjp(plain, x, kernel)
        np.testing.assert_allclose(out, expected, rtol=1e-12)
        for got, want in zip(pull_back(cotangent), pull_back_plain(cotangent), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)


def test_gradients_by_slot_are_those_of_each_slot():
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        x, kernel = rng.standard_normal((3, 2, 4, 5, 6)), rng.standard_normal((3, 3, 6, 6))

        def gradient(function):
            return jax.grad(lambda k, x: jnp.sin(function(x, k)).sum())

        together = jax.vmap(gradient(convolve), (None, 0))(kernel, x)
        in_turn = jax.lax.map(lambda own: gradient(convolve)(kernel, own), x)
        one_by_one = jnp.stack([gradient(plain)(kernel, own) for own in x])
        np.testing.assert_allclose(together, one_by_one, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(in_turn, one_by_one, rtol=1e-11, atol=1e-11)


def test_it_begins_and_computes_like_flax():
    ours = Conv3x3(5, 4, jnp.dtype("bfloat16"), nnx.Rngs(0))
    flax = nnx.Conv(5, 4, (3, 3), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(2).standard_normal((2, 4, 5, 5), np.float32))
    out = ours(x)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, flax(x))
    assert ours.kernel[...].dtype == ours.bias[...].dtype == jnp.float32
