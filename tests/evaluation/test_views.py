import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from usfm.evaluation.predict import answer
from usfm.evaluation.prediction import content
from usfm.evaluation.views import Views, averaged, mirrored
from usfm.tasks import TYPES, Task

TASKS = {
    "classification": Task("c", "classification", num_classes=3),
    "detection": Task("d", "detection", num_classes=1),
    "regression": Task("r", "regression", num_points=2),
    "segmentation": Task("s", "segmentation", num_classes=3),
}


@pytest.fixture
def outputs():
    """Makes outputs of a type for one slot of two images, on maps of a size."""
    rng = np.random.default_rng(0)

    def make(kind, side=4):
        normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
        if kind == "detection":
            low, high = rng.uniform(0, 0.5, (2, 1, 2, side, side, 2))
            boxes = jnp.asarray(np.concatenate([low, low + high], -1), jnp.float32)
            return {"heat": normal(1, 2, side, side), "boxes": boxes}
        if kind == "regression":
            return {"points": jnp.asarray(rng.uniform(0, 1, (1, 2, 2, 2)), jnp.float32)}
        maps = (side, side) if kind == "segmentation" else ()
        # Four classes, of which the tasks have three: the last is masked, as heads.py does it.
        return {"logits": 3 * normal(1, 2, *maps, 4).at[..., 3].set(-1e9)}

    return make


def contents(kind, outputs):
    """What is answered for both images of `outputs`."""
    of_image = [{name: np.asarray(v[0, i]) for name, v in outputs.items()} for i in (0, 1)]
    return [content(TASKS[kind], answer(TASKS[kind], (8, 12), each)) for each in of_image]


@pytest.mark.parametrize("kind", TYPES)
def test_the_average_of_equal_views_says_what_one_says(kind, outputs):
    one = outputs(kind)
    for ours, theirs in zip(
        contents(kind, averaged(kind, [one, one, one])), contents(kind, one), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_probabilities_boxes_and_points_are_averaged(outputs):
    for kind, atol in (("classification", 1e-6), ("regression", 1e-6)):
        a, b = outputs(kind), outputs(kind)
        means = [(x + y) / 2 for x, y in zip(contents(kind, a), contents(kind, b), strict=True)]
        np.testing.assert_allclose(contents(kind, averaged(kind, [a, b])), means, atol=atol)
    a, b = outputs("detection"), outputs("detection")
    merged = averaged("detection", [a, b])
    np.testing.assert_allclose(merged["boxes"], (a["boxes"] + b["boxes"]) / 2, rtol=1e-6)
    sigmoid = lambda x: 1 / (1 + np.exp(-np.asarray(x)))  # noqa: E731
    mean = (sigmoid(a["heat"]) + sigmoid(b["heat"])) / 2
    np.testing.assert_allclose(sigmoid(merged["heat"]), mean, atol=1e-6)


@pytest.mark.parametrize("kind", ["detection", "segmentation"])
def test_maps_of_another_size_are_brought_to_the_first(kind, outputs):
    first = outputs(kind)
    merged = averaged(kind, [first, outputs(kind, side=6)])
    assert {k: v.shape for k, v in merged.items()} == {k: v.shape for k, v in first.items()}
    assert all(np.isfinite(value).all() for value in merged.values())


@pytest.mark.parametrize("kind", TYPES)
def test_what_is_mirrored_twice_is_as_it_was(kind, outputs):
    once = outputs(kind)
    for name, value in mirrored(kind, mirrored(kind, once)).items():
        np.testing.assert_allclose(value, once[name], atol=1e-6)


def test_sizes_are_whole_patches():
    assert Views((1.0, 0.7, 1.5, 0.01)).sizes((128, 64)) == (
        (128, 64),
        (96, 48),
        (192, 96),
        (16, 16),
    )


@pytest.mark.parametrize(
    ("task_id", "scales", "flipped"),
    [("seg", (1.0,), True), ("organ", (1.0, 1.5), True), ("plane", (1.0,), False)],
)
def test_a_mirrored_image_gets_the_mirrored_answer_where_the_task_allows_it(
    make_fresh_predictor, task_id, scales, flipped
):
    views = Views(scales, flip=True)
    predictor = dataclasses.replace(make_fresh_predictor(1, batch_size=2), views=views)
    (task,) = (task for task in predictor.tasks if task.id == task_id)
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (2, *size, 1), np.uint8) for size in views.sizes((32, 32))]
    found = predictor.outputs(task, images)
    again = predictor.outputs(task, [image[:, :, ::-1] for image in images])
    back = mirrored(task.type, {name: jnp.asarray(v)[None] for name, v in again.items()})
    real = slice(task.num_classes)
    difference = np.abs(back["logits"][0][..., real] - found["logits"][..., real]).max()
    assert (difference < 1e-4) == flipped
