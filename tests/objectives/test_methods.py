"""Every method of the Gramian against TorchJD's frozen weights, and against its definition.

fixtures/surgery.npz (made by make_surgery.py) holds 200 Gramians of 2 to 32 tasks padded to 32:
one compiled program a method serves them all, and its mask is tried by each of them.
"""

import functools
import hashlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usfm.objectives import surgery

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
FROZEN = np.load(FIXTURES / "surgery.npz")
GRAMIANS, KIND, COUNT = FROZEN["gramians"], FROZEN["kind"], FROZEN["tasks"]
PRESENT = np.arange(32)[None] < COUNT[:, None]
TRACE = np.trace(GRAMIANS, axis1=1, axis2=2)
MOVING = PRESENT & (np.diagonal(GRAMIANS, axis1=1, axis2=2) > 0)
# In the rest the rank decides, or whether gradients cancel altogether.
FULL_RANK = KIND != "deficient"
# An order of T tasks in the first T - 1 places; what follows is a task that is absent, and for 32
# tasks there is no place left.
ORDERS = np.where(np.arange(31)[None, None] < COUNT[:, None, None] - 1, FROZEN["orders"], 31)


# XLA's own passes run, LLVM's do not: a third of the time to compile.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
weights = compiled(surgery.weights, static_argnums=0)


@functools.cache
def found(name: str, bits: int) -> np.ndarray:
    """The weights [N, 32] of all Gramians in float64 or float32."""
    with jax.enable_x64(bits == 64):

        def one(gramian, present, orders):
            options = {"orders": orders} if name == "pcgrad" else {}
            return surgery.weights(name, gramian, present=present, **options)

        gramians = jnp.asarray(GRAMIANS, f"float{bits}")
        out = compiled(jax.vmap(one))(gramians, PRESENT, jnp.asarray(ORDERS, jnp.int32))
        assert out.dtype == f"float{bits}"
        return np.asarray(out, np.float64)


def length(w: np.ndarray) -> np.ndarray:
    """|J' w| [N] for weights [N, 32]."""
    return np.sqrt(np.maximum(np.einsum("ni,nij,nj->n", w, GRAMIANS, w), 0))


def test_the_fixture_is_of_the_committed_script():
    script = (FIXTURES / "make_surgery.py").read_bytes()
    assert FROZEN["script"] == hashlib.sha256(script).hexdigest()
    assert str(FROZEN["version"]).startswith("torchjd 0.18")


@pytest.mark.parametrize("name", [m for m in surgery.METHODS if m not in ("sum", "mean")])
@pytest.mark.parametrize("bits", [64, 32])
def test_absent_tasks_have_no_weight_and_none_is_undefined(name, bits):
    w = found(name, bits)
    assert np.isfinite(w).all()
    assert (w[~PRESENT] == 0).all()


# Largest |J' (w - theirs)| / |J' theirs|. In float64 it is rounding, but for CLARABEL's own
# tolerance in TorchJD's CAGrad (its objective is flat: see the test of its optimum below). In
# float32 a Gramian of nearly parallel gradients has itself lost what pseudo-inverses ask for.
@pytest.mark.parametrize(
    ("name", "bits", "tolerance", "but_for"),
    [
        ("pcgrad", 64, 1e-12, []),
        ("upgrad", 64, 1e-9, []),
        ("dualproj", 64, 1e-9, []),
        ("cagrad", 64, 5e-4, []),
        ("imtl_g", 64, 1e-7, ["deficient"]),
        ("config", 64, 1e-7, []),
        ("aligned_mtl", 64, 1e-7, []),
        ("pcgrad", 32, 1e-5, ["deficient"]),
        ("upgrad", 32, 3e-5, ["deficient"]),
        ("dualproj", 32, 3e-5, ["deficient"]),
        ("upgrad", 32, 2e-3, []),
        ("dualproj", 32, 2e-3, []),
        ("cagrad", 32, 5e-4, ["deficient"]),
        ("imtl_g", 32, 1e-3, ["deficient"]),
        ("config", 32, 1e-3, []),
        ("aligned_mtl", 32, 2e-3, ["scales"]),
    ],
)
def test_the_update_is_torchjds(name, bits, tolerance, but_for):
    theirs, ours = FROZEN[f"weights_{name}"], found(name, bits)
    error = length(ours - theirs) / np.maximum(length(theirs), 1e-12 * np.sqrt(TRACE))
    kept = ~np.isin(KIND, but_for)
    assert error[kept].max() < tolerance, KIND[kept][error[kept].argmax()]


@pytest.mark.parametrize(("bits", "tolerance"), [(64, 1e-8), (32, 1e-6)])
def test_mgda_is_at_the_optimum(bits, tolerance):
    """(G w)_i >= w' G w for all i, up to a share of the trace; TorchJD stops before."""
    w = found("mgda", bits)
    np.testing.assert_allclose(w.sum(1), 1, atol=1e-5)
    assert (w >= 0).all()
    product = np.einsum("nij,nj->ni", GRAMIANS, w)
    least = np.where(PRESENT, product, np.inf).min(1)
    gap = (np.einsum("ni,ni->n", w, product) - least) / TRACE
    assert gap[FULL_RANK].max() < tolerance
    assert gap.max() < 1e-5  # where gradients cancel it is the last digits that cancel


@pytest.mark.parametrize(("bits", "tolerance"), [(64, 1e-10), (32, 1e-3)])
@pytest.mark.parametrize(("name", "alpha"), [("nash_mtl", 1), ("fairgrad", 2)])
def test_fair_gains_balance(name, alpha, bits, tolerance):
    """(G a)_i a_i ** (1 / alpha) = 1."""
    a = found(name, bits)
    assert (a[MOVING] > 0).all()
    residual = np.where(MOVING, np.einsum("nij,nj->ni", GRAMIANS, a) * a ** (1 / alpha) - 1, 0)
    assert np.abs(residual[FULL_RANK]).max() < tolerance


def test_cagrad_is_at_the_optimum_and_in_its_ball():
    """Of min_w <g_0, g_w> + c |g_0| |g_w|, at least as good as TorchJD's answer."""
    mean = PRESENT / COUNT[:, None]
    g0 = length(mean)
    ours, theirs = found("cagrad", 64), FROZEN["weights_cagrad"]
    moved = ours.any(1) & theirs.any(1)
    assert moved.sum() > 150

    def objective(weights):
        of_w = np.where(moved[:, None], weights - mean, PRESENT)
        w = of_w / of_w.sum(1, keepdims=True)
        return np.einsum("ni,nij,nj->n", mean, GRAMIANS, w) + 0.4 * g0 * length(w)

    assert ((objective(ours) - objective(theirs))[moved] < 1e-9 * TRACE[moved]).all()
    np.testing.assert_array_less(length(ours - mean)[moved], 0.4 * g0[moved] * (1 + 1e-6))


@pytest.mark.parametrize("name", ["upgrad", "dualproj"])
def test_projections_never_conflict(name):
    """(G w)_i >= 0, up to the regularisation that TorchJD's defaults put on the diagonal."""
    w = found(name, 64)
    product = np.einsum("nij,nj->ni", GRAMIANS, w) / TRACE[:, None]
    regular = product + 1e-4 * w
    assert regular[PRESENT].min() > -1e-9


def test_imtl_g_projects_equally():
    w = found("imtl_g", 64)
    norms = np.sqrt(np.diagonal(GRAMIANS, axis1=1, axis2=2))
    projection = np.einsum("nij,nj->ni", GRAMIANS, w) / np.where(norms > 0, norms, 1)
    for row, moving in zip(projection[FULL_RANK], MOVING[FULL_RANK], strict=True):
        np.testing.assert_allclose(row[moving], row[moving].mean(), rtol=1e-5)


@pytest.mark.parametrize("name", ["nash_mtl", "imtl_g"])
def test_the_update_does_not_change_with_the_scale_of_a_loss(name):
    gramian = GRAMIANS[17][:6, :6] + np.diag(np.diag(GRAMIANS[17])[:6] * 0.1)
    scale = 10.0 ** np.array([-2.0, 0, 1, 3, -1, 2])
    with jax.enable_x64(True):
        plain = np.asarray(weights(name, jnp.asarray(gramian)))
        scaled = np.asarray(weights(name, jnp.asarray(gramian * np.outer(scale, scale))))
    direction = scaled * scale
    if name == "imtl_g":  # its weights sum to 1, whatever the scales
        direction = direction / direction.sum() * plain.sum()
    np.testing.assert_allclose(direction, plain, rtol=1e-7)


@pytest.mark.parametrize("name", [m for m in surgery.METHODS if m != "pcgrad"])
def test_tasks_may_come_in_any_order(name):
    order = np.random.default_rng(3).permutation(32)
    gramian = GRAMIANS[16]
    assert COUNT[16] == 32
    with jax.enable_x64(True):
        plain = np.asarray(weights(name, jnp.asarray(gramian)))
        permuted = np.asarray(weights(name, jnp.asarray(gramian[order][:, order])))
    np.testing.assert_allclose(permuted, plain[order], rtol=1e-6, atol=1e-9 * np.abs(plain).max())


@pytest.mark.parametrize("name", surgery.METHODS)
def test_one_task_alone_goes_its_own_way(name):
    w = np.asarray(weights(name, jnp.array([[4.0]]), key=jax.random.key(0)))
    assert w.shape == (1,)
    assert w[0] > 0
    none = surgery.weights(name, jnp.eye(3), present=jnp.zeros(3, bool), key=jax.random.key(0))
    np.testing.assert_array_equal(none, 0)


def test_two_tasks_in_closed_form():
    gramian = jnp.array([[1.0, -0.5], [-0.5, 4.0]])
    # The nearest point of the segment to the origin.
    np.testing.assert_allclose(weights("mgda", gramian), [4.5 / 6, 1.5 / 6], atol=1e-5)
    # G a = 1 / a for two tasks: a_i |g_i| are equal, x^2 (1 + cos) = 1.
    x = (1 - 0.25) ** -0.5
    np.testing.assert_allclose(weights("nash_mtl", gramian), [x, x / 2], rtol=1e-5)
    # Equal projections: weights as the inverse lengths.
    np.testing.assert_allclose(weights("imtl_g", gramian), [2 / 3, 1 / 3], rtol=1e-5)


@pytest.mark.parametrize("name", [m for m in surgery.METHODS if m not in ("sum", "mean")])
def test_accelerators_are_asked_not_to_round_the_factors(name):
    lowered = weights.lower(name, jnp.eye(4), key=jax.random.key(0)).as_text()
    products = [line for line in lowered.splitlines() if "dot_general" in line]
    assert products
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


def test_an_unknown_option_is_named():
    with pytest.raises(ValueError, match=r"cagrad has no option 'C'; its options: c, norm_eps"):
        surgery.weights("cagrad", jnp.eye(2), C=0.5)
