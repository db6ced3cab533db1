"""The model of a set of tasks: what a task's answers depend on, and their shapes."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usfm.models import m2dino
from usfm.models.lora import LoRA, merged
from usfm.models.m2dino import M2DINO
from usfm.models.moe import Mixture
from usfm.tasks import TYPES, Task

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
MODEL = M2DINO(TASKS, variant="tiny", decoder_width=dict.fromkeys(TYPES, 8))
# Of what holds for the encoder alone: fewer heads to make.
ENCODER = dataclasses.replace(MODEL, tasks=TASKS[:2])
IMAGES = 2
SIZE = (48, 80)  # a map of 3 x 5
DENSE = Mixture(experts=3, layers=(2, 3))
# Room for whatever the tokens choose.
TOP2 = Mixture(experts=3, layers=(2, 3), top_k=2, capacity=1.5)


def perturbed(model: M2DINO):
    """Random parameters, none of them at a trivial initial value: experts differ."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: (
            rng.standard_normal(leaf.shape, np.float32) * math.prod(leaf.shape[:-1]) ** -0.5
        ),
        jax.eval_shape(model.init, jax.random.key(0)),
    )


@pytest.fixture(scope="module")
def params():
    """Random parameters of the plain model."""
    return perturbed(MODEL)


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


def test_the_heads_of_a_type_begin_alike_and_not_at_zero():
    heads = jax.jit(MODEL.init)(jax.random.key(0))["heads"]
    for leaf in jax.tree.leaves(heads):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
    assert all(np.any(heads[kind]["kernel"]) for kind in MODEL.types)


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


def drawn(monkeypatch, name: str, **settings) -> np.ndarray:
    """What an encoder is handed as `name` for a thousand training keys, of an image each."""
    model = dataclasses.replace(MODEL, **settings)
    seen = {}

    def encoder(image, taps, **options):
        seen.update(options)
        return None, jnp.zeros((4, len(image), 1)), {}

    monkeypatch.setattr(m2dino, "merge", lambda structure, params: encoder)
    keys = jax.random.split(jax.random.key(0), 1000)
    image, task = jnp.zeros((1000, 1, 16, 16, 3)), jnp.zeros(1000, jnp.int32)
    model.encode_slots({"encoder": {}}, image, task, train=True, key=keys)
    return np.asarray(seen[name])


def test_patch_coordinates_are_rescaled_log_uniformly(monkeypatch):
    logs = np.log2(drawn(monkeypatch, "rope_scale", rope_rescale=2.0))
    assert logs.shape == (1000,)
    assert -1 <= logs.min() < -0.95
    assert 0.95 < logs.max() <= 1
    assert abs(logs.mean()) < 0.06  # 3 standard errors
    assert abs(logs.std() - 1 / np.sqrt(3)) < 0.03


def test_a_rescaling_by_one_turns_it_off(monkeypatch):
    np.testing.assert_array_equal(drawn(monkeypatch, "rope_scale", rope_rescale=1.0), 1.0)


def test_drop_path_leaves_out_branches_and_makes_up_for_them(monkeypatch):
    keep = drawn(monkeypatch, "keep", drop_path=0.2)
    assert keep.shape == (4, 2, 1000)  # layers, branches, images
    assert set(np.unique(keep)) == {np.float32(0), np.float32(1.25)}
    assert abs(keep.mean() - 1) < 0.02  # 3.6 standard errors of the mean of 8,000 draws
    assert abs(np.corrcoef(keep.reshape(8, -1)) - np.eye(8)).max() < 0.15


@pytest.mark.parametrize(
    "settings", [{}, {"drop_path": 0.3}, {"mixture": DENSE}, {"mixture": TOP2}]
)
def test_slots_encoded_as_one_batch_are_those_encoded_apart(settings):
    model = dataclasses.replace(MODEL, **settings)
    params = perturbed(model)
    image, keys = images((3,)), jax.random.split(jax.random.key(5), 3)
    task = jnp.array([4, 0, 4])

    @jax.jit
    def both(params):
        apart = jax.vmap(lambda i, t, k: model.encode(params, i, t, train=True, key=k))
        together = model.encode_slots(params, image, task, train=True, key=keys)
        return together, apart(image, task, keys)

    together, apart = both(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), together, apart)


@pytest.mark.parametrize("mixture", [DENSE, TOP2])
def test_a_fresh_mixture_answers_as_the_plain_model(mixture):
    model = dataclasses.replace(ENCODER, mixture=mixture)
    params = jax.jit(model.init)(jax.random.key(0))
    blocks, mixtures = params["encoder"]["blocks"], params["encoder"]["moe_blocks"]
    experts = {name: mixtures["mlp"][name] for name in ("up", "down")}
    one = jax.tree.map(lambda leaf: leaf[:, 0], experts)
    plain = jax.tree.map(lambda *halves: jnp.concatenate(halves), blocks, {**mixtures, "mlp": one})
    rest = {k: v for k, v in params["encoder"].items() if not k.endswith("blocks")}
    expected = encode({"encoder": {**rest, "blocks": plain}}, images(), 0, jax.random.key(0))
    actual, routing = jax.jit(functools.partial(model.encode, train=False))(
        params, images(), jnp.int32(1), key=jax.random.key(0)
    )
    np.testing.assert_allclose(actual, expected, atol=2e-5)
    assert routing["gate"].shape == (2, IMAGES, 3)


@pytest.mark.parametrize(
    "settings", [{}, {"mixture": DENSE}, {"mixture": TOP2, "lora": LoRA(rank=2)}]
)
def test_a_pretrained_encoder_answers_from_any_model_as_from_the_plain_one(params, settings):
    pretrained = jax.tree.map(np.asarray, params["encoder"])
    expected = encode(params, images(), 0, jax.random.key(0))
    model = dataclasses.replace(ENCODER, **settings)
    fresh = jax.jit(model.init)(jax.random.key(7))
    started = model.with_encoder(fresh, pretrained)
    assert jax.tree.map(jnp.shape, started) == jax.tree.map(jnp.shape, fresh)
    maps, _ = jax.jit(functools.partial(model.encode, train=False, key=jax.random.key(0)))(
        started, images(), jnp.int32(1)
    )
    # Activations are of the order of 1 to 10, and experts' products are summed in another order.
    np.testing.assert_allclose(maps, expected, atol=1e-4)


def test_low_rank_updates_start_at_nothing_and_merge_into_the_kernels():
    lora = LoRA(rank=2, alpha=3.0)
    model = dataclasses.replace(ENCODER, lora=lora, mixture=DENSE)
    params = jax.jit(model.init)(jax.random.key(0))
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params["encoder"])
    }
    kernels = {name.removesuffix("/kernel") for name in named if name.endswith("/kernel")}
    updated = {name.removesuffix("/lora_a") for name in named if name.endswith("/lora_a")}
    assert kernels - updated == {"patch_embed", "moe_blocks/mlp/router"}
    assert all((leaf == 0).all() for name, leaf in named.items() if name.endswith("/lora_b"))

    params = perturbed(model)
    run = functools.partial(encode_of, image=images(), task=jnp.int32(1))
    merged_params = {**params, "encoder": merged(params["encoder"], lora)}
    plain = dataclasses.replace(model, lora=LoRA())
    np.testing.assert_allclose(run(model, params), run(plain, merged_params), atol=1e-4)
    without = {**params, "encoder": merged(params["encoder"], LoRA(rank=2, alpha=0.0))}
    assert jnp.abs(run(plain, without) - run(model, params)).max() > 1e-2


@functools.partial(jax.jit, static_argnums=0)
def encode_of(model, params, image, task):
    return model.encode(params, image, task, train=False, key=jax.random.key(0))[0]


def test_the_task_changes_what_a_mixture_sees():
    model = dataclasses.replace(MODEL, mixture=DENSE)
    params = perturbed(model)
    run = jax.jit(functools.partial(model.encode, train=False, key=jax.random.key(0)))
    one, other = (run(params, images(), jnp.int32(task)) for task in (0, 5))
    assert jnp.abs(one[0][2:] - other[0][2:]).max() > 1e-2
    np.testing.assert_array_equal(one[0][:2], other[0][:2])  # taps below the mixtures


def test_parameters_of_stacks_are_known_by_their_layers():
    assert MODEL.layers == {"encoder/blocks": (0, 1, 2, 3)}
    model = dataclasses.replace(MODEL, mixture=Mixture(experts=2, layers=(1, 3)))
    assert model.layers == {"encoder/blocks": (0, 2), "encoder/moe_blocks": (1, 3)}


def test_bfloat16_is_for_activations_alone():
    model = M2DINO(TASKS, variant="tiny", decoder_width=dict.fromkeys(TYPES, 8), dtype="bfloat16")
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
    model = M2DINO((TASKS[7], TASKS[0]), variant="tiny", decoder_width=dict.fromkeys(TYPES, 8))
    assert model.types == ("classification", "segmentation")
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert set(params) == {"encoder", "decoders", "heads"}
    assert set(params["decoders"]) == set(params["heads"]) == set(model.types)
    assert params["heads"]["segmentation"]["kernel"].shape == (1, 4, 3)
