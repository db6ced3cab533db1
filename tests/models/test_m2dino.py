"""The model of a set of tasks: what a task's answers depend on, and their shapes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usfm.models import m2dino
from usfm.models.m2dino import M2DINO
from usfm.tasks import Task

TASKS = (
    Task("cls2", "classification", num_classes=2),
    Task("cls4", "classification", num_classes=4),
    Task("det_a", "detection", num_classes=1),
    Task("det_b", "detection", num_classes=1),
    Task("pts1", "regression", num_points=1),
    Task("pts3", "regression", num_points=3),
    Task("seg2", "segmentation", num_classes=2),
    Task("seg3", "segmentation", num_classes=3),
)
MODEL = M2DINO(TASKS, variant="tiny", decoder_width=8)
IMAGES = 2
SIZE = (48, 80)  # a map of 3 x 5
ONE = jnp.float32(1)


@pytest.fixture(scope="module")
def params():
    """Random parameters, none of them at a trivial initial value."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: (
            rng.standard_normal(leaf.shape, np.float32) * math.prod(leaf.shape[:-1]) ** -0.5
        ),
        jax.eval_shape(MODEL.init, jax.random.key(0)),
    )


@pytest.fixture(scope="module")
def maps(params):
    """Maps [4, n, h, w, D] of random images."""
    return encode(params, images(), 0, jax.random.key(0))


def images(slots: tuple[int, ...] = ()) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (*slots, IMAGES, *SIZE, 3))


@functools.partial(jax.jit, static_argnames="train")
def encode(params, image, task, key, train=False):
    return MODEL.encode(params, image, task, train=train, key=key)[0]


@functools.partial(jax.jit, static_argnames="kind")
def decode(params, kind, maps, task):
    return MODEL.decode(params, kind, maps, task)


def task_of(name: str) -> int:
    return [task.id for task in TASKS].index(name)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("cls2", {"logits": (2, 4), "classes": (4,)}),
        ("det_a", {"heat": (2, 6, 10), "boxes": (2, 6, 10, 4)}),
        ("pts1", {"heat": (2, 12, 20, 3), "points": (2, 3, 2), "real": (3,)}),
        ("seg2", {"logits": (2, 48, 80, 3), "classes": (3,)}),
    ],
)
def test_shapes_on_an_image_that_is_neither_square_nor_a_multiple_of_32(params, maps, name, shapes):
    task = task_of(name)
    outputs = decode(params, TASKS[task].type, maps, task)
    assert {key: value.shape for key, value in outputs.items()} == shapes
    assert all(jnp.isfinite(value).all() for value in outputs.values())


def test_maps_are_those_of_the_tapped_layers(maps):
    assert maps.shape == (4, IMAGES, 3, 5, 192)


@pytest.mark.parametrize("task", range(len(TASKS)))
def test_a_task_is_answered_by_its_own_row_of_the_heads(params, maps, task):
    kind = TASKS[task].type
    row = [t.id for t in TASKS if t.type == kind].index(TASKS[task].id)
    others = jax.tree.map(
        lambda leaf: jnp.full_like(leaf, jnp.nan).at[row].set(leaf[row]), params["heads"][kind]
    )
    broken = {**params, "heads": {kind: others}}
    expected = decode(params, kind, maps, task)
    actual = decode(broken, kind, maps, task)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("name", ["cls2", "seg2"])
def test_classes_that_only_pad_get_no_probability_and_no_gradient(params, maps, name):
    task, kind = task_of(name), TASKS[task_of(name)].type

    @jax.jit
    def probs_and_gradient(heads):
        def probs(heads):
            logits = MODEL.decode({**params, "heads": {kind: heads}}, kind, maps, jnp.int32(task))[
                "logits"
            ]
            return jax.nn.softmax(logits)

        value, pull_back = jax.vjp(probs, heads)
        cotangent = jax.random.normal(jax.random.key(2), value.shape)
        return value, pull_back(cotangent)[0]

    probs, gradient = probs_and_gradient(params["heads"][kind])
    assert (probs[..., 2:] == 0).all()
    np.testing.assert_allclose(probs.sum(-1), 1, rtol=1e-5)
    for leaf in jax.tree.leaves(gradient):
        assert (leaf[..., 2:] == 0).all()
        assert (leaf[0, ..., :2] != 0).all()
        assert (leaf[1] == 0).all()  # the other task's row


def test_slots_at_once_are_answered_as_slot_by_slot(params):
    image, keys = images((3,)), jax.random.split(jax.random.key(5), 3)
    task = jnp.array([task_of("seg3"), task_of("seg2"), task_of("seg3")])

    @jax.jit
    def at_once(params, image, task, keys):
        maps = jax.vmap(
            lambda i, t, k: MODEL.encode(params, i, t, train=True, key=k)[0]
        )(image, task, keys)  # fmt: skip
        return maps, jax.vmap(lambda m, t: MODEL.decode(params, "segmentation", m, t))(maps, task)

    maps, outputs = at_once(params, image, task, keys)
    for slot in range(3):
        alone = encode(params, image[slot], task[slot], keys[slot], train=True)
        np.testing.assert_allclose(maps[slot], alone, atol=1e-5)
        expected = decode(params, "segmentation", alone, task[slot])
        jax.tree.map(
            lambda a, b, s=slot: np.testing.assert_allclose(a[s], b, atol=1e-4), outputs, expected
        )


def test_the_key_matters_in_training_alone(params):
    image = images()
    one, other = jax.random.key(1), jax.random.key(2)
    answers = [encode(params, image, 0, key) for key in (one, other)]
    np.testing.assert_array_equal(*answers)
    trained = [encode(params, image, 0, key, train=True) for key in (one, other)]
    assert jnp.abs(trained[0] - trained[1]).max() > 1e-3
    assert jnp.abs(trained[0] - answers[0]).max() > 1e-3


def drawn_scales(monkeypatch, rope_rescale: float) -> np.ndarray:
    """The factors on patch coordinates that an encoder is handed for a thousand training keys."""
    model = M2DINO(TASKS, variant="tiny", decoder_width=8, rope_rescale=rope_rescale)
    monkeypatch.setattr(
        m2dino, "merge", lambda structure, params: lambda image, taps, scale: (None, scale * ONE)
    )
    params, task = {"encoder": {}}, jnp.int32(0)
    keys = jax.random.split(jax.random.key(0), 1000)
    return np.asarray(
        jax.vmap(lambda key: model.encode(params, ONE, task, train=True, key=key)[0])(keys)
    )


def test_patch_coordinates_are_rescaled_log_uniformly(monkeypatch):
    logs = np.log2(drawn_scales(monkeypatch, 2.0))
    assert -1 <= logs.min() < -0.95
    assert 0.95 < logs.max() <= 1
    assert abs(logs.mean()) < 0.06  # 3 standard errors
    assert abs(logs.std() - 1 / np.sqrt(3)) < 0.03


def test_a_rescaling_by_one_turns_it_off(monkeypatch):
    np.testing.assert_array_equal(drawn_scales(monkeypatch, 1.0), 1.0)


def test_bfloat16_is_for_activations_alone():
    model = M2DINO(TASKS, variant="tiny", decoder_width=8, dtype="bfloat16")
    key = jax.random.key(0)
    params = jax.eval_shape(model.init, key)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    encode = functools.partial(model.encode, train=True)
    maps, _ = jax.eval_shape(
        lambda p, i: encode(p, i, jnp.int32(0), key=jax.random.key(0)), params, images()
    )
    assert maps.dtype == jnp.bfloat16
    for task, kind in enumerate(t.type for t in TASKS):
        outputs = jax.eval_shape(
            lambda p, m, k=kind, t=task: model.decode(p, k, m, jnp.int32(t)), params, maps
        )
        types = {leaf.dtype for leaf in jax.tree.leaves(outputs)}
        assert types <= {jnp.dtype("float32"), jnp.dtype("bool")}


def test_a_model_has_the_parts_of_its_own_types_alone():
    model = M2DINO((TASKS[7], TASKS[0]), variant="tiny", decoder_width=8)
    assert model.types == ("classification", "segmentation")
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert set(params) == {"encoder", "decoders", "heads"}
    assert set(params["decoders"]) == set(params["heads"]) == set(model.types)
    assert params["heads"]["segmentation"]["kernel"].shape == (1, 4, 3)
