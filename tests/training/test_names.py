"""The names of stacked parameters, layer by layer."""

import numpy as np

from usfm.training.names import by_layer, matches, virtual_names

LAYERS = {"encoder/blocks": (0, 2), "encoder/moe_blocks": (1, 13)}


def test_a_leaf_of_a_stack_has_a_name_for_each_of_its_layers():
    assert virtual_names("encoder/blocks/mlp/up/kernel", LAYERS) == (
        "encoder/block_00/mlp/up/kernel",
        "encoder/block_02/mlp/up/kernel",
    )
    assert virtual_names("encoder/moe_blocks/norm1/scale", LAYERS) == (
        "encoder/block_01/norm1/scale",
        "encoder/block_13/norm1/scale",
    )


def test_all_others_have_their_own():
    for name in ("encoder/norm/scale", "encoder/blocks_too/kernel", "heads/detection/kernel"):
        assert virtual_names(name, LAYERS) == (name,)


def test_a_rule_answers_once_or_for_each_layer():
    second = by_layer("encoder/blocks/norm1/scale", LAYERS, lambda name: "block_02" in name)
    np.testing.assert_array_equal(second, [False, True])
    assert by_layer("encoder/blocks/norm1/scale", LAYERS, lambda name: "norm1" in name) is True
    assert by_layer("encoder/norm/scale", LAYERS, lambda name: "block" in name) is False


def test_a_regex_is_looked_for_anywhere_in_a_name():
    assert matches(["^heads/", "block_0[0-5]/"], "encoder/block_03/norm1/scale")
    assert not matches(["^heads/", "block_0[0-5]/"], "encoder/block_13/norm1/scale")
    assert not matches([], "encoder/block_03/norm1/scale")
