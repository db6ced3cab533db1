"""What keeps the routers of mixture-of-experts layers healthy, and what they are seen to do.

Routing is what an encoder says beside its maps, for each image: arrays [S, layers, n, ...] named
gate, load, z, as usfm.models.moe.Routing has them.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

Routing = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class RouterLoss:
    """The routers' own losses, added once to the tasks' losses of a step.

    Attributes:
        balance_weight: of the load-balance loss of Switch Transformers (arXiv 2101.03961, eq. 4):
            E * sum over experts of (share of choices) * (mean gate), 1 where all are used alike.
            The shares are those of the global batch, so that a task may well keep to experts of
            its own as long as the tasks together use all of them.
        z_weight: of the router z-loss of ST-MoE (arXiv 2202.08906, eq. 5).
    """

    balance_weight: float
    z_weight: float

    def __call__(self, routing: Routing, valid: jax.Array) -> jax.Array:
        """The loss [], a mean over the mixture layers.

        Args:
            routing: of all slots; {} gives 0.
            valid: bool [S, n], the images that count.
        """
        if not routing:
            return jnp.zeros(())
        gate, load, z = (_mean_over_images(routing[name], valid) for name in ("gate", "load", "z"))
        balance = gate.shape[-1] * (jax.lax.stop_gradient(load) * gate).sum(-1)
        return (self.balance_weight * balance + self.z_weight * z).mean()


def load_by_task(routing: Routing, task: jax.Array, valid: jax.Array, tasks: int) -> jax.Array:
    """float32 [T, E]: the share of each task's choices that fell on each expert, over all layers.

    A task that no valid image asks for has a row of zeros.
    """
    of_slots = jnp.where(valid[:, None, :, None], routing["load"], 0).mean(1).sum(1)  # [S, E]
    total = jax.ops.segment_sum(of_slots, task, tasks)
    count = jax.ops.segment_sum(valid.sum(-1), task, tasks)
    return total / jnp.maximum(count, 1)[:, None]


def dropped(routing: Routing, valid: jax.Array) -> jax.Array:
    """[]: the share of all choices that found no expert with room."""
    return _mean_over_images(routing["dropped"], valid).mean()


def _mean_over_images(values: jax.Array, valid: jax.Array) -> jax.Array:
    """[S, layers, n, ...] to [layers, ...]."""
    counts = valid[:, None, :].reshape(valid.shape[0], 1, -1, *[1] * (values.ndim - 3))
    return jnp.where(counts, values, 0).sum((0, 2)) / jnp.maximum(valid.sum(), 1)
