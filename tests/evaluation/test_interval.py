import numpy as np
import pytest

from usfm.evaluation.interval import difference, paired_interval
from usfm.evaluation.metrics import metric_value
from usfm.tasks import Task

BINARY = Task("benign", "classification", num_classes=2)
DETECT = Task("nodule", "detection", num_classes=1)


def test_interval_of_a_mean_agrees_with_its_standard_error():
    generator = np.random.default_rng(0)
    ours = {"iou": generator.normal(0.5, 0.1, 400)}
    theirs = {"iou": ours["iou"] - generator.normal(0.02, 0.1, 400)}
    gap = ours["iou"] - theirs["iou"]
    statistic = difference(DETECT, "iou", ours, theirs)
    low, high = paired_interval(statistic, [str(i) for i in range(400)], seed=0)
    error = 1.96 * gap.std() / 20
    assert low == pytest.approx(gap.mean() - error, abs=0.15 * error)
    assert high == pytest.approx(gap.mean() + error, abs=0.15 * error)


def test_rows_of_a_group_are_drawn_together():
    """Ten copies of each of five rows hold no more evidence than the five."""
    values = np.array([0.0, 0.2, 0.4, 0.6, 0.8])
    names = list("abcde")

    def interval(repeats, groups):
        ours = {"iou": np.repeat(values, repeats)}
        theirs = {"iou": np.zeros(5 * repeats)}
        return paired_interval(difference(DETECT, "iou", ours, theirs), groups, seed=1)

    copied = interval(10, [name for name in names for _ in range(10)])
    assert copied == pytest.approx(interval(1, names))
    assert np.diff(interval(10, [str(i) for i in range(50)])) < np.diff(copied) / 2


def test_auc_is_computed_anew_on_each_sample():
    """Perfect against reversed answers differ by 1 on every sample that holds both classes."""
    labels = np.array([0.0, 1.0, 0.0, 1.0])
    ours = {"label": labels, "prob_0": 1 - labels, "prob_1": labels}
    theirs = {"label": labels, "prob_0": labels, "prob_1": 1 - labels}
    statistic = difference(BINARY, "auc", ours, theirs)
    assert paired_interval(statistic, list("abcd"), seed=2) == (1, 1)


def test_difference_of_all_rows_is_the_difference_of_the_task_metrics():
    generator = np.random.default_rng(3)
    labels = np.arange(20) % 2.0

    def answers():
        p = generator.random(20)
        return {"label": labels, "prob_0": 1 - p, "prob_1": p}

    ours, theirs = answers(), answers()
    gap = difference(BINARY, "auc", ours, theirs)(np.arange(20))
    assert gap == pytest.approx(
        metric_value(BINARY, "auc", ours) - metric_value(BINARY, "auc", theirs)
    )


def test_seed_fixes_the_interval():
    scores = {"iou": np.random.default_rng(4).random(30)}
    statistic = difference(DETECT, "iou", scores, {"iou": np.zeros(30)})
    groups = [str(i) for i in range(30)]
    first = paired_interval(statistic, groups, seed=5)
    assert paired_interval(statistic, groups, seed=5) == first
    assert paired_interval(statistic, groups, seed=6) != first


def test_one_group_has_no_interval():
    with pytest.raises(ValueError, match="at least two groups of rows, got 1"):
        paired_interval(lambda index: 0.0, ["a", "a"], seed=0)


def test_statistic_that_is_mostly_undefined_has_no_interval():
    labels = np.zeros(4)
    scores = {"label": labels, "prob_0": labels, "prob_1": labels}
    with pytest.raises(ValueError, match="undefined on 2000 of 2000 resamples"):
        paired_interval(difference(BINARY, "auc", scores, scores), list("abcd"), seed=0)
