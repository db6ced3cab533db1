"""Task weights against surgery done literally, on explicit gradients in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usfm.objectives import surgery

weights = jax.jit(surgery.weights, static_argnums=0)
orders_of = jax.jit(surgery.random_orders, static_argnums=1)


def literal_pcgrad(gradients, orders, present) -> np.ndarray:
    """Algorithm 1 of arXiv 2001.06782 on vectors [T, P]; zero gradients project nothing away."""
    total = np.zeros(gradients.shape[1])
    for i in np.flatnonzero(present):
        projected = gradients[i].astype(np.float64)
        for j in orders[i]:
            other = gradients[j].astype(np.float64)
            if present[j] and other.any() and projected @ other < 0:
                projected = projected - (projected @ other) / (other @ other) * other
        total += projected
    return total


def gradients_of(case: str) -> tuple[np.ndarray, np.ndarray]:
    """Gradients [T, P] and which tasks are present."""
    rng = np.random.default_rng(0)
    gradients, present = rng.standard_normal((9, 30)), np.ones(9, bool)
    match case:
        case "conflicting":
            gradients[::2] -= 2 * gradients[1]
        case "rank-deficient":
            gradients = rng.standard_normal((9, 2)) @ rng.standard_normal((2, 30))
            gradients[3], gradients[4] = gradients[2], -gradients[2]
        case "of all sizes":
            gradients *= 10.0 ** np.arange(-4, 5)[:, None]
        case "one zero":
            gradients[5] = 0
        case "some absent":
            present[[0, 4, 8]] = False
    return gradients, present


@pytest.mark.parametrize(
    "case", ["random", "conflicting", "rank-deficient", "of all sizes", "one zero", "some absent"]
)
@pytest.mark.parametrize("seed", range(3))
def test_pcgrad_is_the_literal_algorithm(case, seed):
    gradients, present = gradients_of(case)
    gramian = (gradients @ gradients.T).astype(np.float32)
    orders = np.asarray(orders_of(jax.random.key(seed), len(gradients)))
    w = weights("pcgrad", gramian, present=present, orders=orders)
    expected = literal_pcgrad(gradients, orders, present)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(w @ gradients, expected, atol=2e-5 * scale)
    assert (w[present] >= 1).all()
    assert (w[~present] == 0).all()
    assert (w[present] > 1).any(), "a case without a conflict shows nothing"


def test_a_key_draws_the_orders():
    gradients, _ = gradients_of("conflicting")
    gramian = (gradients @ gradients.T).astype(np.float32)
    key = jax.random.key(7)
    drawn = weights("pcgrad", gramian, key=key)
    np.testing.assert_array_equal(drawn, weights("pcgrad", gramian, orders=orders_of(key, 9)))
    assert (drawn != weights("pcgrad", gramian, key=jax.random.key(8))).any()


def test_without_conflict_nothing_changes():
    gradients = np.abs(gradients_of("random")[0])
    gramian = (gradients @ gradients.T).astype(np.float32)
    np.testing.assert_array_equal(weights("pcgrad", gramian, key=jax.random.key(0)), 1)


def test_a_task_alone_keeps_its_gradient():
    w = weights("pcgrad", jnp.full((1, 1), 3.0), key=jax.random.key(0))
    np.testing.assert_array_equal(w, [1])


def test_a_gradient_whose_square_vanishes_in_float32_projects_nothing_away():
    gramian = np.array([[1.0, -1e-25], [-1e-25, 0.0]], np.float32)
    np.testing.assert_array_equal(weights("pcgrad", gramian, key=jax.random.key(0)), 1)


def test_two_tasks_in_closed_form():
    gramian = np.array([[4.0, -1.0], [-1.0, 2.0]], np.float32)
    w = weights("pcgrad", gramian, key=jax.random.key(0))
    np.testing.assert_allclose(w, [1 + 1 / 4, 1 + 1 / 2])


def test_what_an_absent_task_holds_does_not_matter():
    gradients, present = gradients_of("some absent")
    gramian = (gradients @ gradients.T).astype(np.float32)
    spoilt = np.where(np.outer(present, present), gramian, np.nan)
    for method in surgery.METHODS:
        expected = weights(method, gramian, present=present, key=jax.random.key(0))
        actual = weights(method, spoilt, present=present, key=jax.random.key(0))
        np.testing.assert_array_equal(actual, expected)


def test_sum_and_mean_count_the_tasks_present():
    present = np.array([True, False, True, True])
    gramian = jnp.eye(4)
    np.testing.assert_array_equal(weights("sum", gramian, present=present), [1, 0, 1, 1])
    np.testing.assert_allclose(weights("mean", gramian, present=present), [1 / 3, 0, 1 / 3, 1 / 3])
    np.testing.assert_array_equal(weights("sum", gramian), 1)


def test_each_task_meets_the_others_in_an_order_of_its_own():
    keys = jax.random.split(jax.random.key(0), 600)
    drawn = np.asarray(jax.jit(jax.vmap(functools.partial(surgery.random_orders, tasks=4)))(keys))
    for i in range(4):
        others = [j for j in range(4) if j != i]
        np.testing.assert_array_equal(np.sort(drawn[:, i], axis=-1), np.tile(others, (600, 1)))
        for place in range(3):  # all tasks are equally often first, second and last
            counts = np.bincount(drawn[:, i, place], minlength=4)[others]
            assert (np.abs(counts - 200) < 50).all()  # 4 standard deviations
    # Two tasks' orders are drawn apart: their first choices do not go together.
    together = np.bincount(4 * drawn[:, 0, 0] + drawn[:, 1, 0], minlength=16).reshape(4, 4)
    assert (np.abs(together[1:][:, [0, 2, 3]] - 600 / 9) < 35).all()  # 4 standard deviations


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match="unknown multi-task method 'magic'; known are sum, mean"):
        surgery.weights("magic", jnp.eye(2))


def test_pcgrad_needs_randomness():
    with pytest.raises(ValueError, match="needs a key"):
        surgery.weights("pcgrad", jnp.eye(2))
