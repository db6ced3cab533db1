"""Task-conditioned mixtures of experts in place of a block's feed-forward network.

The gate is that of M2DINO (arXiv 2603.18123): softmax(W [token ; task embedding]). Experts start as
equal copies of one network (sparse upcycling, arXiv 2212.05055), so that a fresh mixture answers as
the plain network does. A mixture is dense, or sends every token to its top-k experts. In training
these tokens are sorted by expert into a buffer of fixed capacity; one whose expert is full goes to
its next best with room (No-Token-Left-Behind of Switch Transformers, arXiv 2101.03961).
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from usfm import mesh
from usfm.errors import UserError
from usfm.models.activation import gelu, precise
from usfm.models.functional import Params
from usfm.models.lora import LoRA
from usfm.models.product import product

_weight = nnx.initializers.truncated_normal(0.02)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Which layers are mixtures, and of what.

    Attributes:
        experts: E, in each of the layers.
        layers: 0-based, rising.
        top_k: experts that a token is sent to; 0 mixes all of them (dense).
        capacity: rows an expert has in training, as a multiple of its even share of the choices.
            From experts / (experts - top_k + 1) on none is ever dropped, whatever the router says.

    Raises:
        UserError: no experts, more choices than experts, or no capacity.
    """

    experts: int
    layers: tuple[int, ...]
    top_k: int = 0
    capacity: float = 1.25

    def __post_init__(self):
        if self.experts < 1:
            raise UserError(f"model.moe.experts={self.experts}: a mixture has 1 or more")
        if not 0 <= self.top_k <= self.experts:
            raise UserError(
                f"model.moe.top_k={self.top_k} must be between 0 (dense) and "
                f"model.moe.experts={self.experts}"
            )
        if not self.capacity > 0:
            raise UserError(f"model.moe.capacity={self.capacity} must be above 0; 1.25 is usual")


class Experts(nnx.Module):
    """A linear layer of each of E experts, equal at first but for their LoRA factors."""

    def __init__(
        self,
        experts: int,
        inputs: int,
        outputs: int,
        lora: LoRA,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.dtype, self.lora_scale = dtype, lora.scale
        kernel = _weight(rngs.params(), (inputs, outputs))
        self.kernel = nnx.Param(jnp.tile(kernel, (experts, 1, 1)))
        self.bias = nnx.Param(jnp.zeros((experts, outputs)))
        if lora.rank:
            draw = nnx.initializers.normal(inputs**-0.5)
            self.lora_a = nnx.Param(draw(rngs.params(), (experts, inputs, lora.rank)))
            self.lora_b = nnx.Param(jnp.zeros((experts, lora.rank, outputs)))

    def __call__(self, rows: jax.Array) -> jax.Array:
        """[E, C, inputs], the rows of each expert, to [E, C, outputs]."""
        kernel, bias = (p[...].astype(self.dtype) for p in (self.kernel, self.bias))
        of_each = jax.vmap(product)
        y = of_each(rows, kernel) + bias[:, None]
        if self.lora_scale:
            a, b = (p[...].astype(self.dtype) for p in (self.lora_a, self.lora_b))
            y = y + self.lora_scale * of_each(of_each(rows, a), b)
        return y


class MoE(nnx.Module):
    """sum over experts of gate_i * FFN_i(token), with the FFN of dinov3.MLP."""

    def __init__(
        self,
        width: int,
        mlp_width: int,
        gated: bool,
        mixture: Mixture,
        lora: LoRA,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        def linear(inputs: int, outputs: int) -> Experts:
            return Experts(mixture.experts, inputs, outputs, lora, dtype, rngs)

        self.mixture = mixture
        self.gate = linear(width, mlp_width) if gated else None
        self.up = linear(width, mlp_width)
        self.down = linear(mlp_width, width)
        self.router = nnx.Linear(
            2 * width, mixture.experts, use_bias=False, kernel_init=_weight, rngs=rngs
        )

    def __call__(
        self, x: jax.Array, condition: jax.Array, *, train: bool, images: P | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mixes the experts' answers.

        Args:
            x: [B, N, D], the tokens of B images.
            condition: [B, D], the embedding of each image's task.
            train: whether top-k experts have a capacity. Where not, an image's answer does not
                depend on the other images.
            images: where the images lie on the mesh; None = the compiler finds a place.

        Returns:
            [B, N, D], of x's type, and what the router did with each image, float32:
            gate [B, E], the mean over its tokens of the softmax over all experts;
            load [B, E], the share of its tokens' own choices that fell on each expert, before any
            was sent elsewhere for want of room; sums to 1; of a dense mixture, the gates; no
            gradient;
            z [B], the mean of logsumexp(logits)^2 (router z-loss of ST-MoE, arXiv 2202.08906);
            dropped [B], the share of choices that found no expert with room.
        """
        logits = self._logits(x, condition)
        experts, top_k = self.mixture.experts, self.mixture.top_k
        rank = _ranks(logits)
        wanted = served = rank < (top_k or experts)
        if top_k and train:
            groups = _groups(x.shape[0])
            grouped = (a.reshape(groups, -1, a.shape[-1]) for a in (x, logits, rank))
            over = mesh.SLOTS if groups > 1 else None
            y, served = jax.vmap(self._sparse, spmd_axis_name=over)(*grouped)
            served = served.reshape(wanted.shape)
        else:
            gates = _gates(logits, wanted).reshape(-1, experts)
            y = self._dense(x.reshape(-1, x.shape[-1]), gates, images)

        gate = jax.nn.softmax(logits).mean(axis=1)
        return y.reshape(x.shape), {
            "gate": gate,
            "load": wanted.mean(axis=1) / top_k if top_k else jax.lax.stop_gradient(gate),
            "z": jnp.square(jax.nn.logsumexp(logits, axis=-1)).mean(axis=1),
            "dropped": 1 - served.sum(axis=(1, 2)) / wanted.sum(axis=(1, 2)),
        }

    def _logits(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """float32 [B, N, E]: a choice among experts should not hang on rounding."""
        token, task = jnp.split(self.router.kernel[...], 2)
        dtype = precise(x.dtype)
        of_token = jnp.matmul(x.astype(dtype), token, precision="highest")
        of_task = jnp.matmul(condition.astype(dtype), task, precision="highest")
        return of_token + of_task[:, None]

    def _experts(self, rows: jax.Array, lie: P | None) -> jax.Array:
        """[E, C, D], the rows of each expert, to [E, C, D]; `lie` is where the rows are."""
        rows = _over_experts(rows, lie)
        up = _over_experts(self.up(rows), lie)
        if self.gate is None:
            hidden = gelu(up)
        else:
            hidden = jax.nn.silu(_over_experts(self.gate(rows), lie)) * up
        return _over_experts(self.down(hidden), lie)

    def _dense(self, x: jax.Array, gates: jax.Array, images: P | None) -> jax.Array:
        """Tokens [M, D] through all experts, by gates [M, E]."""
        # Expert by expert, and gates last: with hidden units [M, E * F], scaled by gates, it would
        # be two plain products, but a step took XLA's CPU backend 1.6 times as long.
        y = self._experts(jnp.broadcast_to(x, (gates.shape[-1], *x.shape)), images)
        return (gates.T[..., None] * y).sum(axis=0).astype(x.dtype)

    def _sparse(
        self, x: jax.Array, logits: jax.Array, rank: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """A group's tokens [M, D] through top-k experts each, and which served whom, [M, E]."""
        experts, top_k = self.mixture.experts, self.mixture.top_k
        capacity = capacity_of(self.mixture, x.shape[0])
        served = _assign(rank, top_k, capacity)
        order = _sort(served, top_k, capacity)
        # A row gets the gates of all experts and keeps its own: the same permutation serves.
        gates = _dispatch(_gates(logits, served), order).reshape(experts, capacity, experts)
        gates = jnp.einsum("ece->ec", gates)
        y = self._experts(_dispatch(x, order).reshape(experts, capacity, -1), P())
        y = (gates[..., None] * y).astype(x.dtype)
        return _combine(y.reshape(experts * capacity, -1), order), served


def upcycle(mlp: Params, experts: int) -> Params:
    """The experts of mixtures from plain networks: equal copies (arXiv 2212.05055).

    Args:
        mlp: NumPy arrays of L layers, {[gate,] up, down}, each {kernel [L, I, O], bias [L, O]}.
        experts: E.

    Returns:
        The same with [L, E, ...] arrays.
    """
    return jax.tree.map(lambda a: np.repeat(a[:, None], experts, axis=1), mlp)


def _gates(logits: jax.Array, chosen: jax.Array) -> jax.Array:
    """Softmax over the chosen experts, 0 for all others, also where none is chosen."""
    return jax.nn.softmax(jnp.where(chosen, logits, -1e30)) * chosen


def _ranks(logits: jax.Array) -> jax.Array:
    """int32 [..., E], the place of each expert in a token's order, 0 first; ties by index.

    For so few experts, counting those ahead is cheaper than sorting.
    """
    index = jnp.arange(logits.shape[-1])
    mine, other = logits[..., :, None], logits[..., None, :]
    ahead = (other > mine) | ((other == mine) & (index < index[:, None]))
    return ahead.sum(axis=-1, dtype=jnp.int32)


def capacity_of(mixture: Mixture, tokens: int) -> int:
    """Rows of an expert for so many tokens: a multiple of 8, but no more than there are tokens."""
    share = tokens * mixture.top_k / mixture.experts
    return min(tokens, 8 * math.ceil(mixture.capacity * share / 8))


def _assign(rank: jax.Array, top_k: int, capacity: int) -> jax.Array:
    """Which experts serve a token, bool [M, E]: top_k at most, and no expert beyond its capacity.

    First choices of all tokens are served before any second choice. A token that is turned away
    asks the next in its order; an expert once full stays full, so nobody asks twice.
    """

    def serve(choice: jax.Array, served: jax.Array) -> jax.Array:
        asks = (rank == choice) & (served.sum(axis=1, keepdims=True) < top_k)
        return served | (asks & (jnp.cumsum(asks, axis=0) <= capacity - served.sum(axis=0)))

    return jax.lax.fori_loop(0, rank.shape[1], serve, jnp.zeros(rank.shape, bool))


class _Order(NamedTuple):
    """Where M tokens stand in a buffer of R = E * C rows, both ways.

    Attributes:
        tokens: int32 [R], the token in each row; M where it is empty.
        rows: int32 [M, k], the rows of each token; R where it has fewer.
    """

    tokens: jax.Array
    rows: jax.Array


def _sort(served: jax.Array, top_k: int, capacity: int) -> _Order:
    """Gives the tokens of every expert its rows, in the order they come."""
    tokens, experts = served.shape
    size = experts * capacity
    row = jnp.cumsum(served, axis=0) - 1 + capacity * jnp.arange(experts)
    row = jnp.where(served, row, size)
    token = jnp.broadcast_to(jnp.arange(tokens)[:, None], row.shape)
    of_row = jnp.full(size, tokens).at[row].set(token, mode="drop")
    return _Order(of_row, jnp.sort(row, axis=1)[:, :top_k])


@jax.custom_vjp
def _dispatch(x: jax.Array, order: _Order) -> jax.Array:
    """Tokens [M, D] into rows [R, D], zeros into empty ones.

    It and _combine are each other's transpose, so the gradients of both gather: XLA would scatter
    row by row.
    """
    return x.at[order.tokens].get(mode="fill", fill_value=0)


@jax.custom_vjp
def _combine(rows: jax.Array, order: _Order) -> jax.Array:
    """Rows [R, D] summed into tokens [M, D]."""
    return rows.at[order.rows].get(mode="fill", fill_value=0).sum(axis=1)


_dispatch.defvjp(
    lambda x, order: (_dispatch(x, order), order), lambda order, g: (_combine(g, order), None)
)
_combine.defvjp(
    lambda rows, order: (_combine(rows, order), order), lambda order, g: (_dispatch(g, order), None)
)


def _groups(images: int) -> int:
    """Into how many groups images are sorted apart: no device then needs another's tokens."""
    groups = mesh.slot_shards()
    return groups if images % groups == 0 else 1


def _over_experts(rows: jax.Array, lie: P | None) -> jax.Array:
    """The same [E, C, D], spread over the mesh's expert axis; rows stay where their images are."""
    shards = mesh.size("expert")
    expert = "expert" if rows.shape[0] % shards == 0 else None
    if lie is None and (shards == 1 or expert is None):
        return rows
    tokens = P.UNCONSTRAINED if lie is None else lie[0] if len(lie) else None
    return mesh.lie(rows, P(expert, tokens, None))
