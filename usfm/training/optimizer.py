"""AdamW or Muon: a linear warm-up, a cosine to zero, clipping, decay, and rates by layer."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from usfm.models.functional import path_name
from usfm.training import muon
from usfm.training.names import Layers, by_layer, matches


def schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """The learning rate by step: up over `warmup` of the steps, then a cosine to zero."""
    warmup = min(max(1, round(config.warmup * steps)), max(steps - 1, 0))
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(steps, 1),
    )


def make(config: ConfigDict, steps: int, layers: Layers) -> optax.GradientTransformation:
    """The optimizer of a run.

    Args:
        config: the run's `optimizer`.
        steps: of the run.
        layers: of the model's stacks.

    Returns:
        a transformation of gradients of the trainable parameters, None in place of the others.
    """
    adam = optax.scale_by_adam(b2=config.b2)
    direction = {"adamw": adam, "muon": muon.make(adam)}[config.name]
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        # Nested as in optax.adamw, whose checkpoints are of older runs.
        optax.chain(
            direction,
            optax.add_decayed_weights(config.weight_decay, mask=decays),
            optax.scale_by_learning_rate(schedule(config, steps)),
        ),
        # After the decay, which is thereby scaled too.
        optax.stateless(lambda updates, _: _scale(updates, rates(updates, config, layers))),
    )


def preconditioner(opt_state: Any, config: ConfigDict) -> Any:
    """What the optimizer multiplies a gradient by, in arrays that broadcast to the parameters.

    Adam's is 1 / (sqrt(v) + eps), v unbiased; Muon's of a matrix see `muon.step_sizes`.

    Args:
        opt_state: after an update at least.
        config: the run's `optimizer`.
    """
    adam = optax.tree.get(opt_state, "ScaleByAdamState")
    unbiased = 1 / (1 - config.b2**adam.count)
    scales = jax.tree.map(lambda v: 1 / (jnp.sqrt(v * unbiased) + 1e-8), adam.nu)
    if config.name == "adamw":
        return scales
    return muon.merged(scales, muon.step_sizes(opt_state))


def decays(params: Any) -> Any:
    """Which parameters decay: the matrices, not biases, norms, scales, tokens or embeddings."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path_name(path).endswith(("/kernel", "/lora_a", "/lora_b")), params
    )


def rates(params: Any, config: ConfigDict, layers: Layers) -> Any:
    """The factor on the learning rate of every leaf, or float [L] where its layers differ.

    Block i of L encoder blocks learns at layer_decay ** (L - i), what is before the first block
    at layer_decay ** (L + 1), and the final norm at 1 (as in BEiT, arXiv 2106.08254). All that
    is outside the encoder learns at head_learning_rate. What is frozen has rate 0.
    """
    depth = sum(map(len, layers.values()))
    head = (config.head_learning_rate or config.learning_rate) / config.learning_rate

    def rate(name: str) -> float:
        if matches(config.freeze, name):
            return 0.0
        if not name.startswith("encoder/"):
            return head
        if block := re.match(r"encoder/block_(\d+)/", name):
            return config.layer_decay ** (depth - int(block[1]))
        return 1.0 if name.startswith("encoder/norm/") else config.layer_decay ** (depth + 1)

    return jax.tree_util.tree_map_with_path(
        lambda path, _: by_layer(path_name(path), layers, rate), params
    )


def _scale(updates: Any, rates: Any) -> Any:
    def leaf(update: jax.Array, rate: float | np.ndarray) -> jax.Array:
        rate = np.asarray(rate, update.dtype)
        return update * rate.reshape(rate.shape + (1,) * (update.ndim - rate.ndim))

    return jax.tree.map(leaf, updates, rates)
