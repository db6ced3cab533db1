"""What every engine makes of weights, against one jax.grad a task, on a small model.

The encoder has a stack of three layers and a task embedding, each of two types a decoder, each of
five tasks a head. Tasks 0 and 3 fill two slots, task 4 is absent.
"""

import functools
import os
import pathlib
import re
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from usfm.objectives import chain, multitask
from usfm.objectives.functions import Functions, merge_slots, slot_losses
from usfm.objectives.gramian import Groups

T, N, WIDTH = 5, 4, 8
SLOTS = {"classification": 3, "regression": 3}
TYPE = ("classification", "classification", "regression", "regression", "regression")
LOCAL = jnp.array([0, 1, 0, 1, 2])
KEY = jax.random.key(3)
PRESENT = np.array([True, True, True, True, False])
# XLA's own passes run, LLVM's do not: a third of the time to compile.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def encode(params, image, task, *, train, key):
    x = image + params["task_embedding"][task] * jax.random.normal(key, ())
    for layer in range(3):
        x = jnp.tanh(x @ params["encoder"]["blocks"]["kernel"][layer])
    return x[None] * params["encoder"]["scale"], {"mean": x.mean(1)[None]}  # [layers, n]


def decode(params, kind, maps, task):
    features = jnp.tanh(maps[0] @ params["decoders"][kind]["kernel"])
    return {"answer": features @ params["heads"][kind]["kernel"][LOCAL[task]]}


def loss(kind, outputs, labels, valid):
    values = (outputs["answer"] - labels["label"]) ** 2
    return jnp.where(valid, values, 0).sum(), valid.sum().astype(jnp.float32)


FUNCTIONS = Functions(
    encode, decode, loss, SLOTS, tasks=T, auxiliary=lambda aux, valid: (aux["mean"] ** 2).mean()
)
RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


PARAMS = {
    "encoder": {"blocks": {"kernel": normal(3, WIDTH, WIDTH) * 0.5}, "scale": normal(WIDTH)},
    "task_embedding": normal(T, WIDTH),
    "decoders": {kind: {"kernel": normal(WIDTH, 8) * 0.5} for kind in SLOTS},
    "heads": {kind: {"kernel": normal(TYPE.count(kind), 8)} for kind in SLOTS},
}
BATCH = {
    "image": normal(6, N, WIDTH),
    "task": jnp.array([0, 1, 0, 3, 2, 3]),
    "valid": jnp.asarray(RNG.uniform(size=(6, N)) < 0.8),
    "label": normal(6, N),
}
NO_AUXILIARY = Functions(encode, decode, loss, SLOTS, tasks=T)


def of_task(params, batch, task):
    """L_t alone, written without the engines."""
    keys = jax.random.split(jax.random.split(KEY)[0], 6)
    maps, _ = jax.vmap(lambda i, t, k: encode(params, i, t, train=True, key=k))(
        batch["image"], batch["task"], keys
    )
    sums, counts = slot_losses(FUNCTIONS, params, maps, batch)
    total, count = (merge_slots(values, batch["task"], T)[task] for values in (sums, counts))
    return total / jnp.maximum(count, 1)


separate = compiled(jax.value_and_grad(of_task), static_argnums=2)
APART = [jax.device_get(separate(PARAMS, BATCH, task)) for task in range(T)]
PLAIN_HEADS = jax.tree.map(lambda *g: sum(g), *[g["heads"] for _, g in APART])


def shared(gradient) -> np.ndarray:
    leaves = jax.tree.leaves((gradient["encoder"], gradient["decoders"]))
    return np.concatenate([np.ravel(leaf) for leaf in leaves]).astype(np.float64)


def answered(weighting, engine, state=None, functions=NO_AUXILIARY, batch=BATCH, **settings):
    """The answer as a dict, computed as one program."""
    state = weighting.init(T) if state is None else state

    @compiled
    def run(params, batch, state):
        out = multitask.answer(
            functions, params, batch, state, KEY, weighting=weighting, engine=engine, **settings
        )
        names = ("losses", "present", "left_out", "weights", "grads", "gramian", "state")
        return {name: getattr(out, name) for name in names}

    return run(PARAMS, batch, state)


def assert_close(actual, expected, tolerance):
    """Each leaf by the length of its difference, in its own length."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        difference = np.linalg.norm(a - b)
        assert difference <= tolerance * max(np.linalg.norm(b), 1e-6), jax.tree_util.keystr(path)


STATIC = np.array([0.5, 2, 1, 1.5, 3], np.float32)
EVERYTHING = Groups(
    ("all",),
    jax.tree.map(lambda _: 0, {"encoder": PARAMS["encoder"], "decoders": PARAMS["decoders"]}),
)
ENGINES = {
    "plain": {},
    "stack": {},
    "stack_map": {"at_once": 2},  # of 3 slots: one is left over
    "layer": {"layer": EVERYTHING},
}


@pytest.mark.parametrize("engine", ENGINES)
def test_static_weights_weigh_what_is_shared_and_nothing_else(engine):
    out = answered(chain.make("sum", static=STATIC), engine, **ENGINES[engine])
    there = np.where(PRESENT, STATIC, 0)
    np.testing.assert_allclose(out["weights"], there / there.sum() * PRESENT.sum(), rtol=1e-6)
    np.testing.assert_array_equal(out["present"], PRESENT)
    np.testing.assert_allclose(out["losses"], [value for value, _ in APART], rtol=1e-5)
    expected = sum(w * shared(g) for w, (_, g) in zip(out["weights"], APART, strict=True))
    assert np.linalg.norm(shared(out["grads"]) - expected) < 1e-6 * np.linalg.norm(expected)
    assert_close(out["grads"]["heads"], PLAIN_HEADS, 1e-6)
    embedding = sum(g["task_embedding"] for _, g in APART)
    assert_close(out["grads"]["task_embedding"], embedding, 2e-6)


@pytest.mark.parametrize("method", ["rlw", "uncertainty", "famo"])
def test_what_needs_no_gradients_is_the_same_in_one_pass_and_apart(method):
    weighting = chain.make(method)
    state = jax.tree.map(lambda a: a + (a.ndim > 0) * jnp.linspace(0.1, 1, T) if a.ndim < 2 else a,
                         weighting.init(T))  # fmt: skip
    plain, stack = (answered(weighting, engine, state) for engine in ("plain", "stack"))
    assert plain["gramian"] is None
    del plain["gramian"], stack["gramian"]
    assert_close(stack, plain, 1e-6)
    assert np.ptp(plain["weights"][PRESENT]) > 0.05


@pytest.mark.parametrize("method", ["gradnorm", "gradvac"])
def test_the_layer_of_all_parameters_is_what_the_stack_gives(method):
    weighting = chain.make(method)
    layer = answered(weighting, "layer", layer=EVERYTHING)
    stack = answered(weighting, "stack")
    mapped = answered(weighting, "stack_map", at_once=2)
    assert_close(layer, stack, 2e-6)
    assert_close(mapped, stack, 1e-6)


def test_a_layer_is_the_gramian_of_its_parameters_alone():
    blocks = {"blocks": {"kernel": np.array([-1, -1, 0])}, "scale": -1}
    layer = Groups(("last",), {
        "encoder": blocks, "decoders": jax.tree.map(lambda _: -1, PARAMS["decoders"])
    })  # fmt: skip
    out = answered(chain.make("gradnorm"), "layer", layer=layer)
    rows = np.stack([np.ravel(g["encoder"]["blocks"]["kernel"][2]) for _, g in APART])
    assert_close(out["gramian"], rows @ rows.T, 1e-5)
    expected = sum(shared(g) for _, g in APART)  # all weights are 1 at first
    assert np.linalg.norm(shared(out["grads"]) - expected) < 1e-6 * np.linalg.norm(expected)


def test_an_auxiliary_loss_is_never_weighted():
    weighting = chain.make("sum", static=STATIC)
    with_it = {e: answered(weighting, e, functions=FUNCTIONS) for e in ("plain", "stack")}
    without = {e: answered(weighting, e) for e in ("plain", "stack")}

    def of_auxiliary(engine):
        one, other = with_it[engine]["grads"], without[engine]["grads"]
        return jax.tree.map(lambda a, b: a - b, one["encoder"], other["encoder"])

    keys = jax.random.split(jax.random.split(KEY)[0], 6)

    def auxiliary(params):
        _, aux = jax.vmap(lambda i, t, k: encode(params, i, t, train=True, key=k))(
            BATCH["image"], BATCH["task"], keys
        )
        return FUNCTIONS.auxiliary(aux, BATCH["valid"])

    expected = jax.grad(auxiliary)(PARAMS)["encoder"]
    assert_close(of_auxiliary("plain"), expected, 1e-4)  # a difference of larger numbers
    # Apart, a task carries its slots' share of it, weighted with it.
    blocks = [tree["blocks"]["kernel"] for tree in (of_auxiliary("stack"), expected)]
    assert not np.allclose(*blocks, rtol=1e-2)
    for out in with_it.values():
        assert_close(out["grads"]["heads"], PLAIN_HEADS, 1e-6)
    in_turn = answered(weighting, "stack_map", functions=FUNCTIONS, at_once=2)
    assert_close(in_turn["grads"], with_it["stack"]["grads"], 1e-6)


def test_famo_looks_at_the_same_batch_again():
    weighting = chain.make("famo")
    moved = jax.tree.map(lambda leaf: leaf * np.float32(0.9), PARAMS)

    @compiled
    def run(params, moved):
        state = weighting.init(T)
        out = multitask.answer(NO_AUXILIARY, params, BATCH, state, KEY, weighting=weighting)
        return multitask.look_back(NO_AUXILIARY, moved, BATCH, KEY, out, weighting)

    before = np.array([value for value, _ in APART])[:4]
    after = np.array([separate(moved, BATCH, task)[0] for task in range(4)])
    fell = np.log(before) - np.log(after)
    step = -0.025 * np.sign(fell - fell.mean())  # Adam's first one
    np.testing.assert_allclose(run(PARAMS, moved)["famo"]["xi"], [*step, 0], rtol=1e-3)


@pytest.fixture(scope="module")
def of_torchjd(tmp_path_factory):
    """Aggregated gradients by TorchJD, by method, of the tasks that are present."""
    python = os.environ.get("PEER_PY")
    if not python:
        pytest.skip("PEER_PY does not name a python that has torch and torchjd")
    folder = tmp_path_factory.mktemp("torchjd")
    np.save(folder / "jacobian.npy", np.stack([shared(g) for _, g in APART[:4]]))
    script = pathlib.Path(__file__).parents[1] / "fixtures/aggregate_torchjd.py"
    command = [python, str(script), str(folder / "jacobian.npy"), str(folder / "out.npz")]
    subprocess.run(command, check=True)
    return dict(np.load(folder / "out.npz"))


METHODS = ("sum", "upgrad", "dualproj", "aligned_mtl", "imtl_g", "config", "cagrad")


@pytest.mark.parametrize("method", METHODS)
def test_the_aggregated_gradient_is_torchjds_live(of_torchjd, method):
    """Up to its length, for which there is one convention of ours."""
    out = answered(chain.make(method), "stack")
    ours, theirs = shared(out["grads"]), of_torchjd[method]
    ours, theirs = ours / np.linalg.norm(ours), theirs / np.linalg.norm(theirs)
    assert np.linalg.norm(ours - theirs) < 1e-4
    # The direction is not the sum's by chance. (Of these gradients no one opposes their mean.)
    if method not in ("sum", "dualproj"):
        total = of_torchjd["sum"] / np.linalg.norm(of_torchjd["sum"])
        assert np.linalg.norm(theirs - total) > 1e-2


# ---- Meshes ----

EIGHT = {
    "image": normal(8, N, WIDTH),
    "task": jnp.array([0, 1, 0, 1, 2, 3, 4, 3]),
    "valid": jnp.ones((8, N), bool),
    "label": normal(8, N),
}
OF_EIGHT = Functions(encode, decode, loss, {"classification": 4, "regression": 4}, tasks=T)


def on_mesh(data: int, fsdp: int):
    """(gradient and Gramian, the compiled program's text); parameters spread over fsdp."""
    mesh = jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    def place(tree, spec):
        return jax.tree.map(lambda a: jax.device_put(a, NamedSharding(mesh, spec(a))), tree)

    with jax.set_mesh(mesh):
        params = place(PARAMS, lambda a: P(*[None] * (a.ndim - 1), "fsdp"))
        batch = place(EIGHT, lambda a: P(("data", "fsdp")))

        def run(params, batch):
            weighting = chain.make("upgrad")
            out = multitask.answer(
                OF_EIGHT, params, batch, {}, KEY, weighting=weighting, engine="stack"
            )
            return out.grads, out.gramian

        program = compiled(run).lower(params, batch).compile()
        return jax.device_get(program(params, batch)), str(program.as_text())


@pytest.fixture(scope="module")
def one_device():
    return answered(chain.make("upgrad"), "stack", functions=OF_EIGHT, batch=EIGHT)


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (1, 8)])
def test_a_mesh_changes_nothing_and_sums_the_gramian_once(one_device, data, fsdp):
    found, text = on_mesh(data, fsdp)
    assert_close(found, (one_device["grads"], one_device["gramian"]), 2e-6)  # sums in another order
    results = re.findall(r"= (.*) all-reduce(?:-start)?\(", text)
    square = re.findall(r"f32\[((?:1,)?8,8|5,5)\]", " ".join(results))
    assert square == ["1,8,8"]


# ---- GradDrop ----


def signed_sums(static):
    """Positive and negative parts of the weighted task gradients, summed, leaf by leaf."""
    trees = [
        jax.tree.map(lambda g, w=w: w * np.float64(g), (gradient["encoder"], gradient["decoders"]))
        for w, (_, gradient) in zip(static, APART, strict=True)
    ]
    up = jax.tree.map(lambda *g: np.maximum(g, 0).sum(0), *trees)
    down = jax.tree.map(lambda *g: np.maximum(-np.array(g), 0).sum(0), *trees)
    return np.concatenate([np.ravel(a) for a in jax.tree.leaves(up)]), np.concatenate(
        [np.ravel(a) for a in jax.tree.leaves(down)]
    )


@pytest.mark.parametrize("engine", ["stream", "stack", "stack_map"])
def test_graddrop_keeps_the_sum_of_one_sign(engine):
    out = answered(chain.make("graddrop", static=STATIC), engine, skip_nonfinite=True)
    np.testing.assert_allclose(out["losses"], [value for value, _ in APART], rtol=1e-5)
    np.testing.assert_array_equal(out["present"], PRESENT)
    assert_close(out["grads"]["heads"], PLAIN_HEADS, 1e-6)
    embedding = sum(g["task_embedding"] for _, g in APART)
    assert_close(out["grads"]["task_embedding"], embedding, 2e-6)
    up, down = signed_sums(out["weights"])
    drawn = np.concatenate(
        [np.ravel(a) for a in jax.tree.leaves((out["grads"]["encoder"], out["grads"]["decoders"]))]
    )
    close = functools.partial(np.isclose, rtol=1e-4, atol=1e-6)
    assert (close(drawn, up) | close(drawn, -down)).all()
    mixed = (up > 1e-3) & (down > 1e-3)
    ups = close(drawn, up)[mixed]
    # As many as the purities say, within three standard deviations of so many coins.
    purity = (up / (up + down))[mixed]
    spread = 3 * np.sqrt((purity * (1 - purity)).sum())
    assert abs(ups.sum() - purity.sum()) < spread
    assert 0.2 < ups.mean() < 0.8


def test_graddrop_draws_are_dense_torchjds_by_another_name():
    """P = (1 + sum g / sum |g|) / 2 > u keeps the positive parts."""
    rows = np.random.default_rng(1).normal(size=(4, 1000)).astype(np.float32)
    key = jax.random.key(2)
    out = multitask.graddrop.of_stack({"a": jnp.asarray(rows)}, jnp.eye(4), key)["a"]
    draw = np.asarray(jax.random.uniform(jax.random.fold_in(key, 0), (1000,)))
    purity = 0.5 * (1 + rows.sum(0) / np.abs(rows).sum(0))
    kept = (purity > draw) * (rows > 0) + (purity < draw) * (rows < 0)
    np.testing.assert_allclose(out, (kept * rows).sum(0), rtol=1e-5, atol=1e-6)


def test_a_stream_leaves_a_broken_task_out():
    params = jax.tree.map(jnp.copy, PARAMS)
    params["heads"]["regression"]["kernel"] = (
        params["heads"]["regression"]["kernel"].at[1].set(jnp.nan)
    )

    @functools.partial(compiled, static_argnums=1)
    def run(params, skip):
        out = multitask.answer(
            NO_AUXILIARY, params, BATCH, {}, KEY, weighting=chain.make("graddrop"),
            engine="stream", skip_nonfinite=skip,
        )  # fmt: skip
        return out.losses, out.present, out.left_out, out.grads

    losses, present, left_out, grads = run(params, True)
    np.testing.assert_array_equal(np.isnan(losses), [False, False, False, True, False])
    np.testing.assert_array_equal(present, [True, True, True, False, False])
    np.testing.assert_array_equal(left_out, [False, False, False, True, False])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert not np.isfinite(run(params, False)[3]["encoder"]["scale"]).all()


@pytest.mark.parametrize("engine", ["plain", "stack", "stream"])
def test_what_is_not_trained_stays_out(engine):
    """A leaf of None, as training/freeze.py makes them, is none in the gradient either."""
    blocks = PARAMS["encoder"]["blocks"]
    frozen = {
        **PARAMS,
        "encoder": {"blocks": {"kernel": None}, "scale": PARAMS["encoder"]["scale"]},
    }

    def whole(params):
        return {**params, "encoder": {**params["encoder"], "blocks": blocks}}

    functions = Functions(
        lambda params, *args, **named: encode(whole(params), *args, **named), decode, loss, SLOTS, T
    )
    method = "graddrop" if engine == "stream" else "sum"

    @compiled
    def run(params):
        return multitask.answer(
            functions,
            params,
            BATCH,
            {},
            KEY,
            weighting=chain.make(method),
            engine=engine,
            at_once=2,
        ).grads

    grads = run(frozen)
    assert grads["encoder"]["blocks"]["kernel"] is None
    if engine != "stream":
        expected = sum(gradient["encoder"]["scale"] for _, gradient in APART)
        assert_close(grads["encoder"]["scale"], expected, 1e-6)


# ---- What is recorded ----


def test_products_by_group_and_norms_without_their_noise():
    of = {
        "encoder": {"blocks": {"kernel": np.array([0, 1, 1])}, "scale": 1},
        "decoders": {kind: {"kernel": 0} for kind in SLOTS},
    }
    groups = Groups(("a", "b"), of)
    scale = jax.tree.map(lambda leaf: jnp.abs(leaf) + 0.5, PARAMS)

    @functools.partial(compiled, static_argnums=1)
    def run(params, halves):
        out = multitask.answer(NO_AUXILIARY, params, BATCH, {}, KEY, engine="stack", halves=halves)
        assert out.products is not None
        plain, scaled = out.products(groups, None), out.products(groups, scale)
        return out.grads, out.gramian, plain.gramian, plain.square_norm, scaled.gramian

    grads, gramian, plain, norms, scaled = run(PARAMS, True)
    whole = run(PARAMS, False)
    assert_close((grads, gramian, plain, scaled), (*whole[:3], whole[4]), 1e-6)

    def rows(gradient, scale):
        """Vectors of the two groups."""
        layers = gradient["encoder"]["blocks"]["kernel"] * scale["encoder"]["blocks"]["kernel"]
        last = gradient["encoder"]["scale"] * scale["encoder"]["scale"]
        heads = [np.ravel(gradient["decoders"][k]["kernel"] * scale["decoders"][k]["kernel"])
                 for k in SLOTS]  # fmt: skip
        return np.concatenate([np.ravel(layers[0]), *heads]), np.concatenate(
            [np.ravel(layers[1:]), last]
        )

    ones = jax.tree.map(jnp.ones_like, PARAMS)
    for group in range(2):
        left = np.stack([rows(g, ones)[group] for _, g in APART])
        right = np.stack([rows(g, scale)[group] for _, g in APART])
        assert_close(plain[group], left @ left.T, 1e-5)
        assert_close(scaled[group], left @ right.T, 1e-5)
    assert_close(plain.sum(0), gramian, 1e-6)

    # Task 2 fills one slot: without halves nothing says how large its noise is.
    assert np.isnan(whole[3][:, [1, 2, 4]]).all()
    first, second = (
        {**BATCH, "valid": BATCH["valid"] & jnp.asarray(half)}
        for half in ([True, True, False, False], [False, False, True, True])
    )
    a, b = (rows(separate(PARAMS, half, 2)[1], ones) for half in (first, second))
    np.testing.assert_allclose(norms[:, 2], [x @ y for x, y in zip(a, b, strict=True)], rtol=1e-4)
    assert np.isnan(norms[:, 4]).all()


@pytest.mark.parametrize(
    ("method", "parts", "functions", "static"),
    [
        ("sum", 2, NO_AUXILIARY, None),
        ("sum", 4, NO_AUXILIARY, STATIC),
        ("rlw", 2, FUNCTIONS, None),
        ("imtl_l", 4, FUNCTIONS, STATIC),  # its weights follow the losses
    ],
)
def test_a_batch_taken_in_parts_gives_the_same_answer(method, parts, functions, static):
    """Not all images are valid, so the parts of a slot have different counts."""
    weighting = chain.make(method, static=static)
    whole = answered(weighting, "plain", functions=functions)
    in_parts = answered(weighting, "plain", functions=functions, parts=parts)
    assert_close(in_parts, whole, 2e-6)  # sums of float32 in another order


def test_parts_are_encoded_once_where_no_weight_asks_for_a_loss():
    def products(functions):
        weighting = chain.make("sum")
        step = compiled(
            lambda params: (
                multitask.answer(
                    functions, params, BATCH, weighting.init(T), KEY, weighting=weighting, parts=2
                ).grads
            )
        )
        return str(step.lower(PARAMS).compile().as_text()).count(" dot(")

    # Three layers, a decoder and a head of each of two types, and twice as many backward, but for
    # the images' and embeddings' own; the auxiliary loss asks for the layers' outputs first.
    assert products(NO_AUXILIARY) == 19
    assert products(FUNCTIONS) == 19 + 3
