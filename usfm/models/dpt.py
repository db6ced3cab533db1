"""The dense decoder: four maps of a plain vision transformer fused to one finer map.

After DPT (Ranftl et al. 2021, arXiv 2103.13413, section 3), as M2DINO uses it for segmentation:
each tapped map is brought to its own scale, then the scales are fused from coarse to fine by
residual convolution units. Transposed convolutions whose stride equals their kernel are written as
matrix products.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from usfm.models.conv import Conv3x3


class DPT(nnx.Module):
    """Fuses taps [4, n, h, w, D] to features [n, scale * h, scale * w, features].

    Args:
        width: D, channels of the encoder's maps.
        features: channels of the result and of all stages.
        scale: resolution of the result relative to the maps: 4 or 2.
    """

    def __init__(self, width: int, features: int, scale: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.scales = tuple(s for s in (4.0, 2.0, 1.0, 0.5) if s <= scale)
        self.features = features

        def reassemble(scale: float) -> nnx.Linear:
            inputs = width if scale >= 1 else 4 * width
            outputs = features * max(int(scale), 1) ** 2
            return nnx.Linear(inputs, outputs, dtype=dtype, rngs=rngs)

        self.reassemble = nnx.List([reassemble(s) for s in self.scales])
        self.fuse = nnx.List([ResidualConvUnit(features, dtype, rngs) for _ in self.scales])

    def __call__(self, taps: jax.Array) -> jax.Array:
        """[4, n, h, w, D] to [n, scale * h, scale * w, features]."""
        # Shallow taps keep detail and become the fine scales; the finest are dropped when the
        # result is coarser.
        maps = taps[len(taps) - len(self.scales) :]
        *finer, x = map(self._rescale, maps, self.scales, self.reassemble)
        *fuse_finer, fuse = self.fuse
        x = fuse(x)
        for skip, fuse in zip(reversed(finer), reversed(fuse_finer), strict=True):
            x = fuse(skip + double(x)[:, : skip.shape[1], : skip.shape[2]])
        return x

    def _rescale(self, x: jax.Array, scale: float, project: nnx.Linear) -> jax.Array:
        """[n, h, w, D] to [n, scale * h, scale * w, features]."""
        if scale < 1:
            # An odd map is padded, and the excess cut off where it is doubled again.
            x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
            return project(_space_to_depth(x, 2))
        return _depth_to_space(project(x), int(scale))


class ResidualConvUnit(nnx.Module):
    """x + conv(relu(conv(relu x))), 3x3."""

    def __init__(self, features: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv1 = Conv3x3(features, features, dtype, rngs)
        self.conv2 = Conv3x3(features, features, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, h, w, features] to the same."""
        return x + self.conv2(jax.nn.relu(self.conv1(jax.nn.relu(x))))


def double(x: jax.Array) -> jax.Array:
    """Bilinear upsampling of [n, h, w, C] by two."""
    n, h, w, channels = x.shape
    return jax.image.resize(x, (n, 2 * h, 2 * w, channels), "bilinear")


def _depth_to_space(x: jax.Array, k: int) -> jax.Array:
    """[n, h, w, k * k * C] to [n, k * h, k * w, C]."""
    n, h, w, channels = x.shape
    x = x.reshape(n, h, w, k, k, channels // k**2)
    return jnp.moveaxis(x, 3, 2).reshape(n, h * k, w * k, -1)


def _space_to_depth(x: jax.Array, k: int) -> jax.Array:
    """[n, k * h, k * w, C] to [n, h, w, k * k * C]."""
    n, h, w, channels = x.shape
    x = x.reshape(n, h // k, k, w // k, k, channels)
    return jnp.moveaxis(x, 2, 3).reshape(n, h // k, w // k, -1)
