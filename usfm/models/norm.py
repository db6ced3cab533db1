"""Layer normalisation, whose automatic derivative keeps more than it needs."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from usfm.models.activation import precise


class LayerNorm(nnx.LayerNorm):
    """That of flax; its derivative keeps the inputs and two numbers a row.

    Left to automatic differentiation, it keeps two more arrays as large as the inputs. Both are
    computed in float32 at least: variances of bfloat16 activations are not to be trusted.
    """

    def __init__(self, features: int, rngs: nnx.Rngs):
        super().__init__(features, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] to [..., D] of the precise type."""
        assert self.scale is not None  # nor is the bias, unless that is asked for
        assert self.bias is not None
        return _normalise(self.epsilon, x, self.scale[...], self.bias[...])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalise(epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    return _forward(epsilon, x, scale, bias)[0]


def _forward(
    epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    precise_x = x.astype(precise(x.dtype))
    mean = precise_x.mean(axis=-1, keepdims=True)
    variance = jnp.square(precise_x).mean(axis=-1, keepdims=True) - jnp.square(mean)
    factor = jax.lax.rsqrt(jnp.maximum(variance, 0) + epsilon)
    return (precise_x - mean) * factor * scale + bias, (x, scale, mean, factor)


def _backward(
    epsilon: float, kept: tuple[jax.Array, ...], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, mean, factor = kept
    rows = tuple(range(x.ndim - 1))
    normal = (x - mean) * factor
    along = cotangent * normal
    shift = (cotangent * scale).mean(axis=-1, keepdims=True)
    stretch = (along * scale).mean(axis=-1, keepdims=True)
    of_x = factor * (cotangent * scale - shift - normal * stretch)
    return of_x.astype(x.dtype), along.sum(axis=rows), cotangent.sum(axis=rows)


_normalise.defvjp(_forward, _backward)
