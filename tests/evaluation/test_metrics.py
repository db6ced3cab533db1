import json
import math
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn import metrics as sk

from usfm.evaluation import metrics
from usfm.evaluation.metrics import score_row, sign, summarise
from usfm.evaluation.prediction import Answer
from usfm.tasks import Task

SEGMENT = Task("organs", "segmentation", num_classes=4)
BINARY = Task("benign", "classification", num_classes=2)
MULTI = Task("plane", "classification", num_classes=4)
BOX = Task("nodule", "detection", num_classes=1)
POINTS = Task("femur", "regression", num_points=3)


def answer_of(form: str, value: np.ndarray) -> Answer:
    fields: dict[str, Any] = {form: value}
    return Answer(**fields)


def brute_hausdorff(a, b):
    if not a.any() and not b.any():
        return 0.0
    if not a.any() or not b.any():
        return float(np.hypot(*a.shape))
    distances = cdist(np.argwhere(a), np.argwhere(b))
    return max(distances.min(axis=0).max(), distances.min(axis=1).max())


def brute_dice(a, b):
    pixels_a, pixels_b = ({tuple(p) for p in np.argwhere(mask)} for mask in (a, b))
    if not pixels_a and not pixels_b:
        return 1.0
    return 2 * len(pixels_a & pixels_b) / (len(pixels_a) + len(pixels_b))


def random_mask(generator, shape):
    """Sparse, dense or without some of the classes, up to all of them."""
    mask = generator.integers(1, 4, shape) * (generator.random(shape) < generator.random() ** 3)
    return np.where(np.isin(mask, generator.integers(0, 4, 2)), 0, mask).astype(np.uint8)


def score_classes(task, probs, labels):
    truths = np.eye(task.num_classes, dtype=np.float32)[labels]
    return [
        score_row(task, (1, 1), Answer(probs=p), Answer(probs=t))
        for p, t in zip(probs.astype(np.float32), truths, strict=True)
    ]


def test_segmentation_equals_the_official_order_of_averaging(subtests):
    generator = np.random.default_rng(0)
    shapes = [(17, 23), (30, 9), (1, 40)] * 12
    pairs = [(random_mask(generator, s), random_mask(generator, s)) for s in shapes]
    scored = [score_row(SEGMENT, a.shape, Answer(mask=a), Answer(mask=b)) for a, b in pairs]
    result = summarise(SEGMENT, scored)
    for name, brute in (("dsc", brute_dice), ("hd", brute_hausdorff)):
        with subtests.test(name):
            per_class = [np.mean([brute(a == c, b == c) for a, b in pairs]) for c in (1, 2, 3)]
            assert result[name] == pytest.approx(np.mean(per_class), rel=1e-12)


@pytest.mark.parametrize(
    ("a", "b", "dsc", "hd"),
    [([], [], 1, 0), ([(0, 0)], [], 0, 5), ([], [(0, 0)], 0, 5), ([(0, 0)], [(2, 3)], 0, 13**0.5)],
)
def test_empty_masks(a, b, dsc, hd):
    """Of a 3 x 4 image, whose diagonal is 5."""
    masks = np.zeros((2, 3, 4), np.uint8)
    for mask, pixels in zip(masks, (a, b), strict=True):
        for pixel in pixels:
            mask[pixel] = 1
    task = Task("t", "segmentation", num_classes=2)
    scores = score_row(task, (3, 4), Answer(mask=masks[0]), Answer(mask=masks[1]))
    assert scores == {"dsc": dsc, "hd": pytest.approx(hd)}


@pytest.mark.parametrize("task", [BINARY, MULTI])
@pytest.mark.parametrize("ties", [False, True])
def test_classification_equals_sklearn(task, ties):
    generator = np.random.default_rng(1)
    labels = np.concatenate([np.arange(task.num_classes), generator.integers(0, 2, 40)])
    probs = generator.dirichlet(np.ones(task.num_classes), len(labels))
    if ties:
        probs = np.round(probs * 4) + 0.25
        probs /= probs.sum(axis=1, keepdims=True)
    probs = probs.astype(np.float32)
    predicted = probs.argmax(axis=1)
    if task is BINARY:
        area = sk.roc_auc_score(labels, probs[:, 1])
    else:
        area = sk.roc_auc_score(labels, probs.astype(float), multi_class="ovr", average="macro")
    assert summarise(task, score_classes(task, probs, labels)) == {
        "auc": pytest.approx(area, rel=1e-12),
        "accuracy": sk.accuracy_score(labels, predicted),
        "f1_macro": sk.f1_score(labels, predicted, average="macro", zero_division=0),
        "f1_weighted": sk.f1_score(labels, predicted, average="weighted", zero_division=0),
        "mcc": sk.matthews_corrcoef(labels, predicted),
        "n": len(labels),
        "undefined": {},
    }


def test_macro_f1_is_over_the_classes_that_occur():
    """Class 3 is neither true nor predicted, so it does not pull the mean down."""
    labels = np.array([0, 1, 2])
    result = summarise(MULTI, score_classes(MULTI, np.eye(4)[labels], labels))
    assert result["f1_macro"] == 1


def test_auc_without_a_class_is_undefined_and_says_why():
    labels = np.array([0, 2, 0, 2])
    result = summarise(MULTI, score_classes(MULTI, np.full((4, 4), 0.25), labels))
    assert result["auc"] is None
    assert result["undefined"] == {"auc": "class 1, 3 does not occur in the truth"}
    assert result["accuracy"] == 0.5


def test_mcc_of_a_single_class_is_undefined():
    result = summarise(BINARY, score_classes(BINARY, np.eye(2)[[1, 1]], np.array([1, 1])))
    assert result["mcc"] is None
    assert result["undefined"]["mcc"] == "only class 1 occurs in the truth"
    assert result["f1_macro"] == 1


def test_classification_rows_hold_what_their_metrics_need():
    (scores,) = score_classes(BINARY, np.array([[0.25, 0.75]]), np.array([0]))
    expected = {"accuracy": 0, "prob_true": 0.25, "label": 0, "prob_0": 0.25, "prob_1": 0.75}
    assert scores == expected


def test_iou_is_of_pixels():
    """Boxes of 20 x 10 and 20 x 10 pixels that share 10 x 10, in a wide image."""
    size, scale = (50, 200), np.array([200, 50, 200, 50], np.float32)
    a, b = (Answer(box=np.array(v) / scale) for v in ([10, 10, 30, 20], [20, 10, 40, 20]))
    assert score_row(BOX, size, a, b)["iou"] == pytest.approx(1 / 3, rel=1e-5)
    assert score_row(BOX, size, a, a)["iou"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([0.1, 0.1, 0.2, 0.2], [0.5, 0.5, 0.6, 0.6]),
        ([0.1, 0.1, 0.2, 0.2], [0.15, 0.5, 0.6, 0.6]),
        ([0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]),
        ([0.9, 0.9, 0.1, 0.1], [0.1, 0.1, 0.9, 0.9]),
    ],
    ids=["apart", "beside", "union 0", "inverted"],
)
def test_iou_is_0_without_overlap(a, b):
    answers = [Answer(box=np.array(v, np.float32)) for v in (a, b)]
    assert score_row(BOX, (10, 10), *answers) == {"iou": 0}


def test_mre_is_over_the_points_present():
    true = np.array([[0.5, 0.5], [np.nan, np.nan], [0, 0]], np.float32)
    predicted = np.array([[0.5, 0.6], [9, 9], [0.3, 0.4]], np.float32)
    scores = score_row(POINTS, (100, 10), Answer(points=predicted), Answer(points=true))
    assert scores == {"mre": pytest.approx((10 + math.hypot(3, 40)) / 2, rel=1e-6)}


@pytest.mark.parametrize("task", [MULTI, BOX, POINTS], ids=lambda task: task.type)
def test_predictions_that_are_not_finite_give_null_with_a_reason(task):
    form = {"classification": "probs", "detection": "box", "regression": "points"}[task.type]
    shape = {"probs": (4,), "box": (4,), "points": (3, 2)}[form]
    true = answer_of(form, np.eye(4, dtype=np.float32)[0] if form == "probs" else np.zeros(shape))
    good, bad = np.full(shape, 0.25), np.full(shape, 0.25)
    bad.flat[1] = np.nan
    scored = [score_row(task, (5, 5), answer_of(form, p), true) for p in (good, bad)]
    result = summarise(task, scored)
    names = metrics.METRICS[task.type]
    assert [result[name] for name in names] == [None] * len(names)
    reason = "1 of 2 predictions are not finite numbers"
    assert result["undefined"] == dict.fromkeys(names, reason)
    json.dumps(result, allow_nan=False)


def test_no_rows_give_null_with_a_reason():
    result = summarise(BOX, [])
    assert result == {"iou": None, "n": 0, "undefined": {"iou": "no row was scored"}}


def test_answer_of_another_size_is_refused():
    small, large = (Answer(mask=np.zeros((n, 4), np.uint8)) for n in (3, 4))
    with pytest.raises(
        ValueError, match=r"organs: an answer of shape \(3, 4\), the truth \(4, 4\)"
    ):
        score_row(SEGMENT, (4, 4), small, large)


def test_sign_says_which_way_is_better():
    assert {m: sign(m) for m in ("dsc", "auc", "iou", "hd", "mre")} == {
        "dsc": 1,
        "auc": 1,
        "iou": 1,
        "hd": -1,
        "mre": -1,
    }
