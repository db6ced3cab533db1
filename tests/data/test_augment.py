import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import usfm.data
from usfm import config as usfm_config
from usfm.data import appearance, geometry
from usfm.data.augment import augment, normalise, strengths
from usfm.tasks import Task
from usfm.tasks.fm_uia import TASKS

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
    return jax.jit(functools.partial(augment, strength=np.array(strength), flip_ok=flip_ok))


def run(batch, key=KEY, strength=(1.0, 1.0)):
    """The augmented batch, at a strength for each of its two tasks."""
    constants = [
        value for module in (geometry, appearance) for name, value in vars(module).items()
        if name.isupper()
    ]  # what tests may change  # fmt: skip
    return jax.tree.map(np.asarray, compiled(strength, *constants)(batch, key))


@pytest.fixture
def true_colours(monkeypatch):
    """Geometry alone."""
    for name in ("BLUR", "SHADOW", "SPECKLE", "CONTRAST", "BRIGHTNESS"):
        monkeypatch.setattr(appearance, name, 0.0)
    for name in ("GAMMA", "GAIN"):
        monkeypatch.setattr(appearance, name, 1.0)


@pytest.fixture
def whole_view(monkeypatch):
    """No sectors."""
    monkeypatch.setattr(geometry, "OPENING", 0.0)


@pytest.fixture
def only_sectors(monkeypatch, true_colours):
    """No moves but mirroring."""
    for name in ("ROTATION", "SCALE", "SHIFT"):
        monkeypatch.setattr(geometry, name, 0.0)


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
    same = run(batch, strength=(0.0, 0.0))
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


def test_points_follow_the_image(true_colours, whole_view):
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


def test_shapes_are_turned_and_scaled_but_not_sheared(true_colours, whole_view):
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


def test_the_mask_follows_the_image_and_is_255_outside(true_colours, whole_view):
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


def test_an_image_whose_box_would_leave_keeps_its_place(true_colours, whole_view, monkeypatch):
    monkeypatch.setattr(geometry, "SHIFT", 0.6)
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


def test_what_a_sector_hides_is_not_asked_for(only_sectors):
    at = np.array([[8, 10], [32, 24], [60, 46]])  # column, row
    points = ((at + 0.5) / [WIDTH, HEIGHT]).astype(np.float32)
    mask = np.ones((HEIGHT, WIDTH), np.uint8)
    light = np.full((HEIGHT, WIDTH), 255)
    moved = run(batch_of(light, mask=mask, points=points, points_valid=[True] * 3))
    seen = moved["image"][..., 0] > 127.5
    np.testing.assert_array_equal(moved["mask"], np.where(seen, 1, 255))
    unmirrored = moved["points_valid"][1::2]
    np.testing.assert_array_equal(unmirrored, seen[1::2][:, :, at[:, 1], at[:, 0]])
    assert unmirrored[..., 1].all()
    for valid in (unmirrored[..., 0], unmirrored[..., 2]):
        assert 0.4 < valid.mean() < 0.95


def test_a_sector_cuts_no_box(only_sectors):
    box = np.array([0.1, 0.2, 0.4, 0.5], np.float32)
    moved = run(batch_of(np.full((HEIGHT, WIDTH), 255), box=box))
    seen = moved["image"][..., 0] > 127
    assert 0.1 < (~seen).any(axis=(2, 3)).mean() < 0.5  # of what is no lesion they do cut
    np.testing.assert_allclose(moved["box"][1::2], np.broadcast_to(box, (SLOTS // 2, IMAGES, 4)))
    for slot, image in np.ndindex(SLOTS, IMAGES):
        x_min, y_min, x_max, y_max = moved["box"][slot, image] * [WIDTH, HEIGHT, WIDTH, HEIGHT]
        inside = (x_min < X) & (x_max > X) & (y_min < Y) & (y_max > Y)
        assert seen[slot, image][inside].all()


def test_a_mask_gets_no_new_classes():
    mask = np.random.default_rng(2).choice([0, 1, 4], (HEIGHT, WIDTH)).astype(np.uint8)
    assert set(np.unique(run(batch_of(noise_image(), mask=mask))["mask"])) == {0, 1, 4, 255}


def test_colours_leave_labels_alone(true_colours, monkeypatch):
    labels = {
        "box": np.array([0.3, 0.3, 0.6, 0.6], np.float32),
        "points": np.array([[0.3, 0.4], [0.5, 0.5], [0.6, 0.7]], np.float32),
        "points_valid": np.ones(3, bool),
        "mask": ellipse((0.2, 0.3, 0.6, 0.9)).astype(np.uint8),
    }
    batch = batch_of(noise_image(), **labels)
    plain = run(batch)
    monkeypatch.undo()
    coloured = run(batch)
    assert np.abs(coloured["image"] - plain["image"]).mean() > 2
    for name in labels:
        np.testing.assert_allclose(coloured[name], plain[name], atol=1e-6, err_msg=name)


def test_each_task_has_its_own_strength():
    labels = {
        "points": np.array([[0.02, 0.4], [0.5, 0.5], [0.6, 0.7]], np.float32),
        "points_valid": np.ones(3, bool),
        "mask": ellipse((0.2, 0.3, 0.6, 0.9)).astype(np.uint8),
    }
    batch = batch_of(noise_image(), **labels)
    mixed, full = run(batch, strength=(0.0, 1.0)), run(batch)
    for name in ("image", *labels):
        # A strength of 0 among others: the image as it was, but for rounding.
        np.testing.assert_allclose(mixed[name][::2], batch[name][::2], atol=1e-2, err_msg=name)
        np.testing.assert_allclose(mixed[name][1::2], full[name][1::2], atol=1e-2, err_msg=name)
        assert (full[name][::2] != np.asarray(batch[name])[::2]).any(), name


def test_a_type_has_its_share_of_the_strength_for_all():
    data = usfm_config.base().data
    tasks = [Task("a", "detection", 1), Task("b", "segmentation", 2), Task("c", "regression", 0, 1)]
    data.augment = 0.5
    assert strengths(data, tasks).tolist() == [0.5, 0.5, 0.5]
    data.augment_by_type.update(segmentation=0.5, regression=0.0)
    assert strengths(data, tasks).tolist() == [0.5, 0.25, 0.0]
    data.augment = 0.0  # nothing of it is left where it is switched off for all
    assert not strengths(data, tasks).any()


def test_no_strength_at_all_compiles_to_the_plain_cast():
    batch, flip_ok = batch_of(noise_image()), jnp.ones(2, bool)
    plain = jax.make_jaxpr(lambda image: image.astype(jnp.float32))(batch["image"])
    nothing = functools.partial(augment, strength=np.zeros(2), flip_ok=flip_ok)
    made = jax.make_jaxpr(lambda image: nothing(batch | {"image": image}, KEY)["image"])
    assert str(made(batch["image"])) == str(plain)


def test_of_the_27_tasks_half_the_images_are_mirrored_but_of_those_with_sides_none():
    tasks = list(TASKS.values())
    image = noise_image()
    batch = {
        "image": jnp.broadcast_to(jnp.asarray(image), (len(tasks), IMAGES, *image.shape)),
        "task": jnp.arange(len(tasks)),
    }
    flip_ok = jnp.array([task.flip_ok for task in tasks])
    weak = np.full(len(tasks), 1e-6)  # next to nothing but mirroring
    moved = jax.jit(functools.partial(augment, strength=weak, flip_ok=flip_ok))(batch, KEY)
    mirrored, unmoved = (
        np.abs(np.asarray(moved["image"]) - picture).max(axis=(2, 3, 4)) < 0.1
        for picture in (image[:, ::-1], image)
    )
    assert (mirrored ^ unmoved).all()
    sided = {id for id in TASKS if "_pos_" in id} | {t.id for t in tasks if t.type == "regression"}
    assert len(sided) == 5
    assert {t.id for t, of_task in zip(tasks, mirrored, strict=True) if not of_task.any()} == sided
    assert 0.4 < mirrored[[task.id not in sided for task in tasks]].mean() < 0.6


def test_one_device_and_eight_give_the_same():
    batch = batch_of(
        noise_image(),
        box=np.array([0.3, 0.3, 0.6, 0.6], np.float32),
        points=np.array([[0.3, 0.4], [0.5, 0.5], [0.6, 0.7]], np.float32),
        points_valid=np.ones(3, bool),
        mask=ellipse((0.2, 0.3, 0.6, 0.9)).astype(np.uint8),
    )
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(batch, jax.NamedSharding(mesh, jax.P("data")))
    eight, one = run(spread), run(batch)
    for name, array in one.items():
        np.testing.assert_allclose(eight[name], array, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("strength", [-0.1, 1.1, np.nan])
def test_a_strength_outside_zero_to_one_is_an_error(strength):
    both = np.array([0.5, strength])
    with pytest.raises(ValueError, match="strength of augmentation"):
        augment(batch_of(noise_image()), KEY, strength=both, flip_ok=jnp.ones(2, bool))


def test_only_the_files_of_the_device_import_jax():
    # Data workers start without it, and must not see the accelerator.
    folder = pathlib.Path(usfm.data.__file__).parent
    found = {path.name for path in folder.rglob("*.py")
             if re.search(r"^\s*(import|from) jax\b", path.read_text(), re.M)}  # fmt: skip
    assert found == {"augment.py", "geometry.py", "appearance.py"}


def test_normalise_gives_imagenet_statistics_in_three_channels():
    mean = 255 * np.array([0.485, 0.456, 0.406])
    std = 255 * np.array([0.229, 0.224, 0.225])
    colour = np.broadcast_to(mean + std, (2, 4, 5, 3))
    np.testing.assert_allclose(normalise(jnp.asarray(colour)), np.ones((2, 4, 5, 3)), rtol=1e-5)
    grey = np.full((2, 4, 5, 1), 51, np.uint8)
    expected = np.broadcast_to((51 - mean) / std, (2, 4, 5, 3))
    np.testing.assert_allclose(normalise(jnp.asarray(grey)), expected, rtol=1e-4)
