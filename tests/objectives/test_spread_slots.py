"""Slots of types that no mesh of eight can share evenly, on a small model in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usfm.objectives import chain, multitask
from usfm.objectives.functions import Functions
from usfm.training import sharding

T, N, WIDTH = 5, 4, 16
SLOTS = {"classification": 3, "regression": 5}
LOCAL = np.array([0, 1, 0, 1, 2])
OF_TYPE = {"classification": 2, "regression": 3}


def encode(params, image, task, *, train, key):
    x = image + params["task_embedding"][task] * jax.random.normal(key, ())
    for layer in range(2):
        x = jnp.tanh(x @ params["encoder"]["kernel"][layer])
    return x[None], {"mean": x.mean(1)[None]}


def decode(params, kind, maps, task):
    features = jnp.tanh(maps[0] @ params["decoders"][kind]["kernel"])
    return {"answer": features @ params["heads"][kind]["kernel"][jnp.asarray(LOCAL)[task]]}


def loss(kind, outputs, labels, valid):
    values = (outputs["answer"] - labels["label"]) ** 2
    return jnp.where(valid, values, 0).sum(), valid.sum() * 1.0


FUNCTIONS = Functions(
    encode, decode, loss, SLOTS, tasks=T, auxiliary=lambda aux, valid: (aux["mean"] ** 2).mean()
)


def answered(sizes: tuple[int, int, int], method: str, **settings: Any) -> Any:
    """Losses, weights and gradient."""
    rng = np.random.default_rng(0)
    params = {
        "encoder": {"kernel": rng.normal(size=(2, WIDTH, WIDTH)) / 2},
        "task_embedding": rng.normal(size=(T, WIDTH)),
        "decoders": {kind: {"kernel": rng.normal(size=(WIDTH, 8)) / 2} for kind in SLOTS},
        "heads": {kind: {"kernel": rng.normal(size=(OF_TYPE[kind], 8))} for kind in SLOTS},
    }
    batch = {
        "image": rng.normal(size=(8, N, WIDTH)),
        "task": np.array([0, 1, 0, 3, 2, 3, 4, 2]),
        "valid": rng.uniform(size=(8, N)) < 0.8,
        "label": rng.normal(size=(8, N)),
    }
    weighting = chain.make(method)
    names = dict(zip(("data", "fsdp", "expert"), sizes, strict=True))
    mesh = sharding.make_mesh(names, jax.devices()[: int(np.prod(sizes))])
    with jax.enable_x64(True), jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding.shardings(params, mesh))

        @jax.jit
        def run(params, batch):
            out = multitask.answer(
                FUNCTIONS, params, batch, weighting.init(T), jax.random.key(3),
                weighting=weighting, **settings,
            )  # fmt: skip
            return out.losses, out.weights, out.grads

        return jax.device_get(run(placed, sharding.place_batch(batch, mesh)))


STACK, STACK_MAP = {"engine": "stack"}, {"engine": "stack_map", "at_once": 2}


@pytest.mark.parametrize(
    ("sizes", "method", "settings"),
    [
        ((2, 4, 1), "sum", {}),
        ((2, 4, 1), "sum", {"parts": 2}),
        ((2, 4, 1), "pcgrad", STACK),
        ((8, 1, 1), "pcgrad", STACK),
        ((1, 8, 1), "pcgrad", STACK),
        ((1, 8, 1), "pcgrad", STACK_MAP),
    ],
    ids=str,
)
def test_uneven_slots_give_what_they_give_on_one_device(monkeypatch, sizes, method, settings):
    monkeypatch.setattr(sharding, "MIN_SIZE", 16)
    whole, spread = (answered(of, method, **settings) for of in ((1, 1, 1), sizes))
    for ours, theirs in zip(jax.tree.leaves(spread), jax.tree.leaves(whole), strict=True):
        assert np.linalg.norm(ours - theirs) <= 1e-10 * np.linalg.norm(theirs)
