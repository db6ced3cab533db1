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


def ece(confidence, right):
    """Over 15 bins of equal width, each without its lower edge."""
    bins = np.digitize(confidence, np.linspace(0, 1, 16), right=True)
    gaps = [right[bins == b].sum() - confidence[bins == b].astype(float).sum() for b in set(bins)]
    return np.abs(gaps).sum() / len(bins)


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
    ("a", "b", "expected"),
    [
        ([], [], (1, 0, 0, 1)),
        ([(0, 0)], [], (0, 5, 5, 0)),
        ([], [(0, 0)], (0, 5, 5, 0)),
        ([(0, 0)], [(2, 3)], (0, 13**0.5, 13**0.5, 0)),
        ([(0, 0)], [(0, 2)], (0, 2, 2, 1)),  # within the tolerance
    ],
)
def test_empty_masks(a, b, expected):
    """Of a 3 x 4 image, whose diagonal is 5."""
    masks = np.zeros((2, 3, 4), np.uint8)
    for mask, pixels in zip(masks, (a, b), strict=True):
        for pixel in pixels:
            mask[pixel] = 1
    task = Task("t", "segmentation", num_classes=2)
    scores = score_row(task, (3, 4), Answer(mask=masks[0]), Answer(mask=masks[1]))
    found = [scores[name] for name in metrics.METRICS["segmentation"]]
    assert found == pytest.approx(expected)


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

    def f1(average):
        return sk.f1_score(labels, predicted, average=average, zero_division=0)

    chosen = [1] if task is BINARY else range(task.num_classes)
    pairs = [(labels == c, predicted == c) for c in chosen]
    sensitivity = np.mean([sk.recall_score(true, said) for true, said in pairs])
    specificity = np.mean([sk.recall_score(~true, ~said) for true, said in pairs])
    assert summarise(task, score_classes(task, probs, labels)) == {
        "auc": pytest.approx(area, rel=1e-12),
        "accuracy": pytest.approx(sk.accuracy_score(labels, predicted)),
        "f1_macro": pytest.approx(f1("macro"), rel=1e-12),
        "f1_weighted": pytest.approx(f1("weighted"), rel=1e-12),
        "mcc": pytest.approx(sk.matthews_corrcoef(labels, predicted), rel=1e-12),
        "sensitivity": pytest.approx(sensitivity, rel=1e-12),
        "specificity": pytest.approx(specificity, rel=1e-12),
        "ece": pytest.approx(ece(probs.max(axis=1), predicted == labels), rel=1e-9),
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
    reason = "class 1, 3 does not occur in the truth"
    assert result["undefined"] == {"auc": reason, "sensitivity": reason}
    assert result["accuracy"] == 0.5


def test_mcc_of_a_single_class_is_undefined():
    result = summarise(BINARY, score_classes(BINARY, np.eye(2)[[1, 1]], np.array([1, 1])))
    for metric in ("mcc", "specificity"):
        assert result[metric] is None
        assert result["undefined"][metric] == "only class 1 occurs in the truth"
    assert result["sensitivity"] == 1
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
    # 10 is no more than .05 of the longer side, 100, and hypot(30, 4) more. In the official form
    # the point that is absent is (0, 0), 9 x 9 images from what was said.
    far = math.hypot(3, 40)
    assert scores["mre"] == pytest.approx((10 + far) / 2, rel=1e-6)
    assert scores["mre_official"] == pytest.approx((10 + far + math.hypot(90, 900)) / 3, rel=1e-6)


def test_a_landmark_is_correct_within_a_twentieth_of_the_longer_side():
    true = np.zeros((3, 2), np.float32)
    said = np.array([[0.4, 0], [0, 0.049], [0.05, 0.05]], np.float32)  # 4, 4.9 and 5.02 pixels
    scores = score_row(POINTS, (100, 10), Answer(points=said), Answer(points=true))
    assert scores["pck"] == pytest.approx(2 / 3)


def test_average_precision_is_over_all_boxes_ranked_by_confidence():
    """Right, wrong, right, wrong: precision 1 and 2/3 where recall rises, a quarter each time."""
    whole, half = Answer(box=np.array([0, 0, 1, 1])), Answer(box=np.array([0, 0, 0.4, 1]))
    said = [(whole, 0.9), (half, 0.8), (whole, 0.7), (half, 0.1)]
    rows = [
        score_row(BOX, (9, 9), Answer(box=answer.box, confidence=sure), whole)
        for answer, sure in said
    ]
    assert summarise(BOX, rows)["average_precision"] == pytest.approx((1 + 2 / 3) / 4)
    without = [{"iou": row["iou"]} for row in rows]
    result = summarise(BOX, without)
    assert result["average_precision"] is None
    assert result["undefined"] == {"average_precision": "the answers carry no confidence"}


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
    names = metrics.METRICS["detection"]
    undefined = dict.fromkeys(names, "no row was scored")
    assert result == dict.fromkeys(names) | {"n": 0, "undefined": undefined}


def test_answer_of_another_size_is_refused():
    small, large = (Answer(mask=np.zeros((n, 4), np.uint8)) for n in (3, 4))
    with pytest.raises(
        ValueError, match=r"organs: an answer of shape \(3, 4\), the truth \(4, 4\)"
    ):
        score_row(SEGMENT, (4, 4), small, large)


def test_sign_says_which_way_is_better():
    lower = {m for names in metrics.METRICS.values() for m in names if sign(m) == -1}
    assert lower == {"hd", "hd95", "mre", "ece"}


def perturbed(task, answer, generator):
    """An answer somewhat further from the truth."""
    if task.type == "segmentation":
        return Answer(mask=np.roll(answer.mask, (3, 4), (0, 1)))
    if task.type == "classification":
        probs = 0.3 * answer.probs + 0.7 * generator.dirichlet(np.ones(task.num_classes))
        return Answer(probs=probs.astype(np.float32))
    if task.type == "detection":
        shift = generator.uniform(0, 0.3)
        return Answer(box=(answer.box + shift).astype(np.float32), confidence=generator.random())
    return Answer(points=answer.points + generator.normal(0, 0.1, (3, 2)).astype(np.float32))


def drawn(task, generator):
    """A truth."""
    if task.type == "segmentation":
        mask = np.zeros((40, 50), np.uint8)
        mask[5:15, 5:20], mask[20:35, 10:30], mask[3:12, 30:40] = 1, 2, 3
        return Answer(mask=mask)
    if task.type == "classification":
        label = generator.integers(task.num_classes)
        return Answer(probs=np.eye(task.num_classes, dtype=np.float32)[label])
    if task.type == "detection":
        return Answer(box=np.array([0.1, 0.1, 0.6, 0.7], np.float32), confidence=0.5)
    return Answer(points=generator.random((3, 2)).astype(np.float32))


@pytest.mark.parametrize("task", [SEGMENT, BINARY, MULTI, BOX, POINTS], ids=lambda task: task.id)
def test_a_perturbed_prediction_changes_every_metric(task):
    generator = np.random.default_rng(5)
    truths = [drawn(task, generator) for _ in range(30)]
    said = [perturbed(task, true, generator) for true in truths]
    good, worse = (
        summarise(task, [score_row(task, (40, 50), *pair) for pair in zip(a, truths, strict=True)])
        for a in (truths, said)
    )
    for metric in metrics.METRICS[task.type]:
        assert sign(metric) * good[metric] > sign(metric) * worse[metric], metric
