"""The routers' losses and what is logged of them, on numbers that can be reckoned by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usfm.objectives.routing import RouterLoss, dropped, load_by_task

# Two slots of two images, one mixture layer, two experts; the last image is not valid.
VALID = jnp.array([[True, True], [True, False]])


def routing(load, z=None, dropped=None):
    """[S, layers, n, ...] with gates that are the loads."""
    load = jnp.asarray(load, jnp.float32)[:, None]
    zeros = jnp.zeros(load.shape[:-1])
    return {
        "gate": load,
        "load": load,
        "z": zeros if z is None else jnp.asarray(z, jnp.float32)[:, None],
        "dropped": zeros if dropped is None else jnp.asarray(dropped, jnp.float32)[:, None],
    }


NEVER = [jnp.nan, jnp.nan]


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        # Each task keeps to an expert of its own, and both experts are used alike over all.
        ([[[1, 0], [0.5, 0.5]], [[0, 1], NEVER]], 1.0),
        ([[[1, 0], [1, 0]], [[1, 0], NEVER]], 2.0),  # all to one of two
        ([[[1, 0], [1, 0]], [[0, 1], NEVER]], 2 * (4 + 1) / 9),
    ],
)
def test_balance_is_over_all_slots_and_1_at_best(load, expected):
    loss = RouterLoss(balance_weight=1, z_weight=0)
    np.testing.assert_allclose(loss(routing(load), VALID), expected, rtol=1e-6)


def test_the_gates_feel_the_balance_and_the_loads_do_not():
    given = routing([[[0.8, 0.2], [0.8, 0.2]], [[0.8, 0.2], [0.8, 0.2]]])
    gradient = jax.grad(RouterLoss(1, 0))(given, VALID)
    np.testing.assert_allclose(gradient["gate"][0, 0, 0], 2 * np.array([0.8, 0.2]) / 3, rtol=1e-6)
    np.testing.assert_array_equal(gradient["gate"][1, 0, 1], 0)  # not valid
    np.testing.assert_array_equal(gradient["load"], 0)


def test_z_is_a_mean_over_valid_images():
    given = routing(jnp.full((2, 2, 2), 0.5), z=[[1, 2], [6, 100]])
    np.testing.assert_allclose(RouterLoss(0, 0.1)(given, VALID), 0.3, rtol=1e-6)


def test_without_mixtures_there_is_no_loss():
    assert RouterLoss(1, 1)({}, VALID) == 0


def test_load_by_task_and_dropped_are_means_over_valid_images():
    given = routing([[[1, 0], [0.5, 0.5]], [[0, 1], NEVER]], dropped=[[0.3, 0], [0, 1]])
    shares = load_by_task(given, jnp.array([2, 0]), VALID, tasks=3)
    np.testing.assert_allclose(shares, [[0, 1], [0, 0], [0.75, 0.25]])
    np.testing.assert_allclose(dropped(given, VALID), 0.1, rtol=1e-6)
