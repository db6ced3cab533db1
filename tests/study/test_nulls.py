"""Studies in which nothing transfers."""

import math

import numpy as np
import pytest
from scipy import stats

from usfm.study.few_seeds import Chance, shrink
from usfm.study.nulls import Variation, false_harm, fit, simulate
from usfm.tasks import Task

TASKS = [Task(f"t{i:02}", "segmentation", num_classes=2) for i in range(27)]
GROUPS = np.arange(100) % 40


def variations(seed):
    """Of 27 tasks, whose seeds vary by very different amounts, as much as their rows do."""
    rng = np.random.default_rng(seed)
    seed_sds = 0.015 * np.exp(0.7 * rng.standard_normal(27))
    return [
        Variation(task, 0.7, sd, 0.1, 0.1, GROUPS) for task, sd in zip(TASKS, seed_sds, strict=True)
    ]


def test_harm_is_rarely_seen_where_there_is_none():
    fitted = []
    for fraction in range(2):
        tables = simulate(variations(fraction), ["own"], 3, [fraction])
        fitted.append([fit(task, tables["own", task.id]) for task in TASKS])
    wrong = false_harm(fitted, arms=1, seeds=3, studies=200)
    # 6.5 % is allowed; so many of 200 or more would occur by chance in 1 of 1,000 such cases.
    assert wrong * 200 <= stats.binom.ppf(0.999, 200, 0.065)


def test_variances_are_found_again():
    truth = Variation(TASKS[0], 0.7, 0.05, 0.2, 0.1, np.arange(600) % 300)
    found = [
        fit(TASKS[0], simulate([truth], ["own"], 4, [i])["own", TASKS[0].id]) for i in range(100)
    ]
    for name in ("seed", "row", "rest"):
        square = np.mean([getattr(variation, name) ** 2 for variation in found])
        assert math.sqrt(square) == pytest.approx(getattr(truth, name), rel=0.1)


def test_shrinking_knows_how_much_variances_differ():
    rng = np.random.default_rng(0)
    free = np.full(20_000, 2.0)
    alike, more = shrink(rng.chisquare(2, 20_000) / 2, free)
    assert more.min() > 30
    assert 0.8 < alike.min() < alike.max() < 1.5
    true = 5 / rng.chisquare(5, 20_000)
    _, more = shrink(true * rng.chisquare(2, 20_000) / 2, free)
    assert more.mean() == pytest.approx(2 + 5, rel=0.1)


def test_one_source_of_chance_is_students_t():
    chance = Chance(np.array([0.04]), np.array([5.0]))
    assert chance.p(0.7) == pytest.approx(2 * stats.t.sf(3.5, 5), rel=1e-6)
    assert chance.interval(0.7)[0] == pytest.approx(0.7 - 0.2 * stats.t.ppf(0.975, 5))
    assert chance.p(0) == 1
    assert Chance(np.zeros(1), np.ones(1)).p(0.1) == 0
