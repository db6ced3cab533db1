"""Weightings that remember, each against its published formula in float64 NumPy, step by step.

Tasks come and go: whoever is absent from a step is neither moved nor forgotten.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usfm.objectives import chain, surgery, weighting
from usfm.objectives.weighting import Signal

T, STEPS = 4, 50
RNG = np.random.default_rng(0)
LOSSES = np.exp(
    RNG.normal(size=(STEPS, T)) * 0.3 - np.linspace(0, 2, STEPS)[:, None] * [0, 1, 2, 3]
)
GRADIENTS = RNG.normal(size=(STEPS, T, 6)) * [[[0.1], [1.0], [5.0], [1.0]]]
GRAMIANS = GRADIENTS @ np.swapaxes(GRADIENTS, 1, 2)
PRESENT = RNG.uniform(size=(STEPS, T)) < 0.8
PRESENT[:, 0] = True  # never none
PRESENT[0] = PRESENT[-1] = True
KEYS = jax.random.split(jax.random.key(5), STEPS)


def run(part: weighting.Weighting, after=None) -> tuple[np.ndarray, Any]:
    """Weights [STEPS, T] and the states after each step, all in one compiled scan."""

    def step(state, given):
        losses, gramian, present, key, later = given
        losses = jnp.where(present, losses, 0)
        signal = Signal(losses, present, gramian, present.astype(losses.dtype), key)
        signal, state = part.update(signal, state)
        if part.after is not None:
            state = part.after(state, losses, jnp.where(present, later, 0), present)
        return state, (signal.weights, state)

    with jax.enable_x64(True):
        later = LOSSES if after is None else after
        given = (LOSSES, GRAMIANS, PRESENT, KEYS, later)
        _, (weights, states) = jax.jit(lambda g: jax.lax.scan(step, part.init(T), g))(given)
        return jax.device_get((weights, states))


class Adam:
    """Kingma and Ba 2014, for the entries of a step that are there."""

    def __init__(self, rate):
        self.rate, self.m, self.v, self.t = rate, np.zeros(T), np.zeros(T), 0

    def __call__(self, value, slope, there):
        self.t += 1
        self.m = np.where(there, 0.9 * self.m + 0.1 * slope, self.m)
        self.v = np.where(there, 0.999 * self.v + 0.001 * slope**2, self.v)
        m, v = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
        return value - np.where(there, self.rate * m / (np.sqrt(v) + 1e-8), 0)


def test_gradnorm_takes_the_published_path_for_fifty_steps():
    w, first, adam = np.ones(T), np.full(T, np.nan), Adam(0.025)
    expected = []
    for losses, gramian, there in zip(LOSSES, GRAMIANS, PRESENT, strict=True):
        first = np.where(np.isnan(first) & there, losses, first)
        expected.append(np.where(there, w, 0))
        norms = np.sqrt(np.diag(gramian))
        rate = losses / first
        target = (w * norms)[there].mean() * (rate / rate[there].mean()) ** 1.5
        new = np.maximum(adam(w, norms * np.sign(w * norms - target), there), 1e-3)
        w = np.where(there, new * w[there].mean() / new[there].mean(), w)
    weights, states = run(weighting.gradnorm())
    np.testing.assert_allclose(weights, expected, rtol=1e-9)  # float64 rounding
    np.testing.assert_allclose(states["weights"].sum(-1), T, rtol=1e-9)
    assert np.abs(np.log(weights[-1])).max() > 0.3, "weights that stay prove nothing"


@pytest.mark.parametrize("name", ["uncertainty", "imtl_l"])
def test_learned_scales_descend_their_own_loss(name):
    s, adam, expected = np.zeros(T), Adam(0.025), []
    for losses, there in zip(LOSSES, PRESENT, strict=True):
        if name == "uncertainty":  # exp(-s) L / 2 + s / 2
            weight, slope = np.exp(-s) / 2, (1 - np.exp(-s) * losses) / 2
        else:  # exp(s) L - s
            weight, slope = np.exp(s), np.exp(s) * losses - 1
        expected.append(np.where(there, weight, 0))
        s = adam(s, slope, there)
    weights, _ = run(getattr(weighting, name)())
    np.testing.assert_allclose(weights, expected, rtol=1e-9)


def test_dwa_weighs_by_the_ratio_of_the_last_two_windows():
    window, temperature, means, expected = 7, 1.5, [], []
    sums, counts = np.zeros(T), np.zeros(T)
    for step, (losses, there) in enumerate(zip(LOSSES, PRESENT, strict=True), 1):
        ratio = means[-1] / means[-2] if len(means) > 1 else np.ones(T)
        share = np.exp(ratio / temperature) * there
        expected.append(share / share.sum() * there.sum())
        sums, counts = sums + np.where(there, losses, 0), counts + there
        if step % window == 0:
            assert counts.all()
            means.append(sums / counts)
            sums, counts = np.zeros(T), np.zeros(T)
    weights, _ = run(weighting.dwa(temperature=temperature, window=window))
    np.testing.assert_allclose(weights, expected, rtol=1e-9)


def test_famo_favours_the_tasks_whose_loss_falls_least():
    after = LOSSES * np.exp(-0.1 * RNG.uniform(size=LOSSES.shape) * [0, 1, 2, 3])
    xi, adam, expected = np.zeros(T), Adam(0.025), []
    for before, later, there in zip(LOSSES, after, PRESENT, strict=True):
        z = np.exp(xi) * there / (np.exp(xi) * there).sum()
        share = z / before
        expected.append(share / share.sum())
        fell = np.where(there, np.log(before) - np.log(later), 0)
        jacobian = np.diag(z) - np.outer(z, z)  # of the softmax
        xi = adam(xi, jacobian @ fell + 1e-3 * xi, there)
    weights, states = run(weighting.famo(), after)
    np.testing.assert_allclose(weights, expected, rtol=1e-9)
    assert (np.diff(states["xi"][-1]) < 0).all()


def test_random_weights_are_a_softmax_of_normal_draws():
    weights, _ = run(weighting.rlw())
    for key, row, there in zip(KEYS, weights, PRESENT, strict=True):
        with jax.enable_x64(True):
            draw = np.exp(jax.random.normal(key, (T,))) * there
        np.testing.assert_allclose(row, draw / draw.sum(), rtol=1e-9)


def literal_gradvac(gradients, aims, orders, there, beta):
    """Algorithm 1 of arXiv 2010.05874 on vectors; `aims` [T, T] is changed in place."""
    total = np.zeros(gradients.shape[1])
    for i in np.flatnonzero(there):
        own = gradients[i].copy()
        for j in orders[i]:
            if not there[j]:
                continue
            other = gradients[j]
            length, size = np.linalg.norm(own), np.linalg.norm(other)
            phi, aim = own @ other / length / size, aims[i, j]
            if phi < aim:
                turn = aim * np.sqrt(1 - phi**2) - phi * np.sqrt(1 - aim**2)
                own = own + length * turn / size / np.sqrt(1 - aim**2) * other
            aims[i, j] = (1 - beta) * aim + beta * phi
        total += own
    return total


def test_gradvac_is_the_literal_one_on_the_gradients():
    weights, states = run(weighting.gradvac())
    aims = np.zeros((T, T))
    for step in range(STEPS):
        orders = np.asarray(surgery.random_orders(KEYS[step], T))
        expected = literal_gradvac(GRADIENTS[step], aims, orders, PRESENT[step], 0.5)
        np.testing.assert_allclose(weights[step] @ GRADIENTS[step], expected, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(states["cosines"][step], aims, atol=1e-9)


# ---- chains ----


@pytest.mark.parametrize("method", [m for m in chain.METHODS if m != "graddrop"])
def test_all_methods_share_one_total_weight(method):
    weights, _ = run(chain.make(method))
    np.testing.assert_allclose(np.abs(weights).sum(-1), PRESENT.sum(-1), rtol=1e-6)
    assert (weights[~PRESENT] == 0).all()


def test_static_weights_scale_the_losses_that_a_method_sees():
    static = np.array([1.0, 2.0, 0.5, 1.0])
    weights, _ = run(chain.make("sum", static=static))
    there = PRESENT * static
    expected = there / there.sum(-1, keepdims=True) * PRESENT.sum(-1, keepdims=True)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)

    weights, _ = run(chain.make("upgrad", static=static))
    for step in (0, STEPS - 1):
        scaled = GRAMIANS[step] * np.outer(static, static)
        with jax.enable_x64(True):
            own = static * np.asarray(surgery.weights("upgrad", jnp.asarray(scaled)))
        np.testing.assert_allclose(weights[step], own / own.sum() * T, rtol=1e-6)


def test_the_averaged_gramian_is_a_mean_and_stays_semidefinite():
    def seen(decay):
        part = weighting.Weighting(lambda signal, state: (signal, {"seen": signal.gramian}))
        averaged = chain.averaged_gramian(decay)
        both = chain.chain(ema=averaged, probe=part)
        return run(weighting.Weighting(both.update, lambda tasks: {
            "ema": averaged.init(tasks), "probe": {"seen": jnp.zeros((tasks, tasks))}
        }))[1]["probe"]["seen"]  # fmt: skip

    gramians = seen(0.9)
    for gramian, there in zip(gramians, PRESENT, strict=True):
        values = np.linalg.eigvalsh(gramian)
        assert values.min() > -1e-9 * values.max()
        assert (gramian[~there] == 0).all()
    # Task 0 is always there: its own entry is the usual debiased average.
    shares = 0.9 ** np.arange(STEPS)[::-1]
    expected = (GRAMIANS[:, 0, 0] * shares).sum() / shares.sum()
    np.testing.assert_allclose(gramians[-1][0, 0], expected, rtol=1e-9)


def test_clipped_weights_are_at_most_so_many_mean_ones():
    clipped, _ = run(chain.chain(method=weighting.of_gramian("imtl_g"), clip=chain.clipped(1.5)))
    raw, _ = run(weighting.of_gramian("imtl_g"))
    limit = 1.5 * np.abs(raw).sum(-1, keepdims=True) / PRESENT.sum(-1, keepdims=True)
    np.testing.assert_allclose(clipped, np.clip(raw, -limit, limit), rtol=1e-9)
    assert (np.abs(raw) > 1.01 * limit).any()


def test_what_a_chain_remembers_is_named():
    state = chain.make("gradnorm", gramian_ema=0.9, static=np.ones(T)).init(T)
    assert list(state) == ["gramian_ema", "gradnorm"]
    assert chain.make("sum").init(T) == {}


def test_wrong_names_are_told():
    with pytest.raises(ValueError, match="unknown multi-task method 'magic'; known are sum, mean"):
        chain.make("magic")
    with pytest.raises(ValueError, match="gradnorm has no option 'beta'; its options: alpha"):
        chain.make("gradnorm", options={"beta": 1})
