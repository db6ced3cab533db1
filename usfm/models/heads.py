"""Decoders, shared by all tasks of a type, and heads, one a task: from patch maps to answers.

A decoder turns the tapped maps [4, n, h, w, D] into features; a head is one linear layer on them,
so that the heads of a type stack into one array, padded to its widest task. The functions at the
end turn a head's raw output into the outputs that losses and predictions read; all coordinates are
pixel / image size.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from usfm.models.activation import precise
from usfm.models.dpt import DPT, double
from usfm.models.norm import LayerNorm

Outputs = dict[str, Any]
# Logits of padded classes: no probability, and finite, so that no gradient becomes NaN.
MASKED = -1e9


class SegmentationDecoder(nnx.Module):
    """DPT to a quarter of the image's size, then doubled: features [n, 8h, 8w, features / 2]."""

    def __init__(self, width: int, features: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.dpt = DPT(width, features, 4, dtype, rngs)
        self.project = nnx.Linear(features, features // 2, dtype=dtype, rngs=rngs)
        self.head_inputs = features // 2

    def __call__(self, taps: jax.Array) -> jax.Array:
        """[4, n, h, w, D] to [n, 8h, 8w, features / 2]."""
        return jax.nn.gelu(double(self.project(self.dpt(taps))))


class ClassificationDecoder(nnx.Module):
    """Attention pooling over the patches of the last map: features [n, features].

    One learned query a head of up to 64 channels attends to all patches (as the pooling of SigLIP,
    arXiv 2303.15343).
    """

    def __init__(self, width: int, features: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.heads = max(1, features // 64)
        self.query = nnx.Param(
            nnx.initializers.truncated_normal(0.02)(
                rngs.params(), (self.heads, features // self.heads)
            )
        )
        self.key = nnx.Linear(width, features, use_bias=False, dtype=dtype, rngs=rngs)
        self.value = nnx.Linear(width, features, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(features, rngs)
        self.head_inputs = features

    def __call__(self, taps: jax.Array) -> jax.Array:
        """[4, n, h, w, D] to [n, features]."""
        x = taps[-1].reshape(taps.shape[1], -1, taps.shape[-1])
        keys, values = (f(x).reshape(*x.shape[:2], self.heads, -1) for f in (self.key, self.value))
        logits = jnp.einsum("nphd,hd->nph", keys, self.query[...].astype(keys.dtype))
        weights = jax.nn.softmax(logits.astype(precise(logits.dtype)), axis=1).astype(values.dtype)
        pooled = jnp.einsum("nph,nphd->nhd", weights, values).reshape(x.shape[0], -1)
        return self.norm(pooled).astype(pooled.dtype)


class DenseDecoder(nnx.Module):
    """DPT to `scale` cells a patch and side: features [n, scale h, scale w, features]."""

    def __init__(self, width: int, features: int, dtype: jnp.dtype, rngs: nnx.Rngs, *, scale: int):
        self.dpt = DPT(width, features, scale, dtype, rngs)
        self.head_inputs = features

    def __call__(self, taps: jax.Array) -> jax.Array:
        """[4, n, h, w, D] to [n, scale h, scale w, features]."""
        # Behind a ReLU, up to a sixth of the landmarks' features came to be zero everywhere.
        return jax.nn.gelu(self.dpt(taps))


Decoder = SegmentationDecoder | ClassificationDecoder | DenseDecoder
# Each made by (D, features, dtype, rngs).
DECODERS: dict[str, Callable[..., Decoder]] = {
    "classification": ClassificationDecoder,
    "detection": functools.partial(DenseDecoder, scale=2),
    "regression": functools.partial(DenseDecoder, scale=4),
    "segmentation": SegmentationDecoder,
}


def segmentation(raw: jax.Array, real: jax.Array, image_size: tuple[int, int]) -> Outputs:
    """Class logits at image size.

    Args:
        raw: [n, h, w, C], C the padded number of classes.
        real: bool [C], the classes that the task has.
        image_size: (H, W).

    Returns:
        logits float32 [n, H, W, C] and classes bool [C].
    """
    logits = jax.image.resize(
        raw.astype(precise(raw.dtype)), (raw.shape[0], *image_size, raw.shape[-1]), "bilinear"
    )
    return {"logits": jnp.where(real, logits, MASKED), "classes": real}


def classification(raw: jax.Array, real: jax.Array) -> Outputs:
    """Class logits float32 [n, C] and classes bool [C], from raw [n, C]."""
    return {"logits": jnp.where(real, raw.astype(precise(raw.dtype)), MASKED), "classes": real}


def detection(raw: jax.Array) -> Outputs:
    """An anchor-free detector's maps (as CenterNet, arXiv 1904.07850, and FCOS, 1904.01355).

    Args:
        raw: [n, h, w, 5].

    Returns:
        heat: float32 [n, h, w], logits of a box's centre being in the cell.
        boxes: float32 [n, h, w, 4], the box that each cell sees: its centre less and plus four
            distances.
    """
    raw = raw.astype(precise(raw.dtype))
    h, w = raw.shape[1:3]
    centre = cell_centres(h, w)
    # A quarter of the image times softplus: boxes start at a third of the image's size.
    near, far = jnp.split(0.25 * jax.nn.softplus(raw[..., 1:]), 2, axis=-1)
    return {"heat": raw[..., 0], "boxes": jnp.concatenate([centre - near, centre + far], axis=-1)}


def detection_bias(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """A head that starts by seeing no box: a centre in 1 of 100 cells (RetinaNet, 1708.02002)."""
    del key
    return jnp.zeros(shape, dtype).at[0].set(-4.6)


def regression(raw: jax.Array, real: jax.Array) -> Outputs:
    """Landmarks as the mean position under a heat map's softmax (DSNT, arXiv 1801.07372).

    Args:
        raw: [n, h, w, K], K the padded number of points.
        real: bool [K], the points that the task has.

    Returns:
        heat: float32 [n, h, w, K] logits; points: float32 [n, K, 2] as x, y; real: bool [K].
    """
    heat = raw.astype(precise(raw.dtype))
    n, h, w, k = heat.shape
    weights = jax.nn.softmax(heat.reshape(n, h * w, k), axis=1)
    points = jnp.einsum("npk,pc->nkc", weights, cell_centres(h, w).reshape(h * w, 2))
    return {"heat": heat, "points": points, "real": real}


def cell_centres(h: int, w: int) -> jax.Array:
    """float32 [h, w, 2]: x, y of the centres of a grid's cells."""
    y, x = jnp.meshgrid((jnp.arange(h) + 0.5) / h, (jnp.arange(w) + 0.5) / w, indexing="ij")
    return jnp.stack([x, y], axis=-1)
