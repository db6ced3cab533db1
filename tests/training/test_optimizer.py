"""The learning rate over a run, and which parameters decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from usfm import config as usfm_config
from usfm.models.m2dino import M2DINO
from usfm.tasks import Task
from usfm.training import optimizer
from usfm.training.sharding import path_name


def config(**fields):
    config = usfm_config.base().optimizer
    config.update({"learning_rate": 0.1, "warmup": 0.1, "weight_decay": 0.0} | fields)
    return config


def test_the_rate_rises_over_the_warm_up_and_falls_as_a_cosine():
    rates = np.array([optimizer.schedule(config(), 100)(step) for step in range(101)])
    np.testing.assert_allclose(rates[:11], np.linspace(0, 0.1, 11), rtol=1e-6)
    falling = 0.05 * (1 + np.cos(np.pi * np.arange(91) / 90))
    np.testing.assert_allclose(rates[10:], falling, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_run_of_a_few_steps_learns_too(steps):
    rates = np.array([optimizer.schedule(config(), steps)(step) for step in range(steps)])
    np.testing.assert_allclose(rates.max(), 0.1)
    assert (rates >= 0).all()


def test_gradients_are_clipped_by_their_common_norm():
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    adam = optimizer.make(config(clip_norm=1e-3), 1)
    state = adam.init(params)
    _, state = adam.update({"a": jnp.array([300.0]), "b": jnp.array([400.0])}, state, params)
    moments = optax.tree.get(state, "mu")  # 1 - b1 = a tenth of the clipped gradient
    np.testing.assert_allclose(moments["a"], [0.1 * 0.6e-3], rtol=1e-5)
    np.testing.assert_allclose(moments["b"], [0.1 * 0.8e-3], rtol=1e-5)


def test_matrices_decay_and_nothing_else():
    tasks = (
        Task("cls", "classification", num_classes=2),
        Task("seg", "segmentation", num_classes=2),
    )
    model = M2DINO(tasks, variant="tiny", decoder_width=8)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    decays = {
        path_name(path): decay
        for path, decay in jax.tree_util.tree_leaves_with_path(optimizer.decays(params))
    }
    for name in (
        "encoder/blocks/attn/qkv/kernel",
        "encoder/patch_embed/kernel",
        "decoders/segmentation/dpt/fuse/0/conv1/kernel",
        "heads/segmentation/kernel",
    ):
        assert decays[name]
    for name in (
        "encoder/cls_token",
        "encoder/register_tokens",
        "encoder/blocks/attn/q_bias",
        "encoder/blocks/layer_scale1",
        "encoder/blocks/norm1/scale",
        "encoder/norm/bias",
        "decoders/classification/query",
        "heads/classification/bias",
    ):
        assert not decays[name]


def test_decay_is_decoupled_from_the_gradient():
    params = {"layer": {"kernel": jnp.full(3, 2.0), "bias": jnp.full(3, 2.0)}}
    adam = optimizer.make(config(weight_decay=0.5), 1)
    updates, _ = adam.update(jax.tree.map(jnp.zeros_like, params), adam.init(params), params)
    bias, kernel = jax.tree.leaves(updates)
    np.testing.assert_allclose(kernel, -0.1 * 0.5 * 2)
    np.testing.assert_array_equal(bias, 0)
