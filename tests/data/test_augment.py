import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usfm.data import augment as module
from usfm.data.augment import augment, normalise

SLOTS, IMAGES, HEIGHT, WIDTH = 8, 16, 48, 64
KEY = jax.random.key(3)
Y, X = np.mgrid[:HEIGHT, :WIDTH] + 0.5


LABELS = {
    "box": np.zeros(4, np.float32),
    "points": np.zeros((3, 2), np.float32),
    "points_valid": np.zeros(3, bool),
    "mask": np.zeros((HEIGHT, WIDTH), np.uint8),
}


def batch_of(image, **labels):
    """A batch that holds one picture and its labels everywhere; slot s is of task s % 2."""

    def fill(array):
        return jnp.broadcast_to(jnp.asarray(array), (SLOTS, IMAGES, *np.shape(array)))

    return {
        "image": fill(np.asarray(image, np.uint8).reshape(HEIGHT, WIDTH, -1)),
        "task": jnp.arange(SLOTS, dtype=jnp.int32) % 2,
        "valid": jnp.ones((SLOTS, IMAGES), bool),
        **{name: fill(value) for name, value in (LABELS | labels).items()},
    }


@functools.cache
def compiled(strength, *constants):
    flip_ok = jnp.array([True, False])
    return jax.jit(functools.partial(augment, strength=strength, flip_ok=flip_ok))


def run(batch, key=KEY, strength=1.0):
    constants = [getattr(module, name) for name in ("SHIFT", "GAMMA")]  # what tests may change
    return jax.tree.map(np.asarray, compiled(strength, *constants)(batch, key))


@pytest.fixture
def true_colours(monkeypatch):
    """Geometry alone."""
    for name, nothing in (("GAMMA", 1.0), ("CONTRAST", 0.0), ("BRIGHTNESS", 0.0), ("SPECKLE", 0.0)):
        monkeypatch.setattr(module, name, nothing)


def noise_image(channels=1):
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, channels), np.uint8)


def ellipse(box):
    """Where a box, as pixel / size, is filled by its ellipse."""
    x_min, y_min, x_max, y_max = np.array(box) * [WIDTH, HEIGHT, WIDTH, HEIGHT]
    across = (2 * X - x_min - x_max) / (x_max - x_min)
    down = (2 * Y - y_min - y_max) / (y_max - y_min)
    return across**2 + down**2 <= 1


def test_strength_zero_changes_nothing():
    box = np.array([0.1, 0.2, 0.5, 0.6], np.float32)
    batch = batch_of(noise_image(), box=box)
    same = run(batch, strength=0.0)
    assert same["image"].dtype == np.float32
    for name, array in batch.items():
        np.testing.assert_array_equal(same[name], array)


@pytest.mark.parametrize("channels", [1, 3])
def test_full_strength_changes_every_image_within_its_range(channels):
    batch = batch_of(noise_image(channels))
    image = run(batch)["image"]
    assert image.shape == batch["image"].shape
    assert image.dtype == np.float32
    assert 0 <= image.min() < image.max() <= 255
    change = np.abs(image - np.asarray(batch["image"], np.float32)).mean(axis=(2, 3, 4))
    assert change.min() > 2
    assert len(np.unique(change.round(3))) > 0.9 * change.size


def test_the_key_decides():
    batch = batch_of(noise_image())
    np.testing.assert_array_equal(run(batch)["image"], run(batch)["image"])
    assert (run(batch)["image"] != run(batch, key=jax.random.key(4))["image"]).any()


def test_half_of_the_images_are_mirrored_where_the_task_allows_it():
    image = noise_image()
    moved = run(batch_of(image), strength=1e-6)["image"]  # next to nothing but mirroring
    mirrored = np.abs(moved - image[:, ::-1]).max(axis=(2, 3, 4)) < 0.1
    unmoved = np.abs(moved - image).max(axis=(2, 3, 4)) < 0.1
    assert (mirrored ^ unmoved).all()
    assert not mirrored[1::2].any()
    assert 0.3 < mirrored[::2].mean() < 0.7


def test_points_follow_the_image(true_colours):
    point = np.array([[0.4, 0.55]] * 3, np.float32)
    drawn = np.exp(-((X - point[0, 0] * WIDTH) ** 2 + (Y - point[0, 1] * HEIGHT) ** 2) / 18)
    moved = run(batch_of(255 * drawn, points=point, points_valid=[True] * 3))
    image = moved["image"][..., 0]
    weight = image.sum(axis=(2, 3))
    found = np.stack(
        [(image * X).sum(axis=(2, 3)) / weight, (image * Y).sum(axis=(2, 3)) / weight], axis=-1
    )
    assert moved["points_valid"].all()
    for points in np.moveaxis(moved["points"] * [WIDTH, HEIGHT], 2, 0):
        np.testing.assert_allclose(points, found, atol=0.2)
    assert found.std(axis=(0, 1)).min() > 1  # they do move


def test_shapes_are_turned_and_scaled_but_not_sheared():
    corner = np.array([[0.5, 0.5], [0.5 + 10 / WIDTH, 0.5], [0.5, 0.5 + 10 / HEIGHT]], np.float32)
    moved = run(batch_of(noise_image(), points=corner, points_valid=[True] * 3))
    points = moved["points"] * [WIDTH, HEIGHT]
    one, other = points[:, :, 1] - points[:, :, 0], points[:, :, 2] - points[:, :, 0]
    np.testing.assert_allclose((one * other).sum(axis=-1), 0, atol=0.01)
    length = np.linalg.norm(one, axis=-1)
    np.testing.assert_allclose(length, np.linalg.norm(other, axis=-1), rtol=1e-3)
    assert 10 / 1.21 < length.min() < 9 < 11 < length.max() < 12.1
    turn = np.abs(other[..., 0] / length)
    assert np.sin(np.pi / 16) < turn.max() < np.sin(np.pi / 11)


def test_points_that_leave_the_image_are_no_longer_valid():
    points = np.array([[0.02, 0.5], [0.5, 0.5], [0.98, 0.5]], np.float32)
    moved = run(batch_of(noise_image(), points=points, points_valid=[True, True, False]))
    valid = moved["points_valid"]
    assert 0.2 < valid[..., 0].mean() < 0.8
    assert valid[..., 1].all()
    assert not valid[..., 2].any()
    assert not moved["points"][~valid].any()
    assert ((moved["points"] >= 0) & (moved["points"] <= 1)).all()


def test_the_mask_follows_the_image_and_is_255_outside(true_colours):
    mask = ellipse((0.2, 0.3, 0.6, 0.9)).astype(np.uint8)
    moved = run(batch_of(55 + 200 * mask, mask=mask))
    image, moved_mask = moved["image"][..., 0], moved["mask"]
    assert set(np.unique(moved_mask)) == {0, 1, 255}
    # Half-way values lie on an edge, where the nearest and the mean of four may differ.
    assert (image[moved_mask == 1] > 55).all()
    inside = (image > 100) == (moved_mask == 1)
    assert inside.mean() > 0.99
    assert (image[moved_mask == 255] < 55).all()
    assert (image[moved_mask == 0] > 0).all()


def test_a_box_follows_the_ellipse_that_fills_it(true_colours):
    box = np.array([0.35, 0.3, 0.65, 0.6], np.float32)
    moved = run(batch_of(255 * ellipse(box), box=box))
    seen = moved["image"][..., 0] > 127
    for slot, image in np.ndindex(SLOTS, IMAGES):
        rows, columns = (np.flatnonzero(seen[slot, image].any(axis=axis)) for axis in (1, 0))
        tight = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        found = moved["box"][slot, image] * [WIDTH, HEIGHT, WIDTH, HEIGHT]
        np.testing.assert_allclose(found, tight, atol=1.2)


def test_an_image_whose_box_would_leave_keeps_its_place(true_colours, monkeypatch):
    monkeypatch.setattr(module, "SHIFT", 0.6)
    image = noise_image()
    box = np.array([0.05, 0.1, 0.35, 0.4], np.float32)
    points = np.array([[0.2, 0.2]] * 3, np.float32)
    batch = batch_of(image, box=box, points=points, points_valid=[True] * 3)
    moved = run(batch)
    kept = np.abs(moved["image"] - image).max(axis=(2, 3, 4)) < 0.1
    assert 0.2 < kept.mean() < 0.9
    np.testing.assert_array_equal(moved["box"][kept], np.broadcast_to(box, (kept.sum(), 4)))
    np.testing.assert_allclose(moved["points"][kept], np.broadcast_to(points, (kept.sum(), 3, 2)))
    low, high = moved["box"][~kept, :2], moved["box"][~kept, 2:]
    assert (moved["box"] >= 0).all()
    assert (moved["box"] <= 1).all()
    # Of the smallest box at least half is left.
    assert np.prod(high - low, axis=-1).min() > 0.5 * 0.09 / 1.2**2 - 1e-6


def test_labels_a_slot_does_not_have_stay_zero_and_do_not_hold_its_image():
    image = noise_image()
    batch = batch_of(image)
    moved = run(batch)
    assert not moved["box"].any()
    assert not moved["points"].any()
    assert not moved["points_valid"].any()
    bare = {name: array for name, array in batch.items() if name not in LABELS}
    alone = run(bare)
    assert set(alone) == set(bare)
    np.testing.assert_allclose(moved["image"], alone["image"], atol=0.01)


def test_one_device_and_eight_give_the_same():
    batch = batch_of(noise_image())
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(batch, jax.NamedSharding(mesh, jax.P("data")))
    np.testing.assert_allclose(run(spread)["image"], run(batch)["image"], atol=1e-3)


@pytest.mark.parametrize("strength", [-0.1, 1.1])
def test_a_strength_outside_zero_to_one_is_an_error(strength):
    with pytest.raises(ValueError, match="strength of augmentation"):
        augment(batch_of(noise_image()), KEY, strength=strength, flip_ok=jnp.ones(2, bool))


def test_normalise_gives_imagenet_statistics_in_three_channels():
    mean = 255 * np.array([0.485, 0.456, 0.406])
    std = 255 * np.array([0.229, 0.224, 0.225])
    colour = np.broadcast_to(mean + std, (2, 4, 5, 3))
    np.testing.assert_allclose(normalise(jnp.asarray(colour)), np.ones((2, 4, 5, 3)), rtol=1e-5)
    grey = np.full((2, 4, 5, 1), 51, np.uint8)
    expected = np.broadcast_to((51 - mean) / std, (2, 4, 5, 3))
    np.testing.assert_allclose(normalise(jnp.asarray(grey)), expected, rtol=1e-4)
