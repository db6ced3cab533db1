import numpy as np
import pytest

from usfm.evaluation import bootstrap
from usfm.evaluation.bootstrap import intervals
from usfm.evaluation.interval import difference, paired_interval
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
    nothing = {name: np.zeros(ROWS) for name in columns(scored)} | {"f1_macro": np.zeros(ROWS)}
    statistic = difference(task, "f1_macro", columns(scored), nothing)
    expected = paired_interval(statistic, groups, seed=5)
    found = intervals(task, scored, groups, seed=0)["intervals"]["f1_macro"]
    assert found == pytest.approx(expected, abs=0.1 * (expected[1] - expected[0]))


def test_rows_of_a_group_are_drawn_together(monkeypatch):
    monkeypatch.setattr(bootstrap, "AT_ONCE", 700)  # the last are fewer
    weights = np.concatenate([*bootstrap._resamples(["b", "a", "b", "c"], seed=0)])
    assert weights.shape == (bootstrap.RESAMPLES, 4)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert weights.mean(axis=0) == pytest.approx(1, abs=0.1)  # of deviation .8 / 2000**.5


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
