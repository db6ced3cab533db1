import dataclasses

import numpy as np
import pytest

from usfm.evaluation.predict import answer
from usfm.evaluation.prediction import content
from usfm.tasks import Task

SIZE = (20, 60)  # of an original image


def contents(answers, folder):
    tasks = {task.id: task for task in folder.tasks}
    return {(r.task_id, r.index): content(tasks[r.task_id], a) for r, a in answers}


def test_answers_depend_neither_on_devices_nor_on_the_batch_size(
    small_folder, make_fresh_predictor
):
    one = list(make_fresh_predictor(1, batch_size=3)(small_folder, small_folder.rows))
    eight = list(make_fresh_predictor(8, batch_size=12)(small_folder, small_folder.rows))
    rows = [row for of_task in small_folder.rows.values() for row in of_task]
    assert [row for row, _ in one] == [row for row, _ in eight] == rows

    one, eight = contents(one, small_folder), contents(eight, small_folder)
    for task in small_folder.tasks:
        ours, theirs = ([of[task.id, i] for i in range(7)] for of in (one, eight))
        if task.type == "segmentation":
            assert [mask.shape for mask in ours] == [
                (row.height, row.width) for row in small_folder.rows[task.id]
            ]
            agree = np.concatenate([(a == b).ravel() for a, b in zip(ours, theirs, strict=True)])
            assert agree.mean() > 0.9999
            assert len(np.unique(np.concatenate([mask.ravel() for mask in ours]))) > 1
        else:
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
            assert np.ptp(ours, axis=0).max() > 1e-4  # they do look at the image


def test_a_task_answers_with_its_own_row_of_the_heads(small_folder, make_fresh_predictor):
    rows = {id: small_folder.rows[id][:2] for id in ("organ", "plane")}
    predictor = make_fresh_predictor(1, batch_size=2)
    before = contents(predictor(small_folder, rows), small_folder)
    bias = predictor.params["heads"]["classification"]["bias"].at[1, 0].add(3.0)  # of "plane"
    heads = predictor.params["heads"]
    heads = heads | {"classification": heads["classification"] | {"bias": bias}}
    predictor = dataclasses.replace(predictor, params=predictor.params | {"heads": heads})
    after = contents(predictor(small_folder, rows), small_folder)
    for index in (0, 1):
        assert before["organ", index].shape == (4,)
        np.testing.assert_allclose(after["organ", index], before["organ", index], rtol=1e-5)
        odds = [of["plane", index][0] / of["plane", index][1] for of in (before, after)]
        assert odds[1] / odds[0] == pytest.approx(np.exp(3.0), rel=1e-3)


def test_no_rows_no_answers(small_folder, make_fresh_predictor):
    assert list(make_fresh_predictor(1, batch_size=2)(small_folder, {})) == []
    assert list(make_fresh_predictor(1, batch_size=2)(small_folder, {"organ": ()})) == []


def test_masks_are_made_at_the_original_size_of_the_real_classes():
    task = Task("many", "segmentation", num_classes=7)
    logits = np.zeros((4, 6, 9), np.float32)
    for column in range(6):
        logits[:, column, column + 1] = 1.0
    logits[..., 8] = 5.0  # padding
    mask = content(task, answer(task, SIZE, {"logits": logits}))
    assert (mask.shape, mask.dtype) == (SIZE, np.uint8)
    np.testing.assert_array_equal(mask[:, 5::10], np.tile(np.arange(1, 7), (20, 1)))
    assert set(np.unique(mask)) == {1, 2, 3, 4, 5, 6}


def test_probabilities_are_of_the_real_classes():
    task = Task("some", "classification", num_classes=3)
    logits = np.log(np.array([1, 2, 5, 1000], np.float32)) + 200
    probs = content(task, answer(task, SIZE, {"logits": logits}))
    np.testing.assert_allclose(probs, [1 / 8, 2 / 8, 5 / 8], rtol=1e-4)


def test_the_box_is_what_the_cells_around_the_highest_agree_on():
    task = Task("where", "detection", num_classes=1)
    heat = np.zeros((4, 5), np.float32)
    heat[1, 3] = 2.0
    boxes = np.full((4, 5, 4), 0.9, np.float32)  # far away they do not count
    boxes[:3, 2:] = (-0.1, 0.2, 0.6, 1.3)
    boxes[0, 2:5] += 0.05  # three of the nine differ: the others are more
    found = answer(task, SIZE, {"heat": heat, "boxes": boxes})
    np.testing.assert_allclose(content(task, found), [0, 0.2, 0.6, 1])
    assert found.confidence == pytest.approx(1 / (1 + np.exp(-2)))


def test_a_box_in_the_corner_has_fewer_cells_around_it():
    task = Task("where", "detection", num_classes=1)
    heat = np.zeros((2, 3), np.float32)
    heat[1, 2] = 1.0
    boxes = np.tile(np.array([0.1, 0.2, 0.6, 0.8], np.float32), (2, 3, 1))
    boxes[:, 0] = 0
    np.testing.assert_allclose(
        content(task, answer(task, SIZE, {"heat": heat, "boxes": boxes})), [0.1, 0.2, 0.6, 0.8]
    )


def test_points_are_those_of_the_task():
    task = Task("ends", "regression", num_points=2)
    points = np.arange(8, dtype=np.float32).reshape(4, 2) / 8
    found = content(task, answer(task, SIZE, {"points": points}))
    np.testing.assert_array_equal(found, points[:2])
