"""The DINOv3 vision transformer (arXiv 2508.10104), every published size and a tiny one.

Written from the published architecture: patch embedding, one CLS and four register tokens, rotary
positions on the patch tokens only, LayerScale, GELU (exact) or SwiGLU. Parameters are those of the
official checkpoints; the q, k and v projections are stored as one matrix.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from usfm import mesh
from usfm.models import functional
from usfm.models.activation import gelu, precise
from usfm.models.lora import NO_LORA, Linear, LoRA
from usfm.models.moe import Mixture, MoE
from usfm.models.norm import LayerNorm

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
    "micro": Variant(64, 4, 2, 256, layer_scale=0.1),  # where a study is to have hundreds of runs
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

    def __init__(self, variant: Variant, lora: LoRA, dtype: jnp.dtype, rngs: nnx.Rngs):
        width, self.heads = variant.width, variant.heads
        self.qkv = Linear(width, 3 * width, lora, dtype, rngs, use_bias=False)
        self.q_bias = nnx.Param(jnp.zeros(width)) if variant.qv_bias else None
        self.v_bias = nnx.Param(jnp.zeros(width)) if variant.qv_bias else None
        self.out = Linear(width, width, lora, dtype, rngs)

    def __call__(
        self, x: jax.Array, rope: tuple[jax.Array, jax.Array], scale: jax.Array
    ) -> jax.Array:
        """[B, N, D] to [B, N, D], times `scale` [D]; rope as `rotary` makes it."""
        q, k, v = jnp.split(self.qkv(x), 3, axis=-1)
        if self.q_bias is not None and self.v_bias is not None:
            q, v = q + self.q_bias[...].astype(q.dtype), v + self.v_bias[...].astype(v.dtype)
        q, k, v = (a.reshape(*a.shape[:-1], self.heads, -1) for a in (q, k, v))
        q, k = rotate(q, *rope), rotate(k, *rope)
        # By the platform that the program is for, which need not be the one that traces it.
        flash = {"cuda": _attend_cudnn} if _has_cudnn(q.dtype) else {}
        x = jax.lax.platform_dependent(q, k, v, cpu=_attend_cpu, default=_attend, **flash)
        return self.out(x.reshape(*x.shape[:-2], -1), scale)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k' / sqrt(d)) v for [B, N, heads, d]."""
    return jax.nn.dot_product_attention(q, k, v, implementation="xla")


def _attend_cudnn(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """The same by cuDNN's fused kernel, which JAX does not choose by itself.

    JAX 0.10 refuses odd numbers of tokens in training (it takes a bias that is not there for one),
    and ours are odd for any even number of patches. So one more token is added and masked.
    """
    tokens = q.shape[1]
    if tokens % 2 == 0:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    q, k, v = (jnp.pad(a, ((0, 0), (0, 1), (0, 0), (0, 0))) for a in (q, k, v))
    # All the same, but to be seen to come from q: under vmap JAX reshapes them as it does q.
    lengths = jnp.where(jnp.isnan(q[:, 0, 0, 0]), tokens, tokens).astype(jnp.int32)
    x = jax.nn.dot_product_attention(
        q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="cudnn"
    )
    return x[:, :tokens]


@functools.cache
def _has_cudnn(dtype: jnp.dtype) -> bool:
    """Whether cuDNN is there to attend in a type, which JAX looks for when it traces a call."""
    shape = jax.ShapeDtypeStruct((1, 64, 1, 64), dtype)
    try:
        jax.eval_shape(_attend_cudnn, shape, shape, shape)
    except (RuntimeError, NotImplementedError, ValueError):  # not found; or float32, which it lacks
        return False
    return True


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

    def __init__(self, variant: Variant, lora: LoRA, dtype: jnp.dtype, rngs: nnx.Rngs):
        def linear(inputs: int, outputs: int) -> Linear:
            return Linear(inputs, outputs, lora, dtype, rngs)

        self.gate = linear(variant.width, variant.mlp_width) if variant.gated else None
        self.up = linear(variant.width, variant.mlp_width)
        self.down = linear(variant.mlp_width, variant.width)

    def __call__(self, x: jax.Array, scale: jax.Array, images: P | None = None) -> jax.Array:
        """[B, N, D] to [B, N, D], times `scale` [D]; `images` says how they lie on the mesh."""
        # With two axes of tokens XLA's CPU backend writes hidden units twice where slots' gradients
        # are kept apart: once for the product of all slots, once for each slot's derivative.
        tokens = x.reshape(-1, x.shape[-1])
        hidden = _lie(self.up(tokens), images)
        if self.gate is None:
            hidden = gelu(hidden)
        else:
            hidden = jax.nn.silu(_lie(self.gate(tokens), images)) * hidden
        return self.down(hidden, scale).reshape(x.shape)


class Block(nnx.Module):
    """x += ls1 * attention(norm1 x); x += ls2 * mlp(norm2 x), where the mlp may be a mixture."""

    def __init__(
        self,
        variant: Variant,
        mixture: Mixture | None,
        lora: LoRA,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        width = variant.width
        self.norm1 = LayerNorm(width, rngs)
        self.attn = Attention(variant, lora, dtype, rngs)
        self.layer_scale1 = nnx.Param(jnp.full(width, variant.layer_scale))
        self.norm2 = LayerNorm(width, rngs)
        self.mlp = (
            MLP(variant, lora, dtype, rngs)
            if mixture is None
            else MoE(width, variant.mlp_width, variant.gated, mixture, lora, dtype, rngs)
        )
        self.layer_scale2 = nnx.Param(jnp.full(width, variant.layer_scale))

    def __call__(
        self,
        x: jax.Array,
        keep: jax.Array | None,
        rope: tuple[jax.Array, jax.Array],
        condition: jax.Array | None,
        train: bool,
        images: P | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """One layer.

        Args:
            x: [B, N, D].
            keep: float32 [2, B], factors on the two branches of each image (drop path), or None.
            rope: as `rotary` makes it.
            condition: [B, D], each image's task embedding; read by mixtures alone.
            train: whether the top-k experts of a mixture have a capacity (moe.MoE).
            images: where the images lie on the mesh, as for DINOv3.

        Returns:
            [B, N, D], and the mixture's routing (moe.MoE), {} where there is none.
        """
        routing = {}
        keep1, keep2 = (1, 1) if keep is None else keep.astype(x.dtype)[:, :, None, None]
        x = _lie(x, images)
        y = self.attn(self.norm1(x).astype(x.dtype), rope, self.layer_scale1[...])
        x = _lie(x + keep1 * y, images)
        y, scale = self.norm2(x).astype(x.dtype), self.layer_scale2[...]
        if isinstance(self.mlp, MoE):
            assert condition is not None, "a mixture asks for each image's task embedding"
            y, routing = self.mlp(y, condition, train=train, images=images)
            y = scale.astype(x.dtype) * y
        else:
            y = self.mlp(y, scale, images)
        return _lie(x + keep2 * y, images), routing


class Encoded(NamedTuple):
    """What the encoder says of a batch of images.

    Attributes:
        tokens: [B, 1 + 4 + h * w, D], after the final norm.
        maps: [taps, B, h, w, D], the tapped layers through the same norm, without CLS and
            registers.
        routing: of the mixtures, each [their number, B, ...] (moe.MoE); {} where there are none.
    """

    tokens: jax.Array
    maps: jax.Array
    routing: dict[str, jax.Array]


class DINOv3(nnx.Module):
    """The encoder: normalised images in, patch maps of the tapped layers out.

    Equal layers are stacked: `blocks` holds the plain ones and `moe_blocks` the mixtures.
    """

    def __init__(
        self,
        variant: Variant,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        *,
        mixture: Mixture | None = None,
        lora: LoRA = NO_LORA,
        remat: str = "none",
    ):
        width = variant.width
        self.variant, self.dtype, self.remat = variant, dtype, remat
        self.layers = layers_of_stacks(variant, mixture)
        self.patch_embed = Linear(PATCH * PATCH * 3, width, NO_LORA, dtype, rngs)
        self.cls_token = nnx.Param(_weight(rngs.params(), (1, width)))
        self.register_tokens = nnx.Param(_weight(rngs.params(), (REGISTERS, width)))
        self.mask_token = nnx.Param(jnp.zeros((1, width)))
        for stack, layers in self.layers.items():
            own = mixture if stack == "moe_blocks" else None
            make = lambda rngs, own=own: Block(variant, own, lora, dtype, rngs)  # noqa: E731
            setattr(self, stack, functional.stacked(make, len(layers), rngs.params()))
        self.norm = LayerNorm(width, rngs)

    def __call__(
        self,
        images: jax.Array,
        taps: tuple[int, ...],
        *,
        rope_scale: jax.Array | float = 1.0,
        keep: jax.Array | None = None,
        condition: jax.Array | None = None,
        mask: jax.Array | None = None,
        train: bool = False,
        images_lie: P | None = None,
    ) -> Encoded:
        """Encodes a batch of images; h = H / 16, w = W / 16.

        Args:
            images: float32 [B, H, W, 3], normalised; H and W are multiples of 16.
            taps: 0-based layers, rising, whose outputs are wanted.
            rope_scale: factor on all patch coordinates, [] or [B] (a training-time augmentation).
            keep: float32 [layers, 2, B], as `drop_path` draws it; None = keep all.
            condition: float32 [B, D], each image's task embedding, for mixtures.
            mask: bool [B, h * w], patches whose embedding the mask token stands for.
            train: whether the top-k experts of mixtures have a capacity (moe.MoE).
            images_lie: where the images lie on the mesh; None = the compiler finds a place.
        """
        batch, height, width = images.shape[0], images.shape[1] // PATCH, images.shape[2] // PATCH
        x = _lie(self.patch_embed(patches(_lie(images, images_lie))), images_lie)
        if mask is not None:
            x = jnp.where(mask[..., None], self.mask_token[...].astype(x.dtype), x)
        prefix = jnp.concatenate([self.cls_token[...], self.register_tokens[...]])
        prefix = jnp.broadcast_to(prefix.astype(self.dtype), (batch, *prefix.shape))
        x = jnp.concatenate([prefix, x], axis=1)

        head_dim = self.variant.width // self.variant.heads
        rope = rotary(height, width, head_dim, rope_scale)
        maps, routing = [], []
        for first, stack, start, stop in self._runs(taps):
            last = first + stop - start - 1
            x, of_run = functional.scan(
                getattr(self, stack),
                x,
                rope,
                condition,
                train,
                images_lie,
                each=None if keep is None else keep[first : last + 1],
                start=start,
                stop=stop,
                remat=self.remat,
            )
            if of_run:
                routing.append(of_run)
            if last in taps:
                maps.append(self.norm(x)[:, PREFIX:].reshape(batch, height, width, -1))
        routing = jax.tree.map(lambda *parts: jnp.concatenate(parts), *routing) if routing else {}
        return Encoded(self.norm(x), jnp.stack(maps), routing)

    def _runs(self, taps: tuple[int, ...]) -> Iterator[tuple[int, str, int, int]]:
        """(first layer, stack, start, stop in the stack): the layers in order, up to each tap."""
        place = {
            layer: (stack, i) for stack, of in self.layers.items() for i, layer in enumerate(of)
        }
        first = 0
        for layer in range(self.variant.layers):
            stack, i = place[layer]
            following = place.get(layer + 1, ("", 0))[0]
            if layer in taps or stack != following:
                yield first, stack, i - (layer - first), i + 1
                first = layer + 1


def layers_of_stacks(variant: Variant, mixture: Mixture | None) -> dict[str, tuple[int, ...]]:
    """The layers (0-based) that each stack of the encoder holds, in order."""
    mixed = () if mixture is None else mixture.layers
    plain = tuple(layer for layer in range(variant.layers) if layer not in mixed)
    stacks = {"blocks": plain, "moe_blocks": tuple(mixed)}
    return {name: layers for name, layers in stacks.items() if layers}


def drop_path(key: jax.Array, rate: float, layers: int, images: int) -> jax.Array:
    """Factors [layers, 2, images] that drop a branch of an image, or make up for those dropped.

    Stochastic depth (arXiv 1603.09382), at one rate for all layers as DINOv3 trains.
    """
    kept = jax.random.bernoulli(key, 1 - rate, (layers, 2, images))
    return kept / (1 - rate)


def patches(images: jax.Array) -> jax.Array:
    """[B, H, W, 3] to [B, h * w, 16 * 16 * 3], row-major: a stride-16 convolution's input."""
    batch, height, width, channels = images.shape
    x = images.reshape(batch, height // PATCH, PATCH, width // PATCH, PATCH, channels)
    return jnp.moveaxis(x, 2, 3).reshape(batch, -1, PATCH * PATCH * channels)


def rotary(
    height: int, width: int, head_dim: int, scale: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines, float32 [..., 5 + h * w, head_dim], of the rotary positions.

    Patch centres are normalised to [-1, 1] on each axis by itself; half of the angles turn with
    the row and half with the column. Prefix tokens are not turned: cosine 1, sine 0.
    The leading axes are those of `scale`, a factor on all coordinates.
    """
    rows = 2 * (jnp.arange(height) + 0.5) / height - 1
    columns = 2 * (jnp.arange(width) + 0.5) / width - 1
    centres = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    frequencies = ROPE_BASE ** (-4 * jnp.arange(head_dim // 4) / head_dim)
    centres = jnp.asarray(scale, jnp.float32)[..., None, None] * centres
    angles = 2 * jnp.pi * centres[..., None] * frequencies
    angles = jnp.tile(angles.reshape(*centres.shape[:-1], -1), 2)
    angles = jnp.pad(angles, [(0, 0)] * (angles.ndim - 2) + [(PREFIX, 0), (0, 0)])
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns [B, N, heads, d] by halves, in float32."""
    a, b = jnp.split(x.astype(precise(x.dtype)), 2, axis=-1)
    # The halves of the tables are equal.
    cos, sin = (jnp.split(table, 2, axis=-1)[0][..., None, :] for table in (cos, sin))
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def _lie(x: jax.Array, images: P | None) -> jax.Array:
    return x if images is None else mesh.lie(x, images)
