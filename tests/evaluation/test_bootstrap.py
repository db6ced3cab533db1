import contextlib

import numpy as np
import pytest

from usfm.evaluation import bootstrap
from usfm.evaluation.bootstrap import difference, interval, intervals
from usfm.evaluation.metrics import METRICS, Undefined, columns, metric_value, metric_values
from usfm.tasks import Task

TASKS = (
    Task("benign", "classification", num_classes=2),
    Task("plane", "classification", num_classes=4),
    Task("nodule", "detection", num_classes=1),
    Task("femur", "regression", num_points=2),
    Task("organs", "segmentation", num_classes=3),
)
ROWS = 60


def scored_rows(task, seed=0):
    """Scores of rows as score_row gives them, at random."""
    generator = np.random.default_rng(seed)
    if task.type != "classification":
        names = [*METRICS[task.type], "confidence"]
        return [dict(zip(names, generator.random(len(names)), strict=True)) for _ in range(ROWS)]
    rows = []
    for label in generator.integers(task.num_classes, size=ROWS):
        probs = generator.dirichlet(np.ones(task.num_classes))
        row = {f"prob_{c}": p for c, p in enumerate(probs)}
        rows.append({"label": float(label), "accuracy": float(probs.argmax() == label), **row})
    return rows


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.id)
def test_a_resample_s_metrics_are_those_of_its_rows_written_out(task):
    scores = columns(scored_rows(task))
    generator = np.random.default_rng(1)
    counts = generator.integers(0, 3, (5, ROWS))
    for metric in METRICS[task.type]:
        found = metric_values(task, metric, scores, counts.astype(float))
        for value, count in zip(found, counts, strict=True):
            copied = {name: np.repeat(v, count) for name, v in scores.items()}
            assert value == pytest.approx(metric_value(task, metric, copied), rel=1e-9)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.id)
def test_every_metric_has_an_interval_round_its_value(task):
    scored = scored_rows(task)
    found = intervals(task, scored, [f"patient {i // 2}" for i in range(ROWS)], seed=0)
    assert found["groups"] == ROWS // 2
    assert found["intervals_undefined"] == {}
    assert list(found["intervals"]) == [*METRICS[task.type]]
    for metric, (low, high) in found["intervals"].items():
        # ECE of few rows is biased upwards by resampling, past the value itself.
        value = metric_value(task, metric, columns(scored))
        assert low < high
        assert metric == "ece" or low < value < high


def test_an_interval_is_that_of_resampled_rows():
    """Two draws of 2,000 resamples differ in their percentiles by little."""
    task, groups = TASKS[1], [f"patient {i // 3}" for i in range(ROWS)]
    scored = scored_rows(task)
    members = [np.flatnonzero(np.array(groups) == group) for group in sorted(set(groups))]
    generator = np.random.default_rng(5)
    values = []
    for _ in range(bootstrap.RESAMPLES):
        drawn = generator.integers(len(members), size=len(members))
        rows = np.concatenate([members[group] for group in drawn])
        copied = {name: v[rows] for name, v in columns(scored).items()}
        with contextlib.suppress(Undefined):  # of a class that was not drawn
            values.append(metric_value(task, "f1_macro", copied))
    low, high = np.percentile(values, [2.5, 97.5])
    found = intervals(task, scored, groups, seed=0)["intervals"]["f1_macro"]
    assert found == pytest.approx((low, high), abs=0.1 * (high - low))


def test_interval_of_a_mean_difference_agrees_with_its_standard_error():
    generator = np.random.default_rng(0)
    ours = {"iou": generator.normal(0.5, 0.1, 400)}
    theirs = {"iou": ours["iou"] - generator.normal(0.02, 0.1, 400)}
    gap = ours["iou"] - theirs["iou"]
    statistic = difference(TASKS[2], "iou", ours, theirs)
    low, high = interval(statistic, [str(i) for i in range(400)], seed=0)
    error = 1.96 * gap.std() / 20
    assert low == pytest.approx(gap.mean() - error, abs=0.15 * error)
    assert high == pytest.approx(gap.mean() + error, abs=0.15 * error)


def test_ten_copies_of_each_of_five_rows_hold_no_more_evidence_than_the_five():
    values = np.array([0.0, 0.2, 0.4, 0.6, 0.8])
    names = list("abcde")

    def of_copies(repeats, groups):
        ours = {"iou": np.repeat(values, repeats)}
        theirs = {"iou": np.zeros(5 * repeats)}
        return interval(difference(TASKS[2], "iou", ours, theirs), groups, seed=1)

    copied = of_copies(10, [name for name in names for _ in range(10)])
    assert copied == pytest.approx(of_copies(1, names))
    assert np.diff(of_copies(10, [str(i) for i in range(50)])) < np.diff(copied) / 2


def test_auc_is_computed_anew_on_each_resample():
    """Perfect against reversed answers differ by 1 on every resample that holds both classes."""
    labels = np.array([0.0, 1.0, 0.0, 1.0])
    ours = {"label": labels, "prob_0": 1 - labels, "prob_1": labels}
    theirs = {"label": labels, "prob_0": labels, "prob_1": 1 - labels}
    statistic = difference(TASKS[0], "auc", ours, theirs)
    assert interval(statistic, list("abcd"), seed=2) == (1, 1)


def test_difference_of_all_rows_is_the_difference_of_the_task_metrics():
    ours, theirs = (columns(scored_rows(TASKS[1], seed)) for seed in (1, 2))
    theirs["label"] = ours["label"]
    for metric in ("auc", "f1_macro", "ece"):
        (gap,) = difference(TASKS[1], metric, ours, theirs)(np.ones((1, ROWS)))
        a, b = (metric_value(TASKS[1], metric, scores) for scores in (ours, theirs))
        assert gap == pytest.approx(a - b)


def test_one_group_has_no_interval():
    with pytest.raises(Undefined, match="all rows are of one group"):
        interval(lambda weights: weights.mean(axis=1), ["a", "a"], seed=0)


def test_statistic_that_is_mostly_undefined_has_no_interval():
    labels = np.zeros(4)
    scores = {"label": labels, "prob_0": labels, "prob_1": labels}
    with pytest.raises(Undefined, match="undefined on 2000 of 2000 resamples"):
        interval(difference(TASKS[0], "auc", scores, scores), list("abcd"), seed=0)


def test_rows_of_a_group_are_drawn_together(monkeypatch):
    monkeypatch.setattr(bootstrap, "AT_ONCE", 700)  # the last are fewer
    weights = np.concatenate([*bootstrap._resamples(["b", "a", "b", "c"], seed=0)])
    assert weights.shape == (bootstrap.RESAMPLES, 4)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert weights.mean(axis=0) == pytest.approx(1, abs=0.1)  # of deviation .8 / 2000**.5


def test_seed_fixes_the_interval_of_a_difference():
    scores = {"iou": np.random.default_rng(4).random(30)}
    statistic = difference(TASKS[2], "iou", scores, {"iou": np.zeros(30)})
    groups = [str(i) for i in range(30)]
    first = interval(statistic, groups, seed=5)
    assert interval(statistic, groups, seed=5) == first
    assert interval(statistic, groups, seed=6) != first


def test_seed_fixes_the_intervals():
    scored, groups = scored_rows(TASKS[2]), [str(i) for i in range(ROWS)]
    first = intervals(TASKS[2], scored, groups, seed=3)
    assert intervals(TASKS[2], scored, groups, seed=3) == first
    assert intervals(TASKS[2], scored, groups, seed=4) != first


def test_what_has_no_interval_says_why():
    task = TASKS[0]
    scored = scored_rows(task)
    alone = intervals(task, scored, ["a"] * ROWS, seed=0)
    assert alone["intervals"] == dict.fromkeys(METRICS["classification"])
    assert set(alone["intervals_undefined"].values()) == {"all rows are of one group"}
    # One positive row of 60: half of all resamples have two or none, a third none.
    rare = [row | {"label": float(i == 0)} for i, row in enumerate(scored)]
    few = intervals(task, rare[:4], ["a", "b", "b", "b"], seed=0)  # a quarter have "a" alone
    assert few["intervals"]["accuracy"] is not None
    assert few["intervals"]["auc"] is not None or "auc" in few["intervals_undefined"]
    one = [row | {"label": 1.0} for row in scored]
    assert intervals(task, one, [str(i) for i in range(ROWS)], seed=0)["intervals_undefined"] == {
        "auc": "class 0 does not occur in the truth",
        "mcc": "only class 1 occurs in the truth",
        "specificity": "only class 1 occurs in the truth",
    }
    assert intervals(TASKS[3], [], [], seed=0)["intervals_undefined"] == dict.fromkeys(
        METRICS["regression"], "no row was scored"
    )


def test_an_interval_of_few_defined_resamples_is_left_out():
    """Of two groups with one class each, half of the resamples hold both: of three, two ninths."""
    task = Task("t", "classification", num_classes=3)
    rows = [row | {"label": float(i % 3)} for i, row in enumerate(scored_rows(TASKS[1])[:6])]
    rows = [{name: v for name, v in row.items() if name != "prob_3"} for row in rows]
    found = intervals(task, rows, ["a", "b", "c", "a", "b", "c"], seed=0)
    assert found["intervals"]["auc"] is None
    assert found["intervals_undefined"]["auc"].endswith("of 2000 resamples")
    with pytest.raises(Undefined):
        metric_value(task, "auc", columns(rows[:2]))
