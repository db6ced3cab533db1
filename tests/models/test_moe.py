"""Mixtures of experts against explicit loops.

Experts are made unequal and routers turned by noise of order 1 wherever that is not the point:
equal experts answer alike however badly they are chosen.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usfm.errors import UserError
from usfm.models import dinov3, functional, lora
from usfm.models.lora import LoRA
from usfm.models.moe import Mixture, MoE, upcycle
from usfm.training import sharding

WIDTH, MLP_WIDTH, EXPERTS = 16, 24, 4
IMAGES, TOKENS = 8, 12
PLENTY = 4.0  # a capacity that no router exhausts
# Two ways to sum the same float32 numbers, of order 1 and some dozens of terms.
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)


def make_mixture(top_k: int = 0, capacity: float = PLENTY, experts: int = EXPERTS) -> Mixture:
    return Mixture(experts, (0,), top_k, capacity)


def build(mixture: Mixture, gated: bool = False, rank: int = 0, dtype: str = "float32"):
    """(params, run): unequal experts, and run(params, x, condition, train) -> (y, routing)."""

    def make(rngs):
        of = LoRA(rank, alpha=4)
        return MoE(WIDTH, MLP_WIDTH, gated, mixture, of, jnp.dtype(dtype), rngs)

    structure = functional.structure(make)

    @functools.partial(jax.jit, static_argnames="train")
    def run(params, x, condition, train):
        return functional.merge(structure, params)(x, condition, train=train)

    return noise(jax.eval_shape(lambda: functional.init(make, jax.random.key(0)))), run


def noise(shapes):
    """Random parameters of these shapes."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: 0.3 * rng.normal(size=a.shape).astype(np.float32), shapes)


def make_inputs(*lead: int, seed: int = 1):
    """Tokens [*lead, IMAGES, TOKENS, WIDTH], task embeddings, and a cotangent of the tokens."""
    rng = np.random.default_rng(seed)
    shapes = ((IMAGES, TOKENS, WIDTH), (IMAGES, WIDTH), (IMAGES, TOKENS, WIDTH))
    return [rng.normal(size=(*lead, *shape)).astype(np.float32) for shape in shapes]


def objective(run, train: bool):
    """The gradients of a scalar that every output has a share in, and y."""

    def value(params, x, condition, cotangent):
        y, routing = run(params, x, condition, train)
        shares = (routing["gate"] + routing["load"]) * jnp.arange(routing["gate"].shape[-1])
        return (y * cotangent).sum() + shares.sum() + routing["z"].sum(), y

    return jax.jit(jax.grad(value, (0, 1, 2), has_aux=True))


def assert_close(ours, theirs):
    jax.tree.map(close, ours, theirs)


def logits_of(params, x, condition):
    """[B, N, E], from the concatenation that the router is defined on."""
    both = jnp.concatenate([x, jnp.broadcast_to(condition[:, None], x.shape)], axis=-1)
    return both @ params["router"]["kernel"]


def serve(params, inputs, top_k: int, capacity: int | None = None) -> np.ndarray:
    """Which expert serves which token, bool [B, N, E], one choice after the other."""
    logits = np.asarray(logits_of(params, *inputs))
    order = np.argsort(-logits.reshape(-1, logits.shape[-1]), axis=1, kind="stable")
    served = np.zeros(order.shape, bool)
    for choice in range(order.shape[1]):
        for token, expert in enumerate(order[:, choice]):
            room = capacity is None or served[:, expert].sum() < capacity
            served[token, expert] = room and served[token].sum() < top_k
    return served.reshape(logits.shape)


def loop(served: np.ndarray, gated: bool = False):
    """MoE's function, by these choices and an expert at a time."""

    @functools.partial(jax.jit, static_argnames="train")
    def run(params, x, condition, train):
        del train  # `served` knows
        logits = logits_of(params, x, condition)
        weights = jnp.where(served, jnp.exp(logits), 0)
        gates = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-9)
        y = jnp.zeros(x.shape)
        for e in range(served.shape[-1]):
            of = {
                name: lambda rows, p=p, e=e: rows @ p["kernel"][e] + p["bias"][e]
                for name, p in params.items()
                if name != "router"
            }
            if gated:
                hidden = of["gate"](x) * jax.nn.sigmoid(of["gate"](x)) * of["up"](x)
            else:
                hidden = jax.nn.gelu(of["up"](x), approximate=False)
            y = y + gates[..., e, None] * of["down"](hidden)
        odds = jnp.exp(logits)
        gate = (odds / odds.sum(-1, keepdims=True)).mean(1)
        z = (jnp.log(odds.sum(-1)) ** 2).mean(1)
        dense = served.all()
        load = jax.lax.stop_gradient(gate) if dense else served.mean(1) / served[0, 0].sum()
        return y, {"gate": gate, "load": load, "z": z, "dropped": jnp.zeros(len(x))}

    return run


def test_a_fresh_mixture_is_of_equal_experts_without_bias():
    mixture = make_mixture(top_k=2)
    params = functional.init(
        lambda rngs: MoE(WIDTH, MLP_WIDTH, True, mixture, LoRA(4), jnp.dtype("float32"), rngs),
        jax.random.key(0),
    )
    assert set(params) == {"gate", "up", "down", "router"}
    assert params["router"]["kernel"].shape == (2 * WIDTH, EXPERTS)
    for name in ("gate", "up", "down"):
        kernel = params[name]["kernel"]
        assert kernel.shape == (EXPERTS, *sorted((WIDTH, MLP_WIDTH), reverse=name == "down"))
        assert (kernel == kernel[0]).all()
        assert kernel[0].std() > 0.01
        assert not params[name]["bias"].any()
        assert not params[name]["lora_b"].any()
        assert (params[name]["lora_a"][0] != params[name]["lora_a"][1]).all()


@pytest.mark.parametrize(
    ("gated", "top_k", "train"),
    [(False, 0, True), (True, 0, True), (False, 2, False), (True, 2, True)],
)
def test_an_upcycled_mixture_answers_as_the_plain_network(gated, top_k, train):
    variant = dinov3.Variant(WIDTH, 3, 2, MLP_WIDTH, gated)

    def make(rngs):
        return dinov3.MLP(variant, LoRA(), jnp.dtype("float32"), rngs)

    shapes = jax.eval_shape(lambda: functional.init_stacked(make, 3, jax.random.key(0)))
    plain = noise(shapes)
    like, run = build(make_mixture(top_k, capacity=1.25), gated)
    router = {"kernel": noise(jax.ShapeDtypeStruct((3, 2 * WIDTH, EXPERTS), jnp.float32))}
    params = {**upcycle(jax.device_get(plain), EXPERTS), "router": router}
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda a: (3, *a.shape), like)
    x, condition, _ = make_inputs()
    for layer in (0, 2):
        of_plain, of_mixture = jax.tree.map(lambda a, i=layer: a[i], (plain, params))
        theirs = functional.merge(functional.structure(make), of_plain)(x, jnp.ones(WIDTH))
        ours, routing = run(of_mixture, x, condition, train)
        assert not routing["dropped"].any()
        close(ours, theirs)


@pytest.mark.parametrize(
    ("gated", "top_k", "train"),
    [(False, 0, True), (True, 0, False), (False, 1, True), (False, 2, False), (True, 2, True)],
)
def test_answers_routing_and_gradients_are_those_of_a_loop(gated, top_k, train):
    params, run = build(make_mixture(top_k), gated)
    *inputs, cotangent = make_inputs()
    reference = loop(serve(params, inputs, top_k or EXPERTS), gated)
    y, routing = run(params, *inputs, train)
    assert y.std() > 0.1
    close(routing["load"].sum(-1), 1)
    assert_close((y, routing), reference(params, *inputs, train))
    ours, theirs = (objective(f, train)(params, *inputs, cotangent) for f in (run, reference))
    assert_close(ours, theirs)


def test_an_image_is_answered_alike_in_any_company():
    params, run = build(make_mixture(2, capacity=0.5))
    x, condition, _ = make_inputs()
    y, routing = run(params, x, condition, train=False)
    alone = run(params, x[3:4], condition[3:4], train=False)
    assert_close(jax.tree.map(lambda a: a[3:4], (y, routing)), alone)
    assert not routing["dropped"].any()


def test_all_experts_chosen_is_the_dense_mixture_under_vmap_grad_and_scan():
    params, dense = build(make_mixture(0))
    _, sparse = build(make_mixture(EXPERTS, capacity=1.0))
    inputs = make_inputs(3)

    def apart(run):
        """Answers and gradients of each slot, with one set of weights."""
        return jax.vmap(objective(run, train=True), (None, 0, 0, 0))

    def summed(run):
        """Gradients of the slots' sum."""

        def total(params, *inputs):
            def value(x, condition, cotangent):
                y, routing = run(params, x, condition, True)
                return (y * cotangent).sum() + routing["z"].sum()

            return jax.vmap(value)(*inputs).sum()

        return jax.grad(total, (0, 1, 2))

    def scanned(run):
        """Gradients through two rematerialised layers."""

        def total(stack, x, condition, cotangent):
            @functools.partial(jax.checkpoint, prevent_cse=False)
            def layer(x, own):
                y, routing = run(own, x, condition, True)
                return x + y, routing["z"].sum()

            x, z = jax.lax.scan(layer, x, stack)
            return (x * cotangent).sum() + z.sum()

        def gradients(params, *inputs):
            stack = jax.tree.map(lambda a: jnp.stack([a, -a]), params)
            return jax.grad(total, (0, 1, 2))(stack, *(a[0] for a in inputs))

        return gradients

    for how in (apart, summed, scanned):
        ours, theirs = (jax.jit(how(run))(params, *inputs) for run in (sparse, dense))
        assert_close(ours, theirs)


def test_the_task_changes_the_routing():
    params, run = build(make_mixture(1))
    x, condition, _ = make_inputs()
    _, routing = run(params, np.broadcast_to(x[:1], x.shape), condition, train=True)
    assert len(np.unique(routing["load"], axis=0)) > 1
    assert routing["gate"].std(axis=0).min() > 0.01


def test_where_experts_are_full_the_next_best_serves():
    # 96 tokens with 2 choices among 4 experts of 48 rows each.
    params, run = build(make_mixture(2, capacity=1.0))
    *inputs, cotangent = make_inputs()
    params["router"]["kernel"][WIDTH:] *= 3
    served = serve(params, inputs, 2, capacity=48)
    wanted = serve(params, inputs, 2)
    assert wanted.sum((0, 1)).max() > 48
    assert served.sum() == wanted.sum()
    both = (objective(f, train=True)(params, *inputs, cotangent) for f in (run, loop(served)))
    assert_close(*both)
    _, routing = run(params, *inputs, train=True)
    close(routing["load"], wanted.mean(1) / 2)
    assert not routing["dropped"].any()


def prefer_first(params):
    """The same with a router that sends all tokens to expert 0, then 1, ..., given ones as task."""
    kernel = np.zeros_like(params["router"]["kernel"])
    kernel[WIDTH:] = -np.arange(kernel.shape[1]) / WIDTH
    return {**params, "router": {"kernel": kernel}}


def test_what_finds_no_room_is_dropped_and_counted():
    # 96 tokens with 2 choices between 2 experts of 64 rows each: the last 32 find none.
    params, run = build(make_mixture(2, capacity=0.6, experts=2))
    x = make_inputs()[0]
    ones = np.ones((IMAGES, WIDTH), np.float32)
    y, routing = run(prefer_first(params), x, ones, train=True)
    close(routing["dropped"], [0, 0, 0, 0, 0, 8 / 12, 1, 1])
    close(routing["load"], 0.5)
    served = np.arange(IMAGES * TOKENS).reshape(IMAGES, TOKENS, 1) < 64
    reference = loop(np.broadcast_to(served, (IMAGES, TOKENS, 2)))
    close(y, reference(prefer_first(params), x, ones, train=True)[0])
    assert not y[6:].any()


def test_a_token_with_one_of_its_choices_is_answered_by_that_one_alone():
    # 96 tokens with 2 choices among 3 experts of 48 rows each: all rows are taken. The first 48
    # have experts 0 and 1, the others are left with expert 2 alone.
    params, run = build(make_mixture(2, capacity=0.75, experts=3))
    x = make_inputs()[0]
    ones = np.ones((IMAGES, WIDTH), np.float32)
    y, routing = run(prefer_first(params), x, ones, train=True)
    close(routing["dropped"], [0, 0, 0, 0, 0.5, 0.5, 0.5, 0.5])
    served = np.zeros((IMAGES, TOKENS, 3), bool)
    served[:4, :, :2] = served[4:, :, 2] = True
    close(y, loop(served)(prefer_first(params), x, ones, train=True)[0])


@pytest.mark.parametrize(("experts", "top_k"), [(4, 1), (4, 2), (4, 4), (8, 2)])
def test_from_a_known_capacity_on_nothing_is_ever_dropped(experts, top_k):
    params, run = build(make_mixture(top_k, experts / (experts - top_k + 1), experts))
    x, condition, _ = make_inputs()
    random = params["router"]["kernel"]
    to_last = np.zeros_like(random)
    to_last[WIDTH:, -1] = 1
    for kernel in (random, 1000 * random, random + to_last, 100 * to_last):
        _, routing = run({**params, "router": {"kernel": kernel}}, x, condition, train=True)
        assert not routing["dropped"].any()


@pytest.mark.parametrize("top_k", [0, 2])
@pytest.mark.parametrize(("data", "fsdp", "expert"), [(4, 2, 1), (2, 2, 2)])
def test_many_devices_answer_as_one_and_sort_their_own_images(top_k, data, fsdp, expert):
    params, run = build(make_mixture(top_k, capacity=1.0))
    *inputs, cotangent = make_inputs()
    mesh = sharding.make_mesh({"data": data, "fsdp": fsdp, "expert": expert})
    groups = data * fsdp

    def by_group(*inputs):
        """What a device answers to its own images."""
        parts = [a.reshape(groups, -1, *a.shape[1:]) for a in inputs]
        grads, y = jax.vmap(objective(run, train=True), (None, 0, 0, 0))(params, *parts)
        flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), (y, *grads[1:]))
        return flat, jax.tree.map(lambda a: a.sum(0), grads[0])

    (y, dx, dc), of_params = by_group(*inputs, cotangent)
    if top_k:  # Experts overflow: it matters who is sorted with whom.
        assert np.abs(y - run(params, *inputs, train=True)[0]).max() > 0.1
    with jax.set_mesh(mesh):
        spread = [jax.device_put(a, jax.NamedSharding(mesh, sharding.SLOTS))
                  for a in (*inputs, cotangent)]  # fmt: skip
        grads, ours = objective(run, train=True)(params, *spread)
    assert_close((ours, *grads), (y, of_params, dx, dc))


def test_images_that_devices_cannot_share_are_sorted_together():
    params, run = build(make_mixture(2, capacity=1.0))
    inputs = [a[:3] for a in make_inputs()[:2]]
    theirs = run(params, *inputs, train=True)
    with jax.set_mesh(sharding.make_mesh({"data": 2, "fsdp": 2, "expert": 2})):
        assert_close(run(params, *inputs, train=True), theirs)


@pytest.mark.parametrize("top_k", [0, 2])
def test_low_rank_updates_are_those_of_merged_kernels(top_k):
    params, run = build(make_mixture(top_k), gated=True, rank=2)
    _, plain = build(make_mixture(top_k), gated=True)
    inputs = make_inputs()[:2]
    merged = lora.merged(params, LoRA(rank=2, alpha=4))
    assert_close(run(params, *inputs, train=True), plain(merged, *inputs, train=True))


@pytest.mark.parametrize("top_k", [0, 2])
def test_bfloat16_comes_back_and_routing_stays_float32(top_k):
    params, run = build(make_mixture(top_k), dtype="bfloat16")
    x, condition, _ = make_inputs()
    x = jnp.asarray(x, jnp.bfloat16)
    y, routing = run(params, x, condition, train=True)
    assert y.dtype == jnp.bfloat16
    _, run = build(make_mixture(top_k))
    reference, exact = run(params, x.astype(jnp.float32), condition, train=True)
    np.testing.assert_allclose(y.astype(jnp.float32), reference, atol=0.1)
    assert_close(routing, exact)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"experts": 0}, "model.moe.experts=0: a mixture has 1 or more"),
        ({"top_k": 5}, r"model.moe.top_k=5 must be between 0 \(dense\) and model.moe.experts=4"),
        ({"top_k": -1}, "model.moe.top_k=-1 must be"),
        ({"capacity": 0.0}, "model.moe.capacity=0.0 must be above 0"),
        ({"capacity": float("nan")}, "model.moe.capacity=nan must be above 0"),
    ],
)
def test_an_impossible_mixture_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Mixture(**{"experts": 4, "layers": (1,)} | fields)
