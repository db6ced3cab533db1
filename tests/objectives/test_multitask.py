"""The multi-task gradient of M2DINO, against one jax.grad a task and surgery done literally."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usfm.models.m2dino import M2DINO
from usfm.models.moe import Mixture
from usfm.objectives import multitask, surgery
from usfm.objectives.functions import Functions, merge_slots, slot_losses
from usfm.objectives.losses import LOSSES
from usfm.objectives.routing import RouterLoss
from usfm.tasks import TYPES, Task

TASKS = (
    Task("cls2", "classification", num_classes=2),
    Task("cls3", "classification", num_classes=3),
    Task("det", "detection", num_classes=1),
    Task("pts", "regression", num_points=2),
    Task("seg2", "segmentation", num_classes=2),
    Task("seg3", "segmentation", num_classes=3),
)
T, N = len(TASKS), 2
# One process makes what these tests share.
pytestmark = pytest.mark.xdist_group("multitask")
ENGINES = ("plain", "stack")  # stack_map is held to them on a smaller model, in test_answer.py
MODEL = M2DINO(TASKS, variant="tiny", decoder_width=dict.fromkeys(TYPES, 8))
SLOTS = {"classification": 3, "detection": 1, "regression": 2, "segmentation": 2}
CLS2, CLS3, DET, PTS, SEG2, SEG3 = range(T)
KEY = jax.random.key(11)
# XLA's own passes run, LLVM's do not: a third of the time to compile.
QUICKLY = {"xla_backend_optimization_level": 0}
TRACED = []  # grows by a call of the encoder whenever a program is traced


def encode(params, image, task, *, train, key):
    TRACED.append(image.shape)
    return MODEL.encode(params, image, task, train=train, key=key)


FUNCTIONS = Functions(
    encode,
    MODEL.decode,
    lambda kind, outputs, labels, valid: LOSSES[kind](outputs, labels, valid),
    SLOTS,
    tasks=T,
)


def compiled(**settings):
    """value_and_grad of the settings as one program of (params, batch)."""
    return jax.jit(
        lambda p, b: multitask.value_and_grad(FUNCTIONS, p, b, {}, KEY, **settings)[:4],
        compiler_options=QUICKLY,
    )


PLAIN = compiled(engine="plain")
STACK = compiled(engine="stack", method="pcgrad", skip_nonfinite=True)


@pytest.fixture(scope="module")
def perturbed():
    """Makes random parameters of a model, none of them at a trivial initial value."""

    def make(model):
        rng = np.random.default_rng(0)
        return jax.tree.map(
            lambda leaf: (
                rng.standard_normal(leaf.shape, np.float32)
                * np.float32(np.prod(leaf.shape[:-1]) ** -0.5)
            ),
            jax.eval_shape(model.init, jax.random.key(0)),
        )

    return make


@pytest.fixture(scope="module")
def params(perturbed):
    return perturbed(MODEL)


def make_batch(task: list[int], valid=None) -> dict[str, jax.Array]:
    """A random batch of these tasks; all images valid if nothing else is said."""
    rng = np.random.default_rng(2)
    slots = len(task)
    low = rng.uniform(0.1, 0.5, (slots, N, 2))
    batch = {
        "image": rng.standard_normal((slots, N, 32, 32, 3)),
        "task": np.array(task, np.int32),
        "valid": np.ones((slots, N), bool) if valid is None else np.array(valid, bool),
        "label": rng.integers(0, 2, (slots, N)).astype(np.int32),
        "box": np.concatenate([low, low + 0.3], -1),
        "points": rng.uniform(0.2, 0.8, (slots, N, 2, 2)),
        "points_valid": rng.uniform(size=(slots, N, 2)) < 0.7,
        "mask": rng.integers(0, 2, (slots, N, 32, 32)).astype(np.uint8),
    }
    return {
        name: jnp.asarray(value, jnp.float32 if value.dtype == float else value.dtype)
        for name, value in batch.items()
    }


# cls2 and pts fill several slots, of which some are partly invalid; seg3 is absent.
MIXED = make_batch(
    [CLS2, CLS3, CLS2, DET, PTS, PTS, SEG2, SEG2],
    [[1, 1], [1, 0], [0, 1], [1, 1], [1, 1], [1, 0], [0, 0], [1, 1]],
)


@functools.partial(jax.jit, compiler_options=QUICKLY)
def one_task(params, batch, task):
    """L_t of one task alone and its gradient, written without the engines."""
    keys = jax.random.split(jax.random.split(KEY)[0], 8)  # every slot has its own

    def task_loss(params):
        maps = jax.vmap(lambda i, t, k: MODEL.encode(params, i, t, train=True, key=k)[0])(
            batch["image"], batch["task"], keys
        )
        total, count, start = 0.0, 0.0, 0
        for kind, slots in SLOTS.items():

            def slot(maps, own, kind=kind):
                outputs = MODEL.decode(params, kind, maps, own["task"])
                return LOSSES[kind](outputs, own, own["valid"])

            own, start = slice(start, start + slots), start + slots
            sums, counts = jax.vmap(slot)(maps[own], {k: v[own] for k, v in batch.items()})
            mine = batch["task"][own] == task
            total, count = total + (sums * mine).sum(), count + (counts * mine).sum()
        return total / jnp.maximum(count, 1)

    return jax.value_and_grad(task_loss)(params)


@pytest.fixture(scope="module")
def separate(params):
    """Losses [T] of MIXED, and their gradients one by one."""
    pairs = [jax.device_get(one_task(params, MIXED, task)) for task in range(T)]
    return np.array([loss for loss, _ in pairs]), [gradient for _, gradient in pairs]


def shared_vector(gradient) -> np.ndarray:
    """Encoder and all decoders as one float64 vector; a decoder is zero for other types' tasks."""
    leaves = jax.tree.leaves((gradient["encoder"], gradient["decoders"]))
    return np.concatenate([np.ravel(leaf) for leaf in leaves]).astype(np.float64)


def assert_close(actual, expected, tolerance: float) -> None:
    """Every leaf, relative to the largest number of the tree.

    (Not to its own: a bias on a heat map moves no point, and its gradient is rounding alone.)
    """
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(
            a, b, rtol=0, atol=tolerance * largest, err_msg=jax.tree_util.keystr(path)
        )


PRESENT = np.array([True, True, True, True, True, False])


@pytest.mark.parametrize("run", [PLAIN, STACK], ids=["plain", "stack"])
def test_losses_are_means_over_all_slots_of_a_task(params, separate, run):
    losses, present, *_ = run(params, MIXED)
    np.testing.assert_allclose(losses, separate[0], rtol=1e-5)
    np.testing.assert_array_equal(present, PRESENT)
    assert losses[SEG3] == 0


def test_the_gramian_is_of_the_separate_gradients(params, separate):
    vectors = np.stack([shared_vector(g) for g in separate[1]])
    expected = vectors @ vectors.T
    gramian = STACK(params, MIXED)[3]
    norms = np.sqrt(np.diagonal(expected))
    np.testing.assert_array_less(np.abs(gramian - expected), 1e-5 * np.outer(norms, norms) + 1e-12)
    assert PLAIN(params, MIXED)[3] is None


def test_plain_is_the_sum_of_the_separate_gradients(params, separate):
    expected = jax.tree.map(lambda *g: sum(g), *separate[1])
    assert_close(PLAIN(params, MIXED)[2], expected, 1e-5)


def test_pcgrad_is_the_literal_one_on_the_separate_gradients(params, separate):
    vectors = [shared_vector(g) for g in separate[1]]
    orders = surgery.random_orders(jax.random.split(KEY)[1], T)
    present = np.flatnonzero(PRESENT)
    weights = np.zeros(T)
    for i in present:
        projected, coefficients = vectors[i], np.eye(T)[i]
        for j in map(int, orders[i]):
            if j in present and projected @ vectors[j] < 0:
                ratio = (projected @ vectors[j]) / (vectors[j] @ vectors[j])
                projected = projected - ratio * vectors[j]
                coefficients[j] -= ratio
        weights += coefficients
    assert weights.max() > 1.01, "a batch without a conflict shows nothing"
    # Whatever the method, the weights of the tasks present sum to their number.
    weights *= len(present) / weights.sum()

    grads = STACK(params, MIXED)[2]
    expected = sum(w * v for w, v in zip(weights, vectors, strict=True))
    actual = shared_vector(grads)
    assert np.linalg.norm(actual - expected) < 1e-5 * np.linalg.norm(expected)
    # Heads get the plain gradient of their own task.
    plain = jax.tree.map(lambda *g: sum(g), *[g["heads"] for g in separate[1]])
    assert_close(grads["heads"], plain, 1e-5)
    row_of_seg3 = grads["heads"]["segmentation"]["kernel"][1]
    assert (row_of_seg3 == 0).all()


@pytest.mark.parametrize("run", [PLAIN, STACK], ids=["plain", "stack"])
def test_every_mix_of_tasks_is_one_program(params, run):
    run(params, MIXED)
    before = len(TRACED)
    for task in (
        [CLS2] * 3 + [DET] + [PTS] * 2 + [SEG3] * 2,
        [CLS3] * 3 + [DET, PTS, PTS, SEG2, SEG3],
    ):
        losses, present, grads, _ = run(params, make_batch(task))
        np.testing.assert_array_equal(present, np.isin(np.arange(T), task))
        assert jnp.isfinite(losses).all()
        for kind, rows in grads["heads"].items():
            of_kind = [t for t in range(T) if TASKS[t].type == kind]
            trained = [bool((rows["kernel"][row] != 0).any()) for row in range(len(of_kind))]
            assert trained == [t in task for t in of_kind]
    assert len(TRACED) == before
    assert run._cache_size() == 1


def without(batch, *tasks: int):
    """The batch with no valid image of these tasks."""
    gone = np.isin(batch["task"], tasks)
    return {**batch, "valid": batch["valid"] & ~gone[:, None]}


@pytest.mark.parametrize("broken", [CLS2, DET, PTS, SEG2])
@pytest.mark.parametrize("part", ["heads", "decoders"])
def test_a_task_that_is_not_finite_is_left_out_as_if_absent(params, part, broken):
    kind = TASKS[broken].type
    row = [t for t in range(T) if TASKS[t].type == kind].index(broken)

    def spoil(leaf):
        leaf = leaf.copy()
        leaf[row if part == "heads" else ...] = np.nan
        return leaf

    spoilt = {**params, part: {**params[part]}}
    spoilt[part][kind] = jax.tree.map(spoil, params[part][kind])
    # A decoder is shared: all tasks of its type go.
    out = [broken] if part == "heads" else [t for t in range(T) if TASKS[t].type == kind]
    out = [t for t in out if PRESENT[t]]

    losses, present, grads, gramian = STACK(spoilt, MIXED)
    kept_losses, kept_present, kept, kept_gramian = STACK(params, without(MIXED, *out))
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(losses)), out)
    np.testing.assert_array_equal(present, kept_present)
    np.testing.assert_array_equal(present, PRESENT & ~np.isin(np.arange(T), out))
    np.testing.assert_allclose(losses[present], kept_losses[present], rtol=1e-6)
    assert_close(gramian, kept_gramian, 1e-6)
    assert_close(grads, kept, 1e-6)


def test_when_no_task_is_finite_the_gradient_is_zero(params):
    spoilt = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), params)
    losses, present, grads, _ = STACK(spoilt, MIXED)
    assert not present.any()
    assert np.isnan(losses[PRESENT]).all()
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads))


# ---- Mixtures of experts: routers have losses of their own ----

MIXTURE = dataclasses.replace(
    MODEL, mixture=Mixture(experts=3, layers=(1, 2), top_k=2, capacity=1.5)
)
ROUTER_LOSS = RouterLoss(balance_weight=0.5, z_weight=0.1)
OF_MIXTURE = dataclasses.replace(
    FUNCTIONS, encode=MIXTURE.encode, encode_slots=MIXTURE.encode_slots, auxiliary=ROUTER_LOSS
)


@pytest.fixture(scope="module")
def of_mixture(perturbed):
    """{engine: gradient}, and that of one plain function, with the routers' loss and without."""
    params = perturbed(MIXTURE)

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def by_hand(params, routers):
        keys = jax.random.split(jax.random.split(KEY)[0], 8)

        def total(params):
            maps, routing = jax.vmap(
                lambda i, t, k: MIXTURE.encode(params, i, t, train=True, key=k)
            )(MIXED["image"], MIXED["task"], keys)
            sums, counts = slot_losses(OF_MIXTURE, params, maps, MIXED)
            counts = merge_slots(counts, MIXED["task"], T)[MIXED["task"]]
            auxiliary = ROUTER_LOSS(routing, MIXED["valid"])
            return (sums / jnp.maximum(counts, 1)).sum() + routers * auxiliary

        return jax.grad(total)(params)

    def run(engine):
        answer = jax.jit(
            lambda p, b: multitask.value_and_grad(OF_MIXTURE, p, b, {}, KEY, engine=engine)[2],
            compiler_options=QUICKLY,
        )
        return answer(params, MIXED)

    grads = {engine: run(engine) for engine in ENGINES}
    return grads, by_hand(params, jnp.float32(1)), by_hand(params, jnp.float32(0))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_routers_loss_is_added_once(of_mixture, engine):
    grads, expected, _ = of_mixture
    assert_close(grads[engine], expected, 1e-5)


def test_the_routers_loss_is_felt(of_mixture):
    _, *by_hand = of_mixture
    routers = [g["encoder"]["moe_blocks"]["mlp"]["router"]["kernel"] for g in by_hand]
    assert jnp.isfinite(jnp.stack(routers)).all()
    assert jnp.abs(routers[0] - routers[1]).max() > 1e-3


def test_a_task_embedding_is_trained_by_its_own_task_alone(of_mixture):
    for grads in of_mixture[0].values():
        trained = np.abs(grads["task_embedding"]).max(axis=1) > 0
        # The routers' loss is a mean over all valid images, so no task is left out of it.
        np.testing.assert_array_equal(trained, PRESENT)


# ---- A model to reckon by hand: its losses are roots, whose slope at 0 is not finite ----


def root_of_products(params, images, power=0.5, **settings):
    """One image [3] a slot: L_t = sum of |image * encoder + decoder * head_t| ** power."""
    functions = Functions(
        encode=lambda params, image, task, *, train, key: (image * params["encoder"], {}),
        decode=lambda params, kind, maps, task: {
            "answer": maps + params["decoders"][kind] * params["heads"][kind][task]
        },
        loss=lambda kind, outputs, labels, valid: (
            (jnp.abs(outputs["answer"]) ** power).sum(),
            valid.sum().astype(jnp.float32),
        ),
        slots={"regression": 3},
        tasks=2,
    )
    batch = {
        "image": jnp.array(images)[:, None],
        "task": jnp.array([0, 1, 1]),
        "valid": jnp.ones((3, 1), bool),
    }
    return multitask.value_and_grad(functions, params, batch, {}, KEY, **settings)[:3]


ROOT_PARAMS = {
    "encoder": jnp.ones(3),
    "decoders": {"regression": jnp.float32(0.5)},
    "heads": {"regression": jnp.zeros(2)},
}


def test_both_engines_and_sum_and_mean_agree():
    images = [[1.0, 4.0, 9.0], [4.0, 1.0, 1.0], [16.0, 4.0, 1.0]]
    losses, present, plain = root_of_products(ROOT_PARAMS, images, engine="plain")
    np.testing.assert_allclose(losses, [6, (4 + 7) / 2])
    assert present.all()
    np.testing.assert_allclose(plain["encoder"], [0.5 + 1 / 2 + 2 / 2, 1 + 0.25 + 0.5, 1.5 + 0.5])
    for method in ("sum", "mean"):
        stack = root_of_products(ROOT_PARAMS, images, engine="stack", method=method)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
            stack,
            (losses, present, plain),
        )


def test_a_task_whose_gradient_is_zero_is_left_out():
    """Its share of the weights goes to the others, instead of all of it to itself."""
    images = [[0.0, 0.0, 0.0], [4.0, 1.0, 1.0], [16.0, 4.0, 1.0]]
    # Slot 0 is of task 0: nothing it sees moves the encoder, and with heads at 0 no decoder.
    smooth = {**ROOT_PARAMS, "heads": {"regression": jnp.array([1.0, 0.0])}}
    smooth["decoders"] = {"regression": jnp.float32(0.0)}
    losses, present, grads = root_of_products(
        smooth, images, engine="stack", method="mgda", power=2
    )
    np.testing.assert_array_equal(present, [False, True])
    assert losses[0] == 0
    expected = np.array([4.0**2 + 16**2, 1 + 4**2, 1 + 1]) / 2 * 2
    np.testing.assert_allclose(grads["encoder"], expected, rtol=1e-6)


def test_a_gradient_that_is_not_finite_marks_a_finite_loss():
    images = [[4.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
    losses, present, grads = root_of_products(
        ROOT_PARAMS, images, engine="stack", skip_nonfinite=True
    )
    np.testing.assert_array_equal(losses, [4, np.nan])
    np.testing.assert_array_equal(present, [True, False])
    np.testing.assert_allclose(grads["encoder"], [1, 0.5, 0.5])
    assert grads["heads"]["regression"][1] == 0


def test_the_layout_of_the_batch_is_that_of_the_types():
    assert tuple(SLOTS) == TYPES == MODEL.types
