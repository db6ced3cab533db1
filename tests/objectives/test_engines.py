"""Which engine serves what, and what each is expected to cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usfm.errors import UserError
from usfm.objectives import chain, engines
from usfm.objectives.engines import Cost
from usfm.objectives.functions import Functions


@pytest.mark.parametrize(
    ("method", "skip", "record", "first"),
    [
        ("sum", False, False, "plain"),
        ("mean", False, False, "plain"),
        ("famo", False, False, "plain"),
        ("sum", True, False, "stack"),
        ("sum", False, True, "stack"),
        ("gradnorm", False, False, "layer"),
        ("gradnorm", False, True, "stack"),
        ("pcgrad", False, False, "stack"),
        ("graddrop", False, False, "stream"),
        ("graddrop", False, True, "stack"),
    ],
)
def test_the_first_engine_is_as_cheap_as_the_method_allows(method, skip, record, first):
    assert engines.allowed(chain.make(method).needs, skip, record)[0] == first


@pytest.mark.parametrize(
    ("engine", "method", "settings", "message"),
    [
        ("fast", "sum", {}, "multitask.engine='fast' is unknown; choose from auto, plain"),
        ("plain", "pcgrad", {}, "cannot serve multitask.method='pcgrad'; use auto, stack"),
        ("plain", "sum", {"skip_nonfinite": True}, "with train.on_nonfinite='skip_task'; use auto"),
        ("plain", "sum", {"record": True}, "with multitask.record; use auto, stack, stack_map"),
        ("stream", "upgrad", {}, "multitask.engine='stream' cannot serve"),
    ],
)
def test_an_engine_that_cannot_serve_is_refused(engine, method, settings, message):
    with pytest.raises(UserError, match=message):
        engines.check_engine(engine, method, chain.make(method).needs, **settings)


def test_the_fastest_that_fits_is_chosen():
    costs = {"stack": Cost(1.1, 900), "stack_map": Cost(1.3, 400), "layer": Cost(1.0, 100)}
    can = ("stack", "stack_map", "layer")
    assert engines.choose_engine(can, costs, None) == "stack"
    assert engines.choose_engine(can, costs, 1000) == "stack"
    assert engines.choose_engine(can, costs, 500) == "stack_map"
    assert engines.choose_engine(can, costs, 10) == "stack_map"  # inexact ones are never chosen
    assert engines.choose_engine(("layer", "stack"), costs, None) == "layer"
    said = engines.describe("stack", can, costs)
    assert "stack       1.10 plain steps" in said
    assert said.count("(chosen)") == 1


def test_costs_follow_the_shapes():
    """Two layers of 64 x 64 on 6 slots of 2 images of 10 tokens, by hand."""

    def encode(params, image, task, *, train, key):
        x = image
        for weight in params["encoder"]:
            x = jnp.tanh(x @ weight)
        return x[None, :, :, None], {}

    functions = Functions(
        encode,
        lambda params, kind, maps, task: {"answer": maps @ params["heads"][kind][task]},
        lambda kind, outputs, labels, valid: ((outputs["answer"] ** 2).sum(), valid.sum() * 1.0),
        {"regression": 6},
        tasks=6,
    )
    shape = jax.ShapeDtypeStruct
    params = {
        "encoder": [shape((64, 64), "float32")] * 2,
        "decoders": {"regression": {}},
        "heads": {"regression": shape((6, 64), "float32")},
    }
    batch = {
        "image": shape((6, 2, 10, 64), "float32"),
        "task": shape((6,), "int32"),
        "valid": shape((6, 2), "bool"),
    }
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 6))

    def costs(**settings):
        given = {"at_once": 2, "devices": 1, "platform": "cpu"} | settings
        return engines.costs(functions, params, batch, keys, **given)  # pyrefly: ignore

    found = costs()
    tokens, gradient = 6 * 2 * 10, 4 * 2 * 64 * 64
    expected = 1 + (36 + 6) / (3 * tokens) + 3 * 4 * 6 * 15 / (6 * tokens)
    np.testing.assert_allclose(found["stack"].time, expected)
    assert found["plain"].time == 1
    # Slot after slot: 20 tokens at once of the 256 that fill a CPU, however many are in hand else.
    np.testing.assert_allclose(
        found["stream"].time, (1 + 3 * 4 * 6 * 15 / (6 * tokens)) * engines.MAP_ON_CPU * 256 / 20
    )
    assert costs(at_once=6)["stream"] == found["stream"]
    activations = found["plain"].memory - gradient
    assert activations > 2 * tokens * 64 * 4  # what tanh leaves, at the least
    assert found["stack"].memory == activations + 6 * gradient
    assert found["stack_map"].memory == activations * 2 // 6 + 6 * gradient
    # Spread over devices; slots in turn are not.
    many = costs(devices=2)
    assert many["stack"].memory == found["stack"].memory // 2
    assert many["stack_map"].time > found["stack_map"].time
