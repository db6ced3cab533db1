"""Gradients of slots kept apart, against one jax.grad a slot, for a model of three matrices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usfm.objectives.functions import Functions, merge_slots, slot_losses
from usfm.objectives.gramian import gramian
from usfm.objectives.task_gradients import SlotGradients, slot_gradients

SLOTS = {"classification": 3, "regression": 2}
KIND = ["classification"] * 3 + ["regression"] * 2
TASK = jnp.array([1, 0, 1, 2, 2])  # tasks 0 and 1 are of the first type, task 2 of the second
LOCAL = jnp.array([0, 1, 0])  # each task's row in the heads of its type
IMAGES, PIXELS, WIDTH = 3, 6, 4


def encode(params, image, task, *, train, key):
    """[n, PIXELS] to maps [1, n, WIDTH]; the key matters, as it does to augmentations."""
    assert train
    noise = 0.1 * jax.random.normal(key, image.shape)
    return jnp.tanh((image + noise) @ params["encoder"]["kernel"])[None], {}


def decode(params, kind, maps, task):
    features = jnp.sin(maps[0] @ params["decoders"][kind]["kernel"])
    head = params["heads"][kind]["kernel"][LOCAL[task]]
    return {"answer": features @ head}


def loss(kind, outputs, labels, valid):
    power = 2 if kind == "classification" else 4
    errors = (outputs["answer"] - labels["label"]) ** power
    return jnp.where(valid, errors, 0).sum(), valid.sum().astype(jnp.float32)


FUNCTIONS = Functions(encode, decode, loss, SLOTS, tasks=4)


@pytest.fixture
def params():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return {"kernel": jnp.asarray(rng.standard_normal(shape), jnp.float32)}

    return {
        "encoder": normal(PIXELS, WIDTH),
        "decoders": {"classification": normal(WIDTH, 5), "regression": normal(WIDTH, 2)},
        "heads": {"classification": normal(2, 5), "regression": normal(1, 2)},
    }


@pytest.fixture
def batch():
    rng = np.random.default_rng(1)
    valid = np.ones((5, IMAGES), bool)
    valid[1, 2] = valid[4] = False
    return {
        "image": jnp.asarray(rng.standard_normal((5, IMAGES, PIXELS)), jnp.float32),
        "label": jnp.asarray(rng.standard_normal((5, IMAGES)), jnp.float32),
        "task": TASK,
        "valid": jnp.asarray(valid),
    }


KEY = jax.random.key(3)
KEYS = jax.random.split(KEY, 5)


@functools.partial(jax.jit, static_argnums=2)
def of_slot_alone(params, batch, slot):
    """((sum, count), gradient of the sum) of one slot by itself."""
    own = {name: value[slot] for name, value in batch.items()}
    key = KEYS[slot]

    def total(params):
        maps, _ = encode(params, own["image"], own["task"], train=True, key=key)
        return loss(KIND[slot], decode(params, KIND[slot], maps, own["task"]), own, own["valid"])

    return jax.value_and_grad(total, has_aux=True)(params)


def test_of_type_takes_the_slots_of_a_type():
    tree = {"a": jnp.arange(5), "b": jnp.arange(10).reshape(5, 2)}
    np.testing.assert_array_equal(FUNCTIONS.of_type(tree, "classification")["a"], [0, 1, 2])
    np.testing.assert_array_equal(FUNCTIONS.of_type(tree, "regression")["b"], [[6, 7], [8, 9]])


def test_merge_slots_sums_by_task():
    merged = merge_slots(jnp.array([1.0, 2.0, 4.0, 8.0, 16.0]), TASK, 4)
    np.testing.assert_array_equal(merged, [2, 5, 24, 0])


def test_slot_losses_are_those_of_slots_alone(params, batch):
    maps = jax.vmap(lambda i, t, k: encode(params, i, t, train=True, key=k)[0])(
        batch["image"], TASK, KEYS
    )
    sums, counts = slot_losses(FUNCTIONS, params, maps, batch)
    for slot in range(5):
        (total, count), _ = of_slot_alone(params, batch, slot)
        np.testing.assert_allclose(sums[slot], total, rtol=1e-5)
        assert counts[slot] == count


def test_slot_gradients_are_those_of_one_grad_a_slot(params, batch):
    stack = slot_gradients(FUNCTIONS, params, batch, KEYS)
    for slot in range(5):
        (total, count), expected = of_slot_alone(params, batch, slot)
        np.testing.assert_allclose(stack.sums[slot], total, rtol=1e-5)
        assert stack.counts[slot] == count
        kind, place = KIND[slot], slot % 3
        close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
        close(stack.encoder["kernel"][slot], expected["encoder"]["kernel"])
        close(stack.decoders[kind]["kernel"][place], expected["decoders"][kind]["kernel"])
        close(stack.heads[kind]["kernel"][place], expected["heads"][kind]["kernel"])


def test_the_gramian_is_of_encoder_and_own_decoder(params, batch):
    stack = slot_gradients(FUNCTIONS, params, batch, KEYS)
    rows = []
    for slot in range(5):
        g = of_slot_alone(params, batch, slot)[1]
        shared = jax.tree.leaves((g["encoder"], g["decoders"]))  # zero in the other type's decoder
        rows.append(np.concatenate([np.ravel(leaf) for leaf in shared]))
    rows = np.stack(rows).astype(np.float64)
    expected = rows @ rows.T
    assert (expected[:3, :3] != 0).all()
    np.testing.assert_allclose(
        gramian(stack, FUNCTIONS)[0], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
    )


def test_the_encoder_is_traced_once_for_all_slots(params, batch):
    calls = []

    def counted(params, image, task, *, train, key):
        calls.append(image.shape)
        return encode(params, image, task, train=train, key=key)

    functions = Functions(counted, decode, loss, SLOTS, tasks=4)
    jax.eval_shape(lambda: slot_gradients(functions, params, batch, KEYS).sums)
    assert calls == [(IMAGES, PIXELS)]


@pytest.mark.parametrize("slots", [5, 8, 19])  # no multiple of 8, one, two and a rest
@pytest.mark.parametrize("columns", [24_576, 60_000])  # none and three turns of a CPU's loop
def test_long_gradients_are_multiplied_whole(columns, slots):
    rng = np.random.default_rng(3)
    stack = rng.standard_normal((slots, columns)).astype(np.float32)
    factor = rng.random(columns).astype(np.float32)
    nothing = {kind: {} for kind in SLOTS}
    kernel, zeros = {"kernel": jnp.asarray(stack)}, jnp.zeros(slots)
    gradients = SlotGradients(zeros, zeros, {}, kernel, nothing, nothing, {})
    exact = stack.astype(np.float64)
    for scale, expected in (
        (None, exact @ exact.T),
        ({"encoder": {"kernel": jnp.asarray(factor)}}, exact * factor @ exact.T),
    ):
        found = gramian(gradients, FUNCTIONS, scale=scale)[0]
        # Of many slots a plain product's float32 sums, too, are up to 1.5e-6 off.
        tolerance = 1e-6 if slots == 5 else 3e-6
        np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())
