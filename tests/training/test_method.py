"""What a config makes of the multi-task step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usfm import config as usfm_config
from usfm.errors import UserError
from usfm.objectives import chain
from usfm.tasks import Task
from usfm.training import method
from usfm.training.program import make_model

TASKS = (Task("a", "classification", num_classes=2), Task("b", "segmentation", num_classes=2))


def make(**fields):
    config = usfm_config.debug(usfm_config.base())
    config.update_from_flattened_dict({f"multitask.{name}": v for name, v in fields.items()})
    return config.multitask


@pytest.fixture(scope="module")
def model():
    return make_model(usfm_config.debug(usfm_config.base()), TASKS)


@pytest.fixture(scope="module")
def params(model):
    return jax.eval_shape(model.init, jax.random.key(0))


@pytest.mark.parametrize("name", chain.METHODS)
def test_every_method_can_be_configured(name):
    weighting = method.weighting_of(make(method=name), TASKS)
    method.check(make(method=name), skip_nonfinite=False)
    assert weighting.needs == chain.make(name).needs


def test_the_options_of_the_config_are_those_of_the_code():
    options = usfm_config.to_dict(usfm_config.base().multitask.options)
    left_to_code = {"orders", "norm_eps", "reg_eps"}  # of parity with TorchJD, nothing to tune
    for name in chain.METHODS:
        known = {k: v for k, v in chain.options_of(name).items() if k not in left_to_code}
        assert options.pop(name, {}) == known, name
    assert not options


def test_static_weights_are_by_task_and_one_for_the_others():
    weighting = method.weighting_of(make(weights="b=3"), TASKS)
    signal = chain.Signal(jnp.ones(2), jnp.ones(2, bool), None, jnp.ones(2), jax.random.key(0))
    np.testing.assert_allclose(weighting.update(signal, {})[0].weights, [0.5, 1.5])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("b=3, c=1", r"multitask\.weights: 'c' is not a task of the run \(a, b\)"),
        ("b=0", r"multitask\.weights: 'b=0' gives no number above 0"),
        ("a=2,b", r"multitask\.weights: 'b' gives no number above 0"),
        ("b=two", r"multitask\.weights: 'b=two' gives no number above 0"),
    ],
)
def test_weights_that_mean_nothing_are_told(weights, message):
    with pytest.raises(UserError, match=message):
        method.weighting_of(make(weights=weights), TASKS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "magic"}, "multitask.method='magic' is unknown; choose from sum, mean"),
        ({"engine": "plain", "method": "pcgrad"}, "multitask.engine='plain' cannot serve"),
        ({"engine": "plain", "record": True}, "with multitask.record; use auto, stack, stack_map"),
        ({"gramian_ema": 0.9}, "gramian_ema=0.9: multitask.method='sum' does not look at the"),
        ({"gramian_ema": 0.9, "method": "graddrop"}, "='graddrop' does not look at the Gramian"),
    ],
)
def test_what_cannot_be_is_told_before_any_work(fields, message):
    with pytest.raises(UserError, match=message):
        method.check(make(**fields), skip_nonfinite=False)


def test_a_layer_is_found_by_virtual_names(model, params):
    found = method.layer_of(params, "encoder/block_03/mlp/up/", model.layers)
    chosen = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(group).tolist()
        for path, group in jax.tree_util.tree_leaves_with_path(found.of)
        if (np.asarray(group) >= 0).any()
    }
    assert chosen == {
        "encoder/blocks/mlp/up/bias": [-1, -1, -1, 0],
        "encoder/blocks/mlp/up/kernel": [-1, -1, -1, 0],
    }
    default = method.layer_of(params, usfm_config.base().multitask.layer, model.layers)
    norm = default.of["encoder"].pop("norm")
    assert set(norm.values()) == {0}
    assert set(jax.tree.leaves(default.of)) == {-1}
    with pytest.raises(UserError, match=r"multitask\.layer='nothing' matches no trained shared"):
        method.layer_of(params, "nothing", model.layers)


def test_every_shared_parameter_is_recorded_in_one_group(model, params):
    groups = method.recorded_groups(params, model.layers)
    assert groups.names == ("embedding", "early", "middle", "late", "decoders")
    assert set(jax.tree.leaves(groups.of["decoders"])) == {4}
    kernel = groups.of["encoder"]["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.tolist() == [1, 1, 2, 3]  # four layers in three thirds
    assert set(jax.tree.leaves(groups.of["encoder"]["patch_embed"])) == {0}
    assert set(jax.tree.leaves(groups.of["encoder"]["norm"])) == {3}
