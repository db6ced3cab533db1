"""The official evaluator's form and habits; test_live_official.py compares with its libraries."""

import numpy as np
import pytest

from usfm.evaluation.metrics import score_row
from usfm.evaluation.official import official_report
from usfm.evaluation.prediction import Answer
from usfm.tasks import Task

BINARY = Task("benign", "classification", num_classes=2)
PLANE = Task("plane", "classification", num_classes=4)
BOX = Task("nodule", "detection", num_classes=1)
POINTS = Task("femur", "regression", num_points=2)
ORGAN = Task("organ", "segmentation", num_classes=2)


def classes(task, probs, labels):
    truths = np.eye(task.num_classes, dtype=np.float32)[labels]
    return [
        score_row(task, (9, 9), Answer(probs=np.asarray(p, np.float32)), Answer(probs=t))
        for p, t in zip(probs, truths, strict=True)
    ]


def masks(*corners):
    """A mask of 6 x 8 with one box of 2 x 2, and its row's scores against one at (0, 0)."""
    true = np.zeros((6, 8), np.uint8)
    true[:2, :2] = 1
    rows = []
    for y, x in corners:
        said = np.zeros_like(true)
        said[y : y + 2, x : x + 2] = 1
        rows.append(score_row(ORGAN, (6, 8), Answer(mask=said), Answer(mask=true)))
    return rows


def test_types_and_tasks_stand_in_the_official_order_and_form():
    report = official_report(
        {
            PLANE: classes(PLANE, np.eye(4), range(4)),
            POINTS: [],
            BOX: [{"iou": 0.5}, {"iou": 0.25}],
            ORGAN: masks((0, 0), (0, 3)),
        }
    )
    assert list(report) == ["segmentation", "classification", "detection", "regression"]
    assert report["detection"] == {"nodule": {"IoU": 0.375, "num_samples": 2}}
    assert report["regression"] == {"femur": {"MRE": 0.0, "num_samples": 0}}
    assert report["segmentation"]["organ"] == {
        "DSC": 0.5,
        "HD": 1.5,
        "num_samples": 2,
        "per_class": {
            # Of 44 pixels of background 4 are swapped, each beside the other's background.
            "class_0": {"DSC": pytest.approx((1 + 40 / 44) / 2), "HD": 1.0},
            "class_1": {"DSC": 0.5, "HD": 1.5},
        },
    }
    perfect = dict.fromkeys(("AUC", "Accuracy", "F1_macro", "F1_weighted", "MCC"), 1.0)
    per_class = {f"class_{c}": {"F1": 1.0} for c in range(4)}
    assert report["classification"]["plane"] == perfect | {
        "num_samples": 4,
        "per_class": per_class,
    }


def test_what_is_undefined_is_0():
    entry = official_report({BINARY: classes(BINARY, np.eye(2)[[1, 1, 0]], [1, 1, 1])})
    scores = entry["classification"]["benign"]
    assert (scores["AUC"], scores["MCC"]) == (0.0, 0.0)
    assert scores["Accuracy"] == pytest.approx(2 / 3)
    nothing = official_report({BINARY: []})["classification"]["benign"]
    assert nothing == dict.fromkeys(scores, 0.0) | {"num_samples": 0, "per_class": {}}


def test_the_f1_of_classes_behind_an_absent_one_stand_too_low():
    """Class 1 neither occurs nor is said: class_1 is that of class 2, and class_3 is 0."""
    rows = classes(PLANE, np.eye(4)[[0, 2, 3, 3]], [0, 2, 3, 2])
    entry = official_report({PLANE: rows})["classification"]["plane"]
    found = [entry["per_class"][f"class_{c}"]["F1"] for c in range(4)]
    assert found == pytest.approx([1, 2 / 3, 2 / 3, 0])


def test_absent_landmarks_are_at_the_origin():
    true = np.array([[0.5, 0.5], [np.nan, np.nan]], np.float32)
    said = np.array([[0.5, 0.5], [0.3, 0.4]], np.float32)
    row = score_row(POINTS, (10, 10), Answer(points=said), Answer(points=true))
    entry = official_report({POINTS: [row]})["regression"]["femur"]
    assert entry == {"MRE": pytest.approx(2.5), "num_samples": 1}
    assert row["mre"] == pytest.approx(0, abs=1e-6)


def test_answers_that_are_not_finite_count_as_missing():
    lost = np.full((2, 2), np.nan, np.float32)
    good = np.full((2, 2), 0.5, np.float32)
    rows = [score_row(POINTS, (8, 8), Answer(points=p), Answer(points=good)) for p in (lost, good)]
    assert official_report({POINTS: rows})["regression"]["femur"]["num_samples"] == 1
