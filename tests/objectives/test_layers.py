"""Layers whose gradients are kept one by one: the same answers as of a stack that is kept whole."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usfm.objectives import chain, multitask
from usfm.objectives.functions import Functions
from usfm.objectives.gramian import Groups
from usfm.objectives.layers import apart, at, together

LAYERS, WIDTH, TASKS, IMAGES = 3, 6, 4, 2


def encode(params, image, task, *, train, key):
    own = params["encoder"]
    x, _ = jax.lax.scan(
        lambda x, layer: (x + jnp.tanh(x @ layer), None), image, own["blocks"]["w"], unroll=True
    )
    return (x * own["norm"])[None], {}


def decode(params, kind, maps, task):
    features = maps[0] * params["decoders"][kind]["parts"][0]
    return {"answer": features @ params["heads"][kind][task % 2]}


def loss(kind, outputs, labels, valid):
    return ((outputs["answer"] - labels["label"]) ** 2).sum(), valid.sum().astype(jnp.float32)


WHOLE = Functions(encode, decode, loss, {"classification": 2, "regression": 2}, TASKS)
APART = dataclasses.replace(WHOLE, unrolled=("encoder/blocks",))
KEYS = jax.random.split(jax.random.key(5), 4)
PARAMS = {
    "encoder": {
        "blocks": {"w": jax.random.normal(KEYS[0], (LAYERS, WIDTH, WIDTH))},
        "norm": jnp.ones(WIDTH),
    },
    # Parts of a list have numbers for names.
    "decoders": {kind: {"parts": {0: jnp.ones(WIDTH)}} for kind in WHOLE.slots},
    "heads": {
        kind: jax.random.normal(key, (2, WIDTH))
        for kind, key in zip(WHOLE.slots, KEYS[1:], strict=False)
    },
}
BATCH = {
    "image": jax.random.normal(KEYS[3], (TASKS, IMAGES, WIDTH)),
    "task": jnp.arange(TASKS),
    "valid": jnp.ones((TASKS, IMAGES), bool),
    "label": jnp.zeros((TASKS, IMAGES)),
}
SHARED = {part: PARAMS[part] for part in ("encoder", "decoders")}
# The first layer and the norm; the second layer; what else there is does not count.
GROUPS = Groups(
    ("a", "b"),
    jax.tree.map(lambda _: -1, SHARED)
    | {"encoder": {"blocks": {"w": np.array([0, 1, -1])}, "norm": 0}},
)
SCALE = jax.tree.map(lambda p: jnp.arange(p.size).reshape(p.shape), SHARED)


def answer(functions, **settings):
    weighting = chain.make(settings.pop("method"))
    return multitask.answer(
        functions, PARAMS, BATCH, weighting.init(TASKS), jax.random.key(0),
        weighting=weighting, **settings,
    )  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "upgrad", "engine": "stack"},
        {"method": "upgrad", "engine": "stack_map", "at_once": 1},
        {"method": "graddrop", "engine": "stack"},
        {"method": "gradnorm", "engine": "layer", "layer": GROUPS},
    ],
    ids=lambda settings: f"{settings['engine']}-{settings['method']}",
)
def test_a_step_is_the_same(settings):
    expected, out = (answer(functions, **settings) for functions in (WHOLE, APART))
    # Sums in another order, in float32.
    assert jax.tree.structure(out.grads) == jax.tree.structure(PARAMS)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        (out.losses, out.weights, out.grads, out.gramian),
        (expected.losses, expected.weights, expected.grads, expected.gramian),
    )


@pytest.mark.parametrize("scale", [None, SCALE], ids=["raw", "scaled"])
def test_products_by_group_are_the_same(scale):
    def products(functions):
        products = answer(functions, method="sum", engine="stack").products
        assert products is not None
        return products(GROUPS, scale)

    expected, out = products(WHOLE), products(APART)
    assert (expected.gramian[0] != expected.gramian[1]).any()
    np.testing.assert_allclose(out.gramian, expected.gramian, rtol=1e-4, atol=1e-4)


def test_together_undoes_apart():
    layers = apart(PARAMS, APART.unrolled)
    assert len(layers["encoder"]["blocks"]["w"]) == LAYERS
    assert layers["encoder"]["norm"] is PARAMS["encoder"]["norm"]
    jax.tree.map(np.testing.assert_array_equal, together(layers), PARAMS)


def test_a_layer_is_found_in_a_tree_of_stacks():
    paths = dict(jax.tree_util.tree_leaves_with_path(apart(PARAMS, APART.unrolled)))
    (second,) = (path for path in paths if jax.tree_util.keystr(path).endswith("['w'][1]"))
    assert at({"encoder": {"blocks": {"w": np.array([7, 8, 9])}}}, second) == 8
    assert at({"encoder": {"blocks": {"w": 4}}}, second) == 4
