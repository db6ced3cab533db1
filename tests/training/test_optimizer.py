"""The learning rate over a run and over the layers, and which parameters decay."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from usfm import checks
from usfm import config as usfm_config
from usfm.errors import UserError
from usfm.models.functional import path_name
from usfm.tasks import Task
from usfm.training import optimizer
from usfm.training.program import make_model


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
    adam = optimizer.make(config(clip_norm=1e-3), 1, {})
    state = adam.init(params)
    _, state = adam.update({"a": jnp.array([300.0]), "b": jnp.array([400.0])}, state, params)
    moments = optax.tree.get(state, "mu")  # 1 - b1 = a tenth of the clipped gradient
    np.testing.assert_allclose(moments["a"], [0.1 * 0.6e-3], rtol=1e-5)
    np.testing.assert_allclose(moments["b"], [0.1 * 0.8e-3], rtol=1e-5)


def test_matrices_decay_and_nothing_else():
    config = usfm_config.debug(usfm_config.base())
    config.model.update(variant="vits16plus")
    config.model.moe.experts = config.model.lora.rank = 2
    tasks = (
        Task("cls", "classification", num_classes=2),
        Task("det", "detection", num_classes=1),
        Task("pts", "regression", num_points=2),
        Task("seg", "segmentation", num_classes=2),
    )
    model = make_model(config, tasks)
    params = jax.eval_shape(model.init, jax.random.key(0))
    decays = jax.tree_util.tree_leaves_with_path(optimizer.decays(params))
    decaying, others = (
        {path_name(path).rsplit("/")[-1] for path, decay in decays if decay is wanted}
        for wanted in (True, False)
    )
    # A new kind of parameter is to be thought about.
    assert decaying == {"kernel", "lora_a", "lora_b"}
    assert others == {
        *("bias", "q_bias", "v_bias", "scale", "layer_scale1", "layer_scale2", "query"),
        *("cls_token", "register_tokens", "mask_token", "task_embedding"),
    }
    # Of one layer, or of one task, all of them are matrices.
    for (path, decay), leaf in zip(decays, jax.tree.leaves(params), strict=True):
        stacked = re.match("encoder/(moe_)?blocks/|heads/", path_name(path)) is not None
        assert not decay or leaf.ndim - stacked >= 2


def test_decay_is_decoupled_from_the_gradient():
    params = {"layer": {"kernel": jnp.full(3, 2.0), "bias": jnp.full(3, 2.0)}}
    adam = optimizer.make(config(weight_decay=0.5), 1, {})
    updates, _ = adam.update(jax.tree.map(jnp.zeros_like, params), adam.init(params), params)
    bias, kernel = jax.tree.leaves(updates)
    np.testing.assert_allclose(kernel, -0.1 * 0.5 * 2)
    np.testing.assert_array_equal(bias, 0)


LAYERS = {"encoder/blocks": (0, 2, 3), "encoder/moe_blocks": (1,)}
PARAMS = {
    "encoder": {
        "blocks": {"mlp": {"kernel": jnp.full((3, 2, 2), 2.0)}},
        "moe_blocks": {"mlp": {"kernel": jnp.full((1, 5, 2, 2), 2.0)}},
        "cls_token": jnp.full((1, 2), 2.0),
        "patch_embed": {"kernel": jnp.full((4, 2), 2.0)},
        "norm": {"scale": jnp.full(2, 2.0)},
    },
    "decoders": {"detection": {"kernel": jnp.full((2, 2), 2.0)}},
    "heads": {"detection": {"bias": jnp.full(2, 2.0)}},
    "task_embedding": jnp.full((2, 2), 2.0),
}


def named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): np.asarray(leaf) for path, leaf in leaves}


def test_layers_learn_the_slower_the_earlier_they_are():
    changed = config(layer_decay=0.5, head_learning_rate=0.3)
    expected = {
        "encoder/blocks/mlp/kernel": [1 / 16, 1 / 4, 1 / 2],
        "encoder/moe_blocks/mlp/kernel": 1 / 8,
        "encoder/cls_token": 1 / 32,
        "encoder/patch_embed/kernel": 1 / 32,
        "encoder/norm/scale": 1,
        "decoders/detection/kernel": 3,
        "heads/detection/bias": 3,
        "task_embedding": 3,
    }
    rates = named(optimizer.rates(PARAMS, changed, LAYERS))
    assert rates.keys() == expected.keys()
    for name, rate in expected.items():
        np.testing.assert_allclose(rates[name], rate)

    # Adam's first step goes by the gradient's sign; the decay of matrices comes on top.
    changed.update(weight_decay=0.25, clip_norm=1e9)
    adam = optimizer.make(changed, 1, LAYERS)
    grads = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 7.0), PARAMS)
    updates = named(adam.update(grads, adam.init(PARAMS), PARAMS)[0])
    for name, rate in expected.items():
        step = -0.1 * (1 + (0.25 * 2 if name.endswith("kernel") else 0))
        update = updates[name]
        rate = np.reshape(rate, (-1, *[1] * (update.ndim - 1)))
        np.testing.assert_allclose(update, np.broadcast_to(step * rate, update.shape), rtol=1e-5)


def test_by_default_all_learn_alike():
    rates = optimizer.rates(PARAMS, usfm_config.base().optimizer, LAYERS)
    assert jax.tree.leaves(rates) == [1.0] * len(jax.tree.leaves(PARAMS))


def test_a_frozen_layer_of_a_stack_neither_moves_nor_decays():
    adam = optimizer.make(config(weight_decay=0.5, freeze=("block_02/",)), 1, LAYERS)
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    updates = named(adam.update(grads, adam.init(PARAMS), PARAMS)[0])
    moved = (updates["encoder/blocks/mlp/kernel"] != 0).all((1, 2))
    np.testing.assert_array_equal(moved, [True, False, True])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("optimizer.learning_rate", 0.0, r"optimizer\.learning_rate=0\.0 is outside"),
        ("optimizer.head_learning_rate", -1.0, r"head_learning_rate=-1\.0 is outside \[0, inf\]"),
        ("optimizer.layer_decay", 1.5, r"optimizer\.layer_decay=1\.5 is outside \[0\.001, 1\]"),
        ("optimizer.b2", 1.0, r"optimizer\.b2=1\.0 is outside \[0, 0\.999999\]"),
        ("optimizer.freeze", ("^encoder/(",), r"optimizer\.freeze: '\^encoder/\(' is not a regex"),
        ("train.ema", -0.1, r"train\.ema=-0\.1 is outside \[0, 1\]"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_field(field, value, message):
    config = usfm_config.base()
    config.update_from_flattened_dict({"data.root": "folder", field: value})
    with pytest.raises(UserError, match=message):
        checks.check(config)
