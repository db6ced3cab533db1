"""The DINOv3 vision transformer (arXiv 2508.10104), every published size and a tiny one.

Written from the published architecture: patch embedding, one CLS and four register tokens, rotary
positions on the patch tokens only, LayerScale, GELU (exact) or SwiGLU. Parameters are those of the
official checkpoints; the q, k and v projections are stored as one matrix.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from usfm.models import functional

PATCH = 16
REGISTERS = 4
PREFIX = 1 + REGISTERS  # CLS and registers stand before the patch tokens.
ROPE_BASE = 100.0

_weight = nnx.initializers.truncated_normal(0.02)


@dataclasses.dataclass(frozen=True)
class Variant:
    """The numbers that tell one published encoder from another."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    gated: bool = False  # SwiGLU instead of GELU
    qv_bias: bool = True
    layer_scale: float = 1e-5  # initial value

    @property
    def taps(self) -> tuple[int, int, int, int]:
        """The four layers (0-based) whose outputs feed dense decoders, evenly spread."""
        a, b, c, d = (self.layers * quarter // 4 - 1 for quarter in (1, 2, 3, 4))
        return a, b, c, d


VARIANTS = {
    # For CPUs, tests and first looks: the same code with small numbers. It is trained from
    # scratch, where a LayerScale of 1e-5 would only delay learning.
    "tiny": Variant(192, 4, 3, 768, layer_scale=0.1),
    "vits16": Variant(384, 12, 6, 1536),
    "vits16plus": Variant(384, 12, 6, 1536, gated=True),
    "vitb16": Variant(768, 12, 12, 3072),
    "vitl16": Variant(1024, 24, 16, 4096),
    "vitl16plus": Variant(1024, 24, 16, 4096, gated=True),
    "vith16plus": Variant(1280, 32, 20, 5120, gated=True),
    "vit7b16": Variant(4096, 40, 32, 8192, gated=True, qv_bias=False),
}


class Attention(nnx.Module):
    """Multi-head self-attention with rotary positions; no bias on the keys."""

    def __init__(self, variant: Variant, dtype: jnp.dtype, rngs: nnx.Rngs):
        width, self.heads = variant.width, variant.heads
        self.qkv = nnx.Linear(
            width, 3 * width, use_bias=False, kernel_init=_weight, dtype=dtype, rngs=rngs
        )
        self.q_bias = nnx.Param(jnp.zeros(width)) if variant.qv_bias else None
        self.v_bias = nnx.Param(jnp.zeros(width)) if variant.qv_bias else None
        self.out = nnx.Linear(width, width, kernel_init=_weight, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
        """[B, N, D] to [B, N, D]; rope as `rotary` makes it."""
        q, k, v = jnp.split(self.qkv(x), 3, axis=-1)
        if self.q_bias is not None and self.v_bias is not None:
            q, v = q + self.q_bias[...].astype(q.dtype), v + self.v_bias[...].astype(v.dtype)
        q, k, v = (a.reshape(*a.shape[:-1], self.heads, -1) for a in (q, k, v))
        q, k = rotate(q, *rope), rotate(k, *rope)
        x = jax.lax.platform_dependent(q, k, v, cpu=_attend_cpu, default=_attend)
        return self.out(x.reshape(*x.shape[:-2], -1))


def _attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k' / sqrt(d)) v for [B, N, heads, d]."""
    return jax.nn.dot_product_attention(q, k, v)


def _attend_cpu(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """The same as plain batched products, several times faster on XLA's CPU backend.

    Dividing by the softmax's sum after the second product touches d numbers a row instead of N.
    """
    q, k, v = (jnp.moveaxis(a, -2, -3) for a in (q * q.shape[-1] ** -0.5, k, v))
    logits = q @ jnp.swapaxes(k, -1, -2)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    x = (weights @ v) / weights.sum(axis=-1, keepdims=True)
    return jnp.moveaxis(x, -3, -2)


class MLP(nnx.Module):
    """down(gelu(up x)), or down(silu(gate x) * up x) where gated."""

    def __init__(self, variant: Variant, dtype: jnp.dtype, rngs: nnx.Rngs):
        def linear(inputs: int, outputs: int) -> nnx.Linear:
            return nnx.Linear(inputs, outputs, kernel_init=_weight, dtype=dtype, rngs=rngs)

        self.gate = linear(variant.width, variant.mlp_width) if variant.gated else None
        self.up = linear(variant.width, variant.mlp_width)
        self.down = linear(variant.mlp_width, variant.width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] to [..., D]."""
        if self.gate is None:
            return self.down(jax.nn.gelu(self.up(x), approximate=False))
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """x += ls1 * attention(norm1 x); x += ls2 * mlp(norm2 x)."""

    def __init__(self, variant: Variant, dtype: jnp.dtype, rngs: nnx.Rngs):
        width = variant.width
        self.norm1 = _norm(width, rngs)
        self.attn = Attention(variant, dtype, rngs)
        self.layer_scale1 = nnx.Param(jnp.full(width, variant.layer_scale))
        self.norm2 = _norm(width, rngs)
        self.mlp = MLP(variant, dtype, rngs)
        self.layer_scale2 = nnx.Param(jnp.full(width, variant.layer_scale))

    def __call__(self, x: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
        """[B, N, D] to [B, N, D]; rope as `rotary` makes it."""
        scale1 = self.layer_scale1[...].astype(x.dtype)
        scale2 = self.layer_scale2[...].astype(x.dtype)
        x = x + scale1 * self.attn(self.norm1(x).astype(x.dtype), rope)
        return x + scale2 * self.mlp(self.norm2(x).astype(x.dtype))


class DINOv3(nnx.Module):
    """The encoder: normalised images in, patch maps of the tapped layers out."""

    def __init__(self, variant: Variant, dtype: jnp.dtype, rngs: nnx.Rngs):
        width = variant.width
        self.variant, self.dtype = variant, dtype
        self.patch_embed = nnx.Linear(
            PATCH * PATCH * 3, width, kernel_init=_weight, dtype=dtype, rngs=rngs
        )
        self.cls_token = nnx.Param(_weight(rngs.params(), (1, width)))
        self.register_tokens = nnx.Param(_weight(rngs.params(), (REGISTERS, width)))
        self.mask_token = nnx.Param(jnp.zeros((1, width)))
        self.blocks = functional.stacked(
            lambda rngs: Block(variant, dtype, rngs), variant.layers, rngs.params()
        )
        self.norm = _norm(width, rngs)

    def __call__(
        self, images: jax.Array, taps: tuple[int, ...], rope_scale: jax.Array | float = 1.0
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes a batch of images.

        Args:
            images: float32 [B, H, W, 3], normalised; H and W are multiples of 16.
            taps: 0-based layers, rising, whose outputs are wanted.
            rope_scale: factor on all patch coordinates (a training-time augmentation).

        Returns:
            tokens [B, 1 + 4 + h * w, D] after the final norm, and maps [len(taps), B, h, w, D],
            each through the same norm, without CLS and registers; h = H / 16, w = W / 16.
        """
        batch, height, width = images.shape[0], images.shape[1] // PATCH, images.shape[2] // PATCH
        prefix = jnp.concatenate([self.cls_token[...], self.register_tokens[...]])
        prefix = jnp.broadcast_to(prefix.astype(self.dtype), (batch, *prefix.shape))
        x = jnp.concatenate([prefix, self.patch_embed(patches(images))], axis=1)

        head_dim = self.variant.width // self.variant.heads
        rope = rotary(height, width, head_dim, rope_scale)
        maps, done = [], 0
        for tap in taps:
            x = functional.scan(self.blocks, x, rope, start=done, stop=tap + 1)
            done = tap + 1
            maps.append(self.norm(x)[:, PREFIX:].reshape(batch, height, width, -1))
        if done < self.variant.layers:
            x = functional.scan(self.blocks, x, rope, start=done, stop=self.variant.layers)
        return self.norm(x), jnp.stack(maps)


def patches(images: jax.Array) -> jax.Array:
    """[B, H, W, 3] to [B, h * w, 16 * 16 * 3], row-major: a stride-16 convolution's input."""
    batch, height, width, channels = images.shape
    x = images.reshape(batch, height // PATCH, PATCH, width // PATCH, PATCH, channels)
    return jnp.moveaxis(x, 2, 3).reshape(batch, -1, PATCH * PATCH * channels)


def rotary(
    height: int, width: int, head_dim: int, scale: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines, float32 [5 + h * w, head_dim], of the rotary positions.

    Patch centres are normalised to [-1, 1] on each axis by itself; half of the angles turn with
    the row and half with the column. Prefix tokens are not turned: cosine 1, sine 0.
    """
    rows = 2 * (jnp.arange(height) + 0.5) / height - 1
    columns = 2 * (jnp.arange(width) + 0.5) / width - 1
    centres = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    frequencies = ROPE_BASE ** (-4 * jnp.arange(head_dim // 4) / head_dim)
    angles = 2 * jnp.pi * (centres * scale)[:, :, None] * frequencies
    angles = jnp.tile(angles.reshape(height * width, -1), 2)
    angles = jnp.pad(angles, ((PREFIX, 0), (0, 0)))
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns [B, N, heads, d] by halves, in float32."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([-b, a], axis=-1)
    x32 = x.astype(jnp.float32)
    return (x32 * cos[:, None] + turned * sin[:, None]).astype(x.dtype)


def _norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # float32 whatever the compute type: variances of bfloat16 activations are not to be trusted.
    return nnx.LayerNorm(width, epsilon=1e-5, dtype=jnp.float32, rngs=rngs)
