import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from usfm.models.lora import Linear, LoRA


def linear(lora, dtype):
    """A layer of 5 to 4 whose arrays are all random."""
    layer, chance = Linear(5, 4, lora, jnp.dtype(dtype), nnx.Rngs(0)), np.random.default_rng(0)
    structure, params = nnx.split(layer)
    params = jax.tree.map(lambda a: jnp.asarray(chance.normal(size=a.shape)), params)
    return structure, params


@pytest.mark.parametrize("lora", [LoRA(), LoRA(rank=2)], ids=["plain", "lora"])
def test_a_scale_in_the_kernel_is_one_on_the_outputs(lora):
    def inside(params, x, scale):
        return jnp.sin(nnx.merge(structure, params)(x, scale)).sum()

    def outside(params, x, scale):
        return jnp.sin(scale * nnx.merge(structure, params)(x)).sum()

    with jax.enable_x64(True):
        structure, params = linear(lora, jnp.float64)
        x, scale = jnp.linspace(-1, 2, 15).reshape(3, 5), jnp.array([0.5, 2.0, 1e-5, -3.0])
        ours, theirs = (
            jax.value_and_grad(f, (0, 1, 2))(params, x, scale) for f in (inside, outside)
        )
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-10, atol=1e-10)


def test_a_scaled_kernel_is_rounded_once():
    structure, params = linear(LoRA(), jnp.bfloat16)
    y = nnx.merge(structure, params)(jnp.ones((1, 5)), jnp.full(4, 1 / 3))
    assert y.dtype == jnp.bfloat16
    kernel = (params["kernel"][...] / 3).astype(jnp.bfloat16)
    bias = (params["bias"][...] / 3).astype(jnp.bfloat16)
    np.testing.assert_array_equal(y, jnp.ones((1, 5), jnp.bfloat16) @ kernel + bias)
