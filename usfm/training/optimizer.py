"""AdamW with a linear warm-up, a cosine to zero, and clipping by the global norm."""

from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from usfm.training.sharding import path_name


def schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """The learning rate by step: up over `warmup` of the steps, then a cosine to zero."""
    warmup = min(max(1, round(config.warmup * steps)), max(steps - 1, 0))
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(steps, 1),
    )


def make(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of `steps` steps, from the config's `optimizer`."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(schedule(config, steps), weight_decay=config.weight_decay, mask=decays),
    )


def decays(params: Any) -> Any:
    """Which parameters decay: the matrices, not biases, norms, scales or tokens."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path_name(path).endswith("/kernel"), params
    )
