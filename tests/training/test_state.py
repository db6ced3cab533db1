"""Moving averages of the parameters, and what evaluation makes of them."""

import jax.numpy as jnp
import numpy as np
import pytest

from usfm import config as usfm_config
from usfm.training.state import averaged, evaluated_params, evaluated_parts

PARAMS = {"encoder": {"a": jnp.ones(2), "b": jnp.ones(3)}, "heads": {"c": jnp.ones(4)}}


@pytest.mark.parametrize(("step", "decay"), [(0, 0.1), (8, 0.5), (1000, 0.9)])
def test_averages_remember_little_at_first_and_then_as_told(step, decay):
    ema = averaged({"a": jnp.zeros(2), "b": None}, {"a": jnp.ones(2), "b": None}, 0.9, step)
    np.testing.assert_allclose(ema["a"], 1 - decay, rtol=1e-6)
    assert ema["b"] is None


def test_what_does_not_change_is_its_own_average_to_the_bit():
    values = {"a": jnp.asarray(np.random.default_rng(0).normal(size=1000), jnp.float32)}
    np.testing.assert_array_equal(averaged(values, values, 0.9998, jnp.int32(77))["a"], values["a"])


def test_without_averages_there_is_nothing_to_move():
    assert averaged({}, PARAMS, 0.0, jnp.int32(3)) == {}


def test_evaluation_takes_the_averages_and_of_the_parameters_the_frozen_ones_alone():
    config = usfm_config.base()
    config.optimizer.freeze = ("^encoder/a",)
    parts = evaluated_parts(PARAMS, config, {})
    assert parts["params"]["encoder"]["b"] is parts["params"]["heads"]["c"] is None
    assert parts["ema"]["encoder"]["a"] is None
    whole = evaluated_params(**parts)
    assert whole["encoder"]["a"] is PARAMS["encoder"]["a"]
    assert whole["heads"]["c"] is PARAMS["heads"]["c"]


def test_evaluation_takes_the_parameters_where_there_are_no_averages():
    config = usfm_config.base()
    config.train.ema = 0.0
    assert evaluated_params(**evaluated_parts(PARAMS, config, {})) is PARAMS
    assert evaluated_params(PARAMS, {}) is PARAMS
