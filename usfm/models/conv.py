"""3 x 3 convolutions whose kernels' gradients are matrix products.

A kernel's gradients by task, written as convolutions, are one in groups. XLA's CPU backend has no
fast code for it (two to three plain gradients under `vmap`, up to forty in a loop:
docs/benchmarks.md), and its partitioner was seen to make a wrong one on a mesh (jax 0.10.2). As
products of the shifted inputs and the outputs' cotangents they cost what a plain gradient does.
"""

import jax
import jax.numpy as jnp
from flax import nnx


class Conv3x3(nnx.Module):
    """[n, h, w, C] to [n, h, w, features], zeros outside of the map.

    Args:
        inputs: C.
        features: channels of the result.
        dtype: of the computation; parameters are float32.
        rngs: of the kernel [3, 3, C, features].
    """

    def __init__(self, inputs: int, features: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        initial = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(initial(rngs.params(), (3, 3, inputs, features)))
        self.bias = nnx.Param(jnp.zeros(features))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, h, w, C] to [n, h, w, features]."""
        x, kernel, bias = (
            jnp.asarray(a, self.dtype) for a in (x, self.kernel[...], self.bias[...])
        )
        return convolve(x, kernel) + bias


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[n, h, w, C] and [3, 3, C, F] to [n, h, w, F], stride 1, zeros outside of the map."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve(x, kernel), (x, kernel)


def _backward(
    saved: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    return convolve(cotangent, turned), _of_kernel(x, cotangent)


def _of_kernel(x: jax.Array, cotangent: jax.Array) -> jax.Array:
    """[3, 3, C, F] in one product: three shifts along a row of x, three of the cotangent across."""
    width = x.shape[2]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    columns = jnp.concatenate([x[:, :, left : left + width] for left in range(3)], -1)
    # Shifting the cotangent leaves x as it lies: rows cut out of it would be copied.
    rows = [jnp.pad(cotangent, ((0, 0), (top, 2 - top), (0, 0), (0, 0))) for top in range(3)]
    product = jnp.einsum("nhwf,nhwk->fk", jnp.concatenate(rows, -1), columns)
    return product.reshape(3, cotangent.shape[-1], 3, x.shape[-1]).transpose(0, 2, 3, 1)


convolve.defvjp(_forward, _backward)
