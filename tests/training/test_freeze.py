"""What is frozen by name, and how parameters are taken apart and put together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usfm import config as usfm_config
from usfm.errors import UserError
from usfm.models.functional import path_name
from usfm.tasks import Task
from usfm.training.freeze import frozen, hold, merge, split, trained
from usfm.training.program import make_model

LAYERS = {"encoder/blocks": (0, 1, 3), "encoder/moe_blocks": (2,)}
PARAMS = {
    "encoder": {
        "blocks": {"attn": {"kernel": jnp.arange(12.0).reshape(3, 2, 2)}, "scale": jnp.ones(3)},
        "moe_blocks": {"attn": {"kernel": jnp.ones((1, 2, 2))}},
        "cls_token": jnp.ones((1, 2)),
    },
    "heads": {"detection": {"kernel": jnp.ones((5, 2))}},
}


def names(tree):
    return {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def test_patterns_freeze_by_layer_whatever_the_stack():
    found = frozen(PARAMS, (r"^encoder/block_0[0-2]/attn", r"token$"), LAYERS)
    np.testing.assert_array_equal(found["encoder/blocks/attn/kernel"], [True, True, False])
    assert found["encoder/moe_blocks/attn/kernel"] is True
    assert found["encoder/cls_token"] is True
    assert found["encoder/blocks/scale"] is False
    assert found["heads/detection/kernel"] is False
    assert not any(frozen(PARAMS, (), LAYERS).values())


def test_what_is_trained_is_counted_layer_by_layer():
    found = frozen(PARAMS, (r"^encoder/block_0[0-2]/attn", r"token$"), LAYERS)
    # 4 of 12 and 3 of 3 in the first stack, none of 4 in the second, none of 2 tokens, 10 of 10.
    assert trained(PARAMS, found) == "17 of 31 parameters are trained"


def test_split_takes_wholly_frozen_leaves_out_and_merge_puts_them_back():
    found = frozen(PARAMS, (r"^encoder/block_0[0-2]/",), LAYERS)
    trainable, rest = split(PARAMS, found)
    assert names(rest) == {"encoder/moe_blocks/attn/kernel"}
    assert names(trainable) == names(PARAMS) - names(rest)
    whole = merge(trainable, rest)
    assert jax.tree.structure(whole) == jax.tree.structure(PARAMS)
    for ours, theirs in zip(jax.tree.leaves(whole), jax.tree.leaves(PARAMS), strict=True):
        assert ours is theirs


def test_merge_serves_a_part_of_the_model_too():
    trainable, rest = split(PARAMS, frozen(PARAMS, ("^encoder/",), LAYERS))
    assert names(merge({"encoder": trainable["encoder"]}, rest)) == names(
        {"encoder": PARAMS["encoder"]}
    )
    assert names(merge({"heads": trainable["heads"]}, rest)) == {"heads/detection/kernel"}


def test_frozen_layers_of_a_stack_have_values_and_no_gradient():
    found = frozen(PARAMS, ("^encoder/block_01/",), LAYERS)

    def loss(params):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(hold(params, found)))

    value, grads = jax.value_and_grad(loss)(PARAMS)
    assert value == sum((leaf**2).sum() for leaf in jax.tree.leaves(PARAMS))
    kernel = 2 * PARAMS["encoder"]["blocks"]["attn"]["kernel"]
    np.testing.assert_array_equal(grads["encoder"]["blocks"]["attn"]["kernel"][1], 0)
    np.testing.assert_array_equal(grads["encoder"]["blocks"]["attn"]["kernel"][::2], kernel[::2])
    np.testing.assert_array_equal(grads["encoder"]["blocks"]["scale"], [2, 0, 2])
    np.testing.assert_array_equal(grads["heads"]["detection"]["kernel"], 2)


def test_a_pattern_that_matches_nothing_is_refused_with_names_that_there_are():
    with pytest.raises(UserError) as caught:
        frozen(PARAMS, ("^encoder/", "block_7/"), LAYERS)
    assert str(caught.value).startswith(
        "optimizer.freeze: 'block_7/' matches no parameter; there are, among others, "
        "encoder/block_00/attn/kernel, "
    )


def test_freezing_everything_is_refused():
    with pytest.raises(UserError, match=r"optimizer\.freeze matches every parameter"):
        frozen(PARAMS, ("encoder/", "heads/"), LAYERS)


@pytest.mark.parametrize("experts", [0, 2])
def test_with_low_rank_updates_the_encoder_trains_nothing_else_but_its_routers(experts):
    config = usfm_config.debug(usfm_config.base())
    config.model.lora.rank = 2
    config.model.moe.experts = experts
    model = make_model(config, (Task("cls", "classification", num_classes=2),))
    params = jax.eval_shape(model.init, jax.random.key(0))
    trainable, rest = split(params, frozen(params, (), model.layers))
    of_encoder = {name for name in names(trainable) if name.startswith("encoder/")}
    ends = {name.rsplit("/", 1)[1] for name in of_encoder}
    assert ends == {"lora_a", "lora_b"} | ({"kernel"} if experts else set())
    routers = {name for name in of_encoder if name.endswith("/kernel")}
    assert routers == ({"encoder/moe_blocks/mlp/router/kernel"} if experts else set())
    assert {f"encoder/blocks/{layer}/lora_a" for layer in ("attn/qkv", "mlp/up")} < of_encoder
    assert names(trainable) - of_encoder == {n for n in names(params) if "encoder/" not in n}
    assert "encoder/blocks/norm1/scale" in names(rest)
    # What a pattern asks for comes on top.
    both = frozen(params, ("^decoders/", "^encoder/block_00/"), model.layers)
    assert both["encoder/blocks/mlp/up/kernel"] is True
    np.testing.assert_array_equal(
        both["encoder/blocks/mlp/up/lora_a"], [True] + [False] * (1 if experts else 3)
    )
    assert both["decoders/classification/key/kernel"] is True
