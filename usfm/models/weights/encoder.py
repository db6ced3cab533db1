"""A pretrained encoder as a function of images."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp

from usfm.errors import UserError
from usfm.models import functional
from usfm.models.dinov3 import PATCH, DINOv3, Variant
from usfm.models.functional import Params
from usfm.models.weights.reading import read


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """A DINOv3 encoder with its parameters."""

    variant: Variant
    params: Params

    def __call__(self, images: jax.typing.ArrayLike) -> dict[str, jax.Array]:
        """Encodes images; compiled once for each shape.

        Args:
            images: float32 [B, H, W, 3], normalised by ImageNet's mean and standard deviation; H
                and W are multiples of 16.

        Returns:
            tokens: float32 [B, 1 + 4 + N, D] after the final norm: CLS, registers, and the N
                patches, row by row.
            maps: float32 [layers, B, H / 16, W / 16, D], the patches after every layer, each
                through the same norm.

        Raises:
            UserError: the images are of another shape or type.
        """
        images = jnp.asarray(images)
        batch, height, width, channels = images.shape if images.ndim == 4 else (0, 1, 1, 1)
        if channels != 3 or height % PATCH or width % PATCH or not min(batch, height, width):
            raise UserError(
                f"images are {list(images.shape)}; the encoder reads [B, H, W, 3], H and W "
                f"multiples of {PATCH}"
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(f"images are {images.dtype}; the encoder reads normalised float32")
        return _encode(self.variant, self.params, images.astype(jnp.float32))


def load_encoder(path: str | pathlib.Path) -> Encoder:
    """Loads the weights of a DINOv3 encoder of any size, for JAX's default device.

    Args:
        path: as `read` takes it.

    Raises:
        UserError: the file does not hold such an encoder; it lists every name that does not fit.
    """
    variant, params = read(path)
    return Encoder(variant, jax.device_put(params))


@functools.partial(jax.jit, static_argnums=0)
def _encode(variant: Variant, params: Params, images: jax.Array) -> dict[str, jax.Array]:
    structure = functional.structure(lambda rngs: DINOv3(variant, jnp.dtype("float32"), rngs))
    # Accelerators would round the factors of float32 products to fewer bits.
    with jax.default_matmul_precision("highest"):
        model = functional.merge(structure, params)
        encoded = model(images, tuple(range(variant.layers)))
    return {"tokens": encoded.tokens, "maps": encoded.maps}
