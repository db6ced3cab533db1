"""Gains and their intervals, on scores whose truth is known."""

import dataclasses
import math

import numpy as np
import pytest

from usfm.evaluation.metrics import PRIMARY
from usfm.study.estimate import Estimate, draws, holm, spread
from usfm.study.gains import GAIN, HARM, NO_CALL, UNDECIDED, compare, gain, judge
from usfm.study.means import consistency, means
from usfm.study.scores import Table
from usfm.tasks import Task

SEG = Task("seg", "segmentation", num_classes=2, group="organ")
POINTS = Task("points", "regression", num_points=2, group="organ")
GROUPS = np.repeat(np.arange(40), 3)


def scored(model, level, rng, *, task="seg", seeds=3, shared=None, seed_sd=0.01, rest=0.05):
    """A table of rows that are as hard for every model, where `shared` says so."""
    hard = 0.1 * rng.standard_normal(40) if shared is None else shared
    of_seeds = seed_sd * rng.standard_normal((seeds, 1))
    noise = rest * rng.standard_normal((seeds, len(GROUPS)))
    return Table(task, model, tuple(range(seeds)), level + of_seeds + hard[GROUPS] + noise, GROUPS)


def judged(theirs, ours, task=SEG):
    """The verdicts on one task in arms of these models."""
    arms = [gain(table.model, 1.0, task, 100, theirs, table) for table in ours]
    return judge(arms)


def test_gains_and_harm_are_told_from_nothing():
    rng = np.random.default_rng(0)
    hard = 0.1 * rng.standard_normal(40)
    own, better, worse, same = (
        scored(name, level, rng, shared=hard)
        for name, level in (("own", 0.6), ("better", 0.75), ("worse", 0.4), ("same", 0.6))
    )
    found = judged(own, [better, worse, same])
    assert [g.verdict for g in found] == [GAIN, HARM, NO_CALL]
    assert [g.low < truth < g.high for g, truth in zip(found, (0.25, -1 / 3, 0), strict=True)]
    assert found[0].gain == pytest.approx(better.values.mean() / own.values.mean() - 1)


def test_a_smaller_error_is_a_gain():
    rng = np.random.default_rng(0)
    own, half = (scored(name, level, rng, task="points") for name, level in (("a", 30), ("b", 15)))
    (found,) = judged(own, [half], POINTS)
    assert found.verdict == GAIN
    assert found.gain == pytest.approx(0.5, abs=0.01)
    assert PRIMARY["regression"] == found.metric == "mre"


def test_an_error_of_many_times_the_baseline_is_harm_though_seeds_differ():
    """Both models vary by a quarter of their error from seed to seed."""
    rng, found = np.random.default_rng(0), []
    for i in range(20):
        own = scored(f"own{i}", 2, rng, task="points", seed_sd=0.5)
        found += judged(own, [scored(f"bad{i}", 10, rng, task="points", seed_sd=2.5)], POINTS)
    found = judge(found)
    assert all(g.verdict == HARM for g in found)
    assert np.mean([g.low < -4 < g.high for g in found]) >= 0.8


def test_nothing_left_of_a_metric_is_harm():
    rng = np.random.default_rng(0)
    own = scored("own", 0.6, rng)
    gone = dataclasses.replace(own, model="gone", values=np.zeros_like(own.values))
    (found,) = judged(own, [gone])
    assert (found.gain, found.verdict) == (-1, HARM)
    assert found.high < -0.99


def test_fewer_than_three_seeds_decide_nothing():
    rng = np.random.default_rng(0)
    for seeds in (1, 2):
        own, bad = scored("own", 0.9, rng), scored("bad", 0.1, rng, seeds=seeds)
        (found,) = judged(own, [bad])
        assert (found.verdict, found.seeds) == (UNDECIDED, seeds)
        assert math.isnan(found.p_holm)
        assert math.isnan(found.low) == (seeds == 1)


def test_a_task_alone_gains_nothing_for_sure():
    own = scored("own", 0.6, np.random.default_rng(0))
    (found,) = judged(own, [own])
    assert (found.gain, found.low, found.high, found.p, found.verdict) == (0, 0, 0, 1, NO_CALL)
    assert not found.together


def test_pairing_by_rows_narrows_the_interval():
    rng = np.random.default_rng(0)
    hard = 0.2 * rng.standard_normal(40)
    own, ours = (scored(name, 0.6, rng, shared=hard, seed_sd=0) for name in ("own", "ours"))
    other_rows = dataclasses.replace(ours, task="other")
    paired, unpaired = compare(own, ours, "dsc"), compare(own, other_rows, "dsc")
    assert paired.value == unpaired.value
    assert paired.variance < unpaired.variance / 4


def test_the_interval_covers_the_truth():
    rng = np.random.default_rng(1)
    found = []
    for i in range(400):
        hard = 0.1 * rng.standard_normal(40)
        own, ours = (scored(f"{n}{i}", v, rng, shared=hard) for n, v in (("own", 0.5), ("us", 0.6)))
        found.append(gain("us", 1.0, SEG, 100, own, ours))
    covered = np.mean([g.low < 0.2 < g.high for g in judge(found)])
    assert 0.92 <= covered <= 0.995
    simple = np.mean([low < 0.2 < high for low, high in (g.estimate.interval() for g in found)])
    assert 0.92 <= simple <= 0.995


def test_the_variance_is_that_of_a_hierarchical_bootstrap():
    rng = np.random.default_rng(2)
    hard = 0.1 * rng.standard_normal(40)
    own, ours = (scored(name, 0.6, rng, shared=hard, seeds=5, rest=0) for name in ("own", "us"))
    skill = np.linspace(-0.1, 0.1, 40)[GROUPS]  # rows on which ours is better
    ours = dataclasses.replace(ours, values=ours.values + skill)
    estimate = compare(own, ours, "dsc")
    ratios = []
    for _ in range(4000):
        drawn = rng.integers(40, size=40)
        rows = (drawn[:, None] * 3 + np.arange(3)).ravel()
        a, b = (t.values[rng.integers(5, size=5)][:, rows].mean() for t in (ours, own))
        ratios.append(a / b - 1)
    plain = sum(v * k / (k + 1) for v, k in estimate.chance.values())  # without the correction
    assert np.var(ratios) == pytest.approx(plain, rel=0.12)
    (drawn,) = draws([estimate], 4000, seed=0)
    assert drawn.var() == pytest.approx(estimate.variance, rel=0.1)


def test_holm_is_step_down_and_never_falls():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([]) == []


def test_correction_is_over_all_gains_of_a_study():
    rng = np.random.default_rng(3)
    own = scored("own", 0.6, rng, shared=np.zeros(40))
    ours = [scored(f"arm{i}", 0.6, rng, shared=np.zeros(40)) for i in range(8)]
    found = judged(own, ours)
    assert [g.p_holm for g in found] == holm([g.p for g in found])


def test_seeds_of_one_model_do_not_average_out_over_its_tasks():
    rng = np.random.default_rng(4)
    tasks = [dataclasses.replace(SEG, id=f"t{i}", group=f"g{i % 2}") for i in range(8)]
    luck = np.array([[-0.05], [0.0], [0.05]])

    def mean_variance(of_model):
        found = []
        for task in tasks:
            own = scored(f"own {task.id}", 0.6, rng, task=task.id, seed_sd=0)
            ours = scored(of_model(task), 0.6, rng, task=task.id, seed_sd=0)
            ours = dataclasses.replace(ours, values=ours.values + luck)
            found.append(gain("arm", 1.0, task, 100, own, ours))
        (overall,) = means(found, None)
        assert overall.tasks == 8
        assert overall.low < overall.gain < overall.high
        assert len(consistency(means(found, "group"))) == 1
        return overall.estimate.variance

    assert mean_variance(lambda task: "one") > 2 * mean_variance(lambda task: f"own {task.id}, too")


def test_the_spread_is_that_of_the_values_and_its_shifts_the_derivative():
    rng = np.random.default_rng(5)
    values = rng.standard_normal(5)
    parts = [Estimate(v, {("rows", str(i)): np.array([1.0, -1.0])}) for i, v in enumerate(values)]
    found = spread(parts)
    assert found.value == pytest.approx(values.std(ddof=1))
    step = 1e-6
    for i in range(5):
        moved = values + step * (np.arange(5) == i)
        slope = (moved.std(ddof=1) - values.std(ddof=1)) / step
        assert found.shifts["rows", str(i)][0] == pytest.approx(slope, abs=1e-5)
