"""The sector of another probe; moves are tested as they are used, in test_augment.py."""

import jax.numpy as jnp
import numpy as np
import pytest

from usfm.data import geometry
from usfm.data.geometry import Sector, random_sector

HEIGHT, WIDTH = 48, 64


def seen(opening, offset=0.0):
    sector = Sector(jnp.full((1, 1), opening), jnp.full((1, 1), offset))
    return np.asarray(sector.seen(HEIGHT, WIDTH))[0, 0]


@pytest.mark.parametrize("offset", [-geometry.OFFSET, 0.0, geometry.OFFSET])
def test_a_sector_that_does_not_open_holds_the_whole_image(offset):
    np.testing.assert_allclose(seen(0.0, offset), np.ones((HEIGHT, WIDTH)), atol=1e-5)


def test_a_sector_widens_to_the_arc_that_ends_it():
    widths = (seen(geometry.OPENING) > 0.5).sum(axis=1)
    deepest = np.argmax(widths)
    assert 0.1 * WIDTH < widths[0] < 0.25 * WIDTH
    assert (np.diff(widths[: deepest + 1]) >= 0).all()
    assert widths[deepest] == WIDTH
    assert (np.diff(widths[deepest:]) <= 0).all()
    assert widths[-1] < WIDTH


def test_the_edge_of_a_sector_is_that_of_a_fan_about_its_apex():
    opening, offset = 0.45, 0.06
    x, y = (np.arange(WIDTH) + 0.5) / WIDTH, (np.arange(HEIGHT) + 0.5) / HEIGHT
    across, depth = x - 0.5 - offset, y[:, None] - 1 + geometry.HALF_WIDTH / opening
    fan = (np.abs(across) < opening * depth) & (
        np.hypot(across, depth) < geometry.HALF_WIDTH / opening
    )
    np.testing.assert_array_equal(seen(opening, offset) > 0.5, fan)


def test_the_middle_is_in_every_sector_and_half_of_them_are_whole_images():
    draws = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 500, 2)), jnp.float32)
    sector = random_sector(draws, jnp.ones((1, 1)))
    masks = np.asarray(sector.seen(HEIGHT, WIDTH))[0]
    whole = masks.min(axis=(1, 2)) > 1 - 1e-5
    assert 0.4 < whole.mean() < 0.6
    assert masks[:, HEIGHT // 4 :, WIDTH * 3 // 8 : WIDTH * 5 // 8].mean() > 0.97
    assert masks[:, HEIGHT // 2, WIDTH // 2].min() > 1 - 1e-5
    assert masks.mean(axis=(1, 2)).min() > 0.6
