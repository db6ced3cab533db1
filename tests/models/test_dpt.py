"""The dense decoder: its resampling, and the shape of its result on any map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usfm.models import dpt, functional


@pytest.mark.parametrize(("scale", "used"), [(4, [True] * 4), (2, [False, True, True, True])])
def test_any_map_grows_by_the_scale_and_a_small_scale_drops_the_shallowest_tap(scale, used):
    def make(rngs):
        return dpt.DPT(6, 4, scale, jnp.dtype("float32"), rngs)

    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape, np.float32),
        jax.eval_shape(lambda key: functional.init(make, key), jax.random.key(0)),
    )
    decoder = functional.merge(functional.structure(make), params)

    @jax.jit
    def run(taps):
        out, pull_back = jax.vjp(decoder, taps)
        return out, pull_back(out)[0]

    odd = rng.standard_normal((4, 2, 3, 5, 6), np.float32)
    out, gradient = run(odd)
    assert out.shape == (2, scale * 3, scale * 5, 4)
    assert jnp.isfinite(out).all()
    assert [bool(jnp.abs(tap).max() > 0) for tap in gradient] == used


def test_depth_to_space_is_a_transposed_convolution():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    kernel = jax.random.normal(jax.random.key(1), (5, 2, 2, 6))  # in, rows, columns, out
    out = dpt._depth_to_space(x @ kernel.reshape(5, -1), 2)
    expected = np.einsum("nijc,cabo->niajbo", np.asarray(x), np.asarray(kernel)).reshape(2, 6, 8, 6)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_space_to_depth_undoes_depth_to_space():
    x = jnp.arange(2 * 2 * 3 * 8.0).reshape(2, 2, 3, 8)
    np.testing.assert_array_equal(dpt._space_to_depth(dpt._depth_to_space(x, 2), 2), x)


def test_doubling_keeps_a_linear_ramp_inside():
    ramp = jnp.arange(5.0)[None, None, :, None] * jnp.ones((1, 2, 1, 1))
    doubled = dpt.double(ramp)[0, 0, :, 0]
    np.testing.assert_allclose(doubled[1:-1], np.arange(1, 9) / 2 - 0.25, atol=1e-6)
