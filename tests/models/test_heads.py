"""From maps to features, and from a head's raw numbers to answers: probabilities, boxes, points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from usfm.models import functional, heads

TWO_OF_THREE = jnp.array([True, True, False])


@pytest.mark.parametrize("kind", ["detection", "regression", "segmentation"])
def test_features_that_are_below_zero_everywhere_still_learn(kind):
    def last(params):
        return params["project"] if kind == "segmentation" else params["dpt"]["fuse"][0]["conv2"]

    structure, params = functional.split(heads.DECODERS[kind](8, 4, jnp.float32, nnx.Rngs(0)))
    last(params)["bias"] -= 3.0
    taps = 0.1 * jax.random.normal(jax.random.key(0), (4, 1, 2, 2, 8))
    gradient = jax.grad(lambda p: functional.merge(structure, p)(taps).sum())(params)
    assert (last(gradient)["bias"] != 0).all()


def test_cell_centres_are_x_y_over_the_image():
    centres = heads.cell_centres(2, 4)
    np.testing.assert_allclose(centres[0, 0], [1 / 8, 1 / 4])
    np.testing.assert_allclose(centres[1, 3], [7 / 8, 3 / 4])


def test_classes_that_a_task_lacks_get_no_probability():
    raw = jnp.array([[0.0, 1.0, 50.0]])
    outputs = heads.classification(raw, TWO_OF_THREE)
    probs = jax.nn.softmax(outputs["logits"])[0]
    np.testing.assert_allclose(probs, [1 / (1 + np.e), np.e / (1 + np.e), 0], rtol=1e-6)
    assert probs[2] == 0


def test_segmentation_is_at_image_size_and_knows_the_classes():
    raw = jnp.zeros((1, 2, 3, 3)).at[..., 1].set(2.0).at[..., 2].set(9.0)
    outputs = heads.segmentation(raw, TWO_OF_THREE, (8, 12))
    assert outputs["logits"].shape == (1, 8, 12, 3)
    np.testing.assert_allclose(outputs["logits"][..., 1], 2.0)
    assert (jax.nn.softmax(outputs["logits"])[..., 2] == 0).all()
    np.testing.assert_array_equal(outputs["classes"], TWO_OF_THREE)


def test_a_box_lies_around_the_cell_that_sees_it():
    # left 0.1, top 0.2, right 0.3, bottom 0.4 of the image: a quarter of softplus of what is given.
    distances = np.array([0.1, 0.2, 0.3, 0.4])
    raw = jnp.concatenate([jnp.zeros(1), jnp.log(jnp.expm1(4 * distances))])
    outputs = heads.detection(jnp.broadcast_to(raw, (1, 2, 4, 5)))
    assert outputs["heat"].shape == (1, 2, 4)
    centre = np.array([5 / 8, 1 / 4])
    expected = np.concatenate([centre - distances[:2], centre + distances[2:]])
    np.testing.assert_allclose(outputs["boxes"][0, 0, 2], expected, rtol=1e-5)


def test_a_new_detector_sees_a_centre_in_one_of_a_hundred_cells():
    bias = heads.detection_bias(jax.random.key(0), (5,), jnp.dtype("float32"))
    assert abs(jax.nn.sigmoid(bias[0]) - 0.01) < 1e-3
    np.testing.assert_array_equal(bias[1:], 0)


def test_a_point_is_the_mean_place_under_its_heat():
    heat = jnp.full((1, 3, 5, 2), -1e4)
    heat = heat.at[0, 1, 4, 0].set(0.0)  # all in one cell
    heat = heat.at[0, 0, 0, 1].set(0.0).at[0, 2, 1, 1].set(0.0)  # halves in two
    points = heads.regression(heat, jnp.ones(2, bool))["points"]
    np.testing.assert_allclose(points[0, 0], [4.5 / 5, 1.5 / 3], rtol=1e-6)
    np.testing.assert_allclose(points[0, 1], [1.0 / 5, 1.5 / 3], rtol=1e-6)
