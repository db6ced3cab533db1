"""What each change of an image's look does, one at a time."""

import jax
import numpy as np
import pytest

from usfm.data import appearance
from usfm.data.appearance import recolour

SIDE = 64
NOISE = np.random.default_rng(0).integers(0, 2**32, (SIDE, SIDE), np.uint32)
DEPTH = (np.arange(SIDE) + 0.5) / SIDE  # also how far across
DRAWS = ("gamma", "blur", "gain", "shadow", "speckle", "contrast", "brightness",
         "across", "depth", "half_width")  # fmt: skip
JITTED = jax.jit(recolour)


def look(image, strength=1.0, **draws):
    """One grey image [H, W] with these draws, the others in the middle of their range."""
    image = np.asarray(image, np.float32)
    chosen = np.array([draws.get(name, 0.0) for name in DRAWS], np.float32)
    noise = np.resize(NOISE, image.shape)
    strength = np.full((1, 1), strength, np.float32)
    return np.asarray(
        JITTED(image[None, None, ..., None], chosen[None, None], noise[None, None], strength)
    )[0, 0, ..., 0]


def grey(level, side=SIDE):
    return np.full((side, side), level, np.float32)


def texture():
    return np.random.default_rng(1).integers(0, 256, (SIDE, SIDE)).astype(np.float32)


def test_a_draw_of_each_and_no_more():
    assert len(DRAWS) == appearance.DRAWS


@pytest.mark.parametrize("draw", [-1.0, 1.0])
def test_at_strength_zero_the_largest_draws_change_nothing(draw):
    same = look(texture(), strength=0.0, **dict.fromkeys(DRAWS, draw))
    np.testing.assert_allclose(same, texture(), atol=1e-3)  # rounding of x / 255 * 255


@pytest.mark.parametrize("name", DRAWS[:7])
def test_every_change_grows_with_the_strength_and_stays_in_range(name):
    image = 30 + texture() / 2
    changes = [np.abs(look(image, strength, **{name: 1.0}) - image).mean()
               for strength in (0.0, 0.3, 1.0)]  # fmt: skip
    assert changes[0] < 1e-3 < changes[1] < 0.6 * changes[2]
    extreme = look(texture(), **{name: 1.0})
    assert 0 <= extreme.min() < extreme.max() <= 255


@pytest.mark.parametrize("name", ["blur", "shadow"])
def test_half_of_the_draws_of_a_blur_and_of_a_shadow_are_none(name):
    np.testing.assert_allclose(look(texture(), **{name: -1.0}), texture(), atol=1e-3)


@pytest.mark.parametrize("side", [128, 256, 512])
def test_blur_spreads_a_point_evenly_by_half_a_percent_of_any_side(side):
    image = grey(0, side)
    image[side // 2, side // 2] = 255
    blurred = look(image, blur=1.0)
    assert blurred.sum() == pytest.approx(255, rel=1e-4)
    offset = np.arange(side) - side // 2
    for axis in (0, 1):
        profile = blurred.sum(axis=axis) / 255
        assert (profile * offset).sum() == pytest.approx(0, abs=1e-3)  # labels stay true
        assert 0.0045 < np.sqrt((profile * offset**2).sum()) / side < 0.006
    np.testing.assert_allclose(look(grey(80, side), blur=1.0), grey(80, side), atol=1e-3)


@pytest.mark.parametrize("draw", [-1.0, 0.4])
def test_gain_falls_or_rises_with_depth_alone(draw):
    gain = look(grey(100), gain=draw) / 100
    np.testing.assert_allclose(gain, np.broadcast_to(gain[:, :1], gain.shape), rtol=1e-5)
    steps = np.diff(gain[:, 0]) * np.sign(draw)
    assert (steps > 0).all()
    np.testing.assert_allclose(gain[:, 0], appearance.GAIN ** (draw * (DEPTH - 0.5)), rtol=1e-4)


@pytest.mark.parametrize("across", [-1.0, -0.3, 0.8])
@pytest.mark.parametrize("depth", [-1.0, 0.5])
def test_a_shadow_darkens_a_sector_below_its_origin(across, depth):
    light = look(grey(200), shadow=1.0, across=across, depth=depth) / 200
    low, high = appearance.DEPTH
    begin = (low + high) / 2 + depth * (high - low) / 2
    dark = light < 0.999
    assert light.max() == pytest.approx(1, abs=1e-5)
    assert not dark[begin > DEPTH].any()
    assert light.min() == pytest.approx(1 - appearance.SHADOW, abs=1e-3)
    widths = []
    for row in np.flatnonzero(begin + 1 / SIDE < DEPTH):
        columns = np.flatnonzero(dark[row])
        assert (np.diff(columns) == 1).all()
        # On the ray through the origin, from an apex above the image's middle.
        spread = (DEPTH[row] + appearance.APEX) / (begin + appearance.APEX)
        middle = 0.5 + appearance.ACROSS * across * spread
        half = np.mean(appearance.SHADOW_HALF_WIDTH) * spread
        np.testing.assert_array_equal(
            columns, np.flatnonzero(np.abs(DEPTH - middle) < half * (1 - 1e-3))
        )
        widths.append(half)
    assert widths[-1] > 1.2 * widths[0]


def test_speckle_multiplies_by_noise_of_its_deviation():
    rough = look(grey(100), speckle=-1.0) / 100
    assert rough.mean() == pytest.approx(1, abs=0.01)  # three standard errors are 0.005
    assert rough.std() == pytest.approx(appearance.SPECKLE, rel=0.05)
    assert not look(grey(0), speckle=1.0).any()


def test_gamma_keeps_black_and_white_and_contrast_keeps_its_grey():
    bright, dark = (look(texture(), gamma=draw) for draw in (-1.0, 1.0))
    for changed in (bright, dark):
        assert (changed[texture() == 0] == 0).all()
        np.testing.assert_allclose(changed[texture() == 255], 255)
    assert (bright >= texture() - 1e-3).all()
    assert (dark <= texture() + 1e-3).all()
    level = 255 * appearance.GREY
    np.testing.assert_allclose(look(grey(level), contrast=1.0), grey(level), rtol=1e-5)
    assert look(grey(level + 10), contrast=1.0).mean() == pytest.approx(
        level + 10 * (1 + appearance.CONTRAST), rel=1e-5
    )
