import numpy as np
import pytest

from usfm.evaluation.overlay import PREDICTED, SIDE, TRUTH, Example, caption, draw
from usfm.evaluation.prediction import Answer
from usfm.tasks import Task


def has(picture, colour, y, x, reach=6):
    """Whether `colour` occurs near a place, given relative to the picture."""
    row, column = round(y * picture.shape[0]), round(x * picture.shape[1])
    near = picture[max(row - reach, 0) : row + reach, max(column - reach, 0) : column + reach]
    return bool((near == colour).all(axis=-1).any())


def disc(cy, cx):
    y, x = np.indices((60, 80)) + 0.5
    return (np.hypot(y / 60 - cy, (x / 80 - cx)) < 0.2).astype(np.uint8)


def example(task, true, predicted, image=None):
    return Example(
        task, "a.png", np.zeros((60, 80), np.uint8) if image is None else image, true, predicted
    )


def test_masks_are_outlined():
    task = Task("t", "segmentation", num_classes=2)
    picture = draw(example(task, Answer(mask=disc(0.5, 0.3)), Answer(mask=disc(0.5, 0.7))))
    assert has(picture, TRUTH, 0.5, 0.1)
    assert has(picture, PREDICTED, 0.5, 0.9)
    assert not has(picture, TRUTH, 0.5, 0.3)
    assert not has(picture, PREDICTED, 0.5, 0.7)


def test_boxes_are_drawn():
    task = Task("t", "detection", num_classes=1)
    boxes = [
        Answer(box=np.array(b, np.float32)) for b in ([0.1, 0.2, 0.4, 0.5], [0.5, 0.6, 0.9, 0.8])
    ]
    picture = draw(example(task, *boxes))
    assert has(picture, TRUTH, 0.2, 0.25)
    assert has(picture, TRUTH, 0.35, 0.4)
    assert has(picture, PREDICTED, 0.7, 0.9)


def test_missing_points_are_not_drawn():
    task = Task("t", "regression", num_points=2)
    true = Answer(points=np.array([[0.2, 0.3], [np.nan, np.nan]], np.float32))
    predicted = Answer(points=np.array([[0.4, 0.3], [0.8, 0.8]], np.float32))
    picture = draw(example(task, true, predicted))
    assert has(picture, TRUTH, 0.3, 0.2, reach=12)
    assert has(picture, PREDICTED, 0.3, 0.4)
    assert not has(picture, PREDICTED, 0.8, 0.8, reach=20)


def test_points_of_an_answer_alone_are_drawn_as_an_answer():
    task = Task("t", "regression", num_points=1)
    picture = draw(example(task, None, Answer(points=np.array([[0.4, 0.3]], np.float32))))
    assert has(picture, PREDICTED, 0.3, 0.4, reach=12)
    assert not (picture == TRUTH).all(axis=-1).any()


def test_class_is_said_and_not_drawn():
    task = Task("t", "classification", num_classes=3)
    true, predicted = Answer(probs=np.eye(3)[2]), Answer(probs=np.array([0.1, 0.7, 0.2]))
    shown = example(task, true, predicted, np.full((30, 20, 3), 90, np.uint8))
    assert caption(shown) == "truth: class 2; model: class 1 (70%)"
    assert caption(example(task, true, None)) == "class 2"
    assert caption(example(task, None, predicted)) == "class 1 (70%)"
    assert (draw(shown) == 90).all()


@pytest.mark.parametrize("shape", [(60, 80), (60, 80, 1), (60, 80, 3)])
def test_picture_is_rgb_of_one_size_whatever_the_image(shape):
    task = Task("t", "detection", num_classes=1)
    box = Answer(box=np.array([0.1, 0.1, 0.2, 0.2], np.float32))
    picture = draw(example(task, box, box, np.zeros(shape, np.uint8)))
    assert picture.shape == (SIDE * 3 // 4, SIDE, 3)
    assert picture.dtype == np.uint8


def test_image_is_left_as_it_was():
    task = Task("t", "detection", num_classes=1)
    box = Answer(box=np.array([0.1, 0.1, 0.2, 0.2], np.float32))
    image = np.zeros((SIDE * 3 // 4, SIDE, 3), np.uint8)
    draw(example(task, box, box, image))
    assert not image.any()
