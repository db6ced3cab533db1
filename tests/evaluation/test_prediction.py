import dataclasses

import numpy as np
import pytest

from usfm.evaluation.prediction import Answer, content, truth


@pytest.fixture
def first(folder):
    """The truth of row 1 of each task, and the row."""
    return {
        task.id: (truth(folder, task, folder.rows[task.id][1]), folder.rows[task.id][1])
        for task in folder.tasks
    }


def test_mask_is_read_at_original_size(first):
    answer, row = first["mask"]
    assert answer.mask.shape == (row.height, row.width)
    assert answer.mask.dtype == np.uint8
    assert set(np.unique(answer.mask)) == {0, 1, 2}


def test_class_is_one_hot(first):
    answer, _ = first["classes"]
    assert answer.probs.tolist() == [0, 1, 0]


def test_coordinates_are_relative_to_width_and_height(first):
    box, row = first["where"]
    pixels = box.box * [row.width, row.height, row.width, row.height]
    np.testing.assert_allclose(pixels, row.box, rtol=1e-6)
    points, row = first["spots"]
    pixels = points.points * [row.width, row.height]
    np.testing.assert_allclose(pixels[:2], row.points[:2], rtol=1e-6)


def test_missing_point_is_nan(first):
    answer, _ = first["spots"]
    assert np.isnan(answer.points).tolist() == [[False] * 2, [False] * 2, [True] * 2]


def test_row_without_label_has_no_truth(folder):
    task = folder.tasks[0]
    row = dataclasses.replace(folder.rows[task.id][0], label=None)
    with pytest.raises(ValueError, match=r"classes.csv line 2: .* has no label"):
        truth(folder, task, row)


def test_answer_of_another_type_is_refused(folder):
    with pytest.raises(ValueError, match="classes: an answer to a classification task needs probs"):
        content(folder.tasks[0], Answer(box=np.zeros(4, np.float32)))
