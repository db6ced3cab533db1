import csv
import dataclasses
import pathlib

import numpy as np
import pytest
from PIL import Image

from usfm.data.folder import read_folder
from usfm.evaluation import trivial
from usfm.evaluation.metrics import score_row, summarise
from usfm.evaluation.prediction import content, truth
from usfm.tasks import Task

MINI = pathlib.Path(__file__).parents[2] / "../shared/data/fm_uia_mini"
# The column "trivial" of its BASELINE.md, as known there: to three digits.
PUBLISHED = {
    "breast_lesion": {"dsc": 0.296},
    "nerve_vessel": {"dsc": 0.150},
    "breast_3cls": {"auc": 0.500, "f1_macro": 0.175},
    "lung_disease_3cls": {"auc": 0.500, "f1_macro": 0.167},
    "breast_lesion_det": {"iou": 0.209},
    "vessel_det": {"iou": 0.061},
    "muscle_thickness_2pt": {"mre": 25.6},
    "tongue_5pt": {"mre": 21.0},
}


def answers(folder, task_id):
    """What the predictor, fitted to all rows of a task, says of each of them."""
    task = next(task for task in folder.tasks if task.id == task_id)
    predictor = trivial.fit(folder, task, folder.rows[task_id])
    return [content(task, predictor(row)) for row in folder.rows[task_id]]


def truths(folder, task_id):
    task = next(task for task in folder.tasks if task.id == task_id)
    return [content(task, truth(folder, task, row)) for row in folder.rows[task_id]]


def replace_rows(folder, task_id, **fields):
    rows = tuple(dataclasses.replace(row, **fields) for row in folder.rows[task_id])
    return dataclasses.replace(folder, rows=folder.rows | {task_id: rows})


def write_masks(folder, masks):
    for row, mask in zip(folder.rows["mask"], masks, strict=False):
        Image.fromarray(mask).save(folder.mask_file(row))


def test_classes_are_answered_by_their_frequencies(folder):
    rows = tuple(
        dataclasses.replace(row, label=int(row.index < 2)) for row in folder.rows["classes"]
    )
    folder = dataclasses.replace(folder, rows=folder.rows | {"classes": rows})
    probs = answers(folder, "classes")[0]
    np.testing.assert_allclose(probs, [4 / 6, 2 / 6, 0], rtol=1e-6)
    assert probs.dtype == np.float32


def test_box_is_the_mean_of_relative_boxes(folder):
    box = answers(folder, "where")[0]
    np.testing.assert_allclose(box, np.mean(truths(folder, "where"), axis=0), rtol=1e-6)


def test_missing_points_do_not_count(folder):
    points = answers(folder, "spots")[0]
    np.testing.assert_allclose(points, np.nanmean(truths(folder, "spots"), axis=0), rtol=1e-6)


def test_point_that_is_never_present_is_put_in_the_centre(folder):
    rows = tuple(
        dataclasses.replace(row, points=(*row.points[:2], None)) for row in folder.rows["spots"]
    )
    folder = dataclasses.replace(folder, rows=folder.rows | {"spots": rows})
    assert answers(folder, "spots")[0][2].tolist() == [0.5, 0.5]


def test_threshold_is_the_best_of_all(folder):
    """No threshold of the mean mask scores higher on the training masks."""
    generator = np.random.default_rng(0)
    shape = (256, 256)
    y, x = np.indices(shape)
    masks = [
        (np.hypot(y - cy, x - cx) < r).astype(np.uint8)
        for cy, cx, r in generator.uniform(60, 196, (6, 3)) * [1, 1, 0.4]
    ]
    folder = replace_rows(folder, "mask", height=256, width=256)
    write_masks(folder, masks)
    task = Task("mask", "segmentation", num_classes=2)
    rows = folder.rows["mask"]
    answer = content(task, trivial.fit(folder, task, rows)(rows[0]))

    def mean_dice(guess):
        return np.mean([2 * (guess & (m == 1)).sum() / (guess.sum() + m.sum()) for m in masks])

    mean = np.mean(masks, axis=0)
    every = [mean_dice(mean >= count / 6 - 1e-9) for count in range(1, 7)]
    assert mean_dice(answer == 1) == pytest.approx(max(every))


def test_mask_has_the_size_of_the_row_asked(folder):
    for row, mask in zip(folder.rows["mask"], answers(folder, "mask"), strict=True):
        assert mask.shape == (row.height, row.width)
        assert mask.dtype == np.uint8


def test_where_classes_overlap_the_one_furthest_above_its_threshold_wins(folder):
    """Class 1 is always in the left half; class 2 at the top right of four images of six."""
    folder = replace_rows(folder, "mask", height=64, width=64)
    masks = np.zeros((6, 64, 64), np.uint8)
    masks[:, :, :32] = 1
    masks[:4, :32, 32:] = 2
    write_masks(folder, masks)
    mask = answers(folder, "mask")[0]
    assert (mask[:, :32] == 1).all()
    assert (mask[:32, 32:] == 2).all()
    assert (mask[32:, 32:] == 0).all()


def test_class_that_is_mostly_absent_is_best_left_out(folder):
    rows = folder.rows["mask"]
    write_masks(folder, [np.zeros((row.height, row.width), np.uint8) for row in rows[:5]])
    assert set(np.unique(answers(folder, "mask")[0])) == {0}


def test_no_training_rows_are_an_error(folder):
    with pytest.raises(ValueError, match="classes: the trivial predictor needs training rows"):
        trivial.fit(folder, folder.tasks[0], [])


@pytest.mark.skipif(not MINI.exists(), reason="needs ../shared/data/fm_uia_mini")
def test_published_figures_of_real_data(tmp_path, subtests):
    folder = read_folder(MINI, cache_dir=tmp_path)
    with (MINI / "splits.csv").open(newline="") as file:
        parts = {
            (line["task_id"], line["image_path"]): line["part"] for line in csv.DictReader(file)
        }
    for task in folder.tasks:
        if task.id not in PUBLISHED:
            continue
        by_part = {"train": [], "val": [], "test": []}
        for row in folder.rows[task.id]:
            by_part[parts[task.id, row.image_path]].append(row)
        predictor = trivial.fit(folder, task, by_part["train"])
        result = summarise(
            task,
            [
                score_row(task, (r.height, r.width), predictor(r), truth(folder, task, r))
                for r in by_part["val"]
            ],
        )
        with subtests.test(task.id):
            published = PUBLISHED[task.id]
            assert {name: result[name] for name in published} == pytest.approx(published, rel=8e-3)
