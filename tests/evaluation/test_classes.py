import numpy as np
import pytest
from sklearn import metrics as sk

from usfm.evaluation.classes import by_class
from usfm.evaluation.metrics import columns, score_row, summarise
from usfm.evaluation.prediction import Answer
from usfm.tasks import Task

ORGANS = Task("organs", "segmentation", num_classes=3)
PLANE = Task("plane", "classification", num_classes=3)


def segmented(*pairs):
    """Rows of 1 x 4 masks, said and true."""
    masks = [[np.array([m], np.uint8) for m in pair] for pair in pairs]
    return [score_row(ORGANS, (1, 4), Answer(mask=a), Answer(mask=b)) for a, b in masks]


def classified(probs, labels):
    truths = np.eye(3, dtype=np.float32)[labels]
    return [
        score_row(PLANE, (1, 1), Answer(probs=p), Answer(probs=t))
        for p, t in zip(np.asarray(probs, np.float32), truths, strict=True)
    ]


def test_classes_of_masks_average_to_the_task_and_say_how_often_they_occur():
    rows = segmented(([1, 1, 0, 0], [1, 0, 0, 0]), ([0, 0, 0, 0], [0, 0, 0, 0]))
    classes = by_class(ORGANS, rows)
    assert classes["1"]["dsc"] == pytest.approx((2 / 3 + 1) / 2)
    assert classes["1"]["dsc_present"] == pytest.approx(2 / 3)
    assert (classes["1"]["n"], classes["1"]["undefined"]) == (1, {})
    assert (classes["2"]["dsc"], classes["2"]["dsc_present"], classes["2"]["n"]) == (1, None, 0)
    assert classes["2"]["undefined"] == {"dsc_present": "does not occur in the truth"}
    whole = summarise(ORGANS, rows)
    for metric in ("dsc", "hd", "hd95", "nsd"):
        mean = np.mean([of_class[metric] for of_class in classes.values()])
        assert whole[metric] == pytest.approx(mean)


def test_each_class_is_scored_against_the_others():
    generator = np.random.default_rng(0)
    labels, probs = generator.integers(3, size=50), generator.dirichlet(np.ones(3), 50)
    rows = classified(probs, labels)
    probs = np.stack([columns(rows)[f"prob_{c}"] for c in range(3)], axis=1)
    for c in range(3):
        true, said = labels == c, probs.argmax(axis=1) == c
        assert by_class(PLANE, rows)[str(c)] == {
            "auc": pytest.approx(sk.roc_auc_score(true, probs[:, c])),
            "f1": pytest.approx(sk.f1_score(true, said)),
            "sensitivity": pytest.approx(sk.recall_score(true, said)),
            "specificity": pytest.approx(sk.recall_score(~true, ~said)),
            "n": true.sum(),
            "undefined": {},
        }


def test_a_class_that_is_absent_or_alone_says_so():
    rows = classified(np.eye(3)[[1, 1]], [1, 1])
    absent, alone = by_class(PLANE, rows)["0"], by_class(PLANE, rows)["1"]
    assert absent["undefined"] == dict.fromkeys(
        ("auc", "f1", "sensitivity"), "does not occur in the truth"
    )
    assert absent["specificity"] == 1
    assert alone["undefined"] == dict.fromkeys(
        ("auc", "specificity"), "no other class occurs in the truth"
    )


def test_no_class_is_told_of_answers_that_are_not_finite():
    assert by_class(PLANE, classified([[np.nan, 0, 1]], [0])) == {}
    assert by_class(PLANE, []) == {}
