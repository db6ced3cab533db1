"""Partitions against all partitions, and what a group is predicted to gain."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from usfm.study.affinity import affinity
from usfm.study.calibration import Measured, calibrated, fit, fit_measured
from usfm.study.grouping import find, gains, labels_of, parts_of, scores, shrink, value
from usfm.study.search import best_partitions
from usfm.tasks import TYPES, Task

NAMES = tuple("abcdefghi")


def all_partitions(count: int) -> np.ndarray:
    """int [Bell(count), count]."""
    found = [[0]]
    for _ in range(count - 1):
        found = [[*part, label] for part in found for label in range(max(part) + 2)]
    return np.array(found)


def random_scores(seed: int, tasks: int = 9) -> np.ndarray:
    """Normal ones, some with a mean above or below 0, some with most pairs unrelated."""
    rng = np.random.default_rng(seed)
    score = rng.normal(size=(tasks, tasks)) + (0, 0.3, -0.3)[seed % 3]
    score *= rng.random((tasks, tasks)) < (1, 0.4)[seed % 2]
    return score * (1 - np.eye(tasks))


def test_the_search_finds_the_best_and_the_second_best_of_all_partitions():
    partitions = all_partitions(9)
    assert len(partitions) == 21147
    same = partitions[:, :, None] == partitions[:, None, :]
    for seed in range(12):
        score = random_scores(seed)
        values = ((score * same).sum(1) / same.sum(1)).sum(1)
        second, best = np.sort(values)[-2:]
        found = find(score, NAMES, seed=seed)
        np.testing.assert_allclose([found.score, found.runner_up_score], [best, second])
        np.testing.assert_allclose(found.margin, best - second, atol=1e-9)
        ours = (partitions == labels_of(found.parts, NAMES)).all(1)
        np.testing.assert_allclose(values[ours], found.score)
        assert found.runner_up != found.parts


def test_a_seed_finds_the_same_and_27_tasks_end_at_the_same_value_from_others():
    score = random_scores(0, tasks=27)
    names = [f"task_{number:02d}" for number in range(27)]
    found = [find(score, names, seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1]
    np.testing.assert_allclose(found[0].score, found[2].score)


def test_many_problems_are_searched_as_one_by_one():
    problems = np.stack([random_scores(seed) for seed in range(4)])
    ends, values = best_partitions(problems, starts=50, seed=0)
    for score, end, best in zip(problems, ends[:, 0], values[:, 0], strict=True):
        assert find(score, NAMES).parts == parts_of(end, NAMES)
        np.testing.assert_allclose(best, value(score, end), rtol=1e-6)


def test_what_gains_nothing_stays_apart():
    assert find(np.zeros((3, 3)), "abc").parts == (("a",), ("b",), ("c",))
    alone = find(np.zeros((1, 1)), "a")
    assert (alone.parts, alone.score, alone.runner_up) == ((("a",),), 0.0, ())


def test_a_block_is_worth_more_whole_than_in_pairs_and_a_stranger_dilutes_it():
    score = np.ones((7, 7)) - np.eye(7)
    score[6], score[:, 6] = 0, 0
    found = find(score, NAMES[:7])
    assert found.parts == (("a", "b", "c", "d", "e", "f"), ("g",))
    assert value(score, np.array([0, 0, 1, 1, 2, 2, 3])) < found.score


def test_a_gain_is_the_mean_of_the_partners_scores():
    score = np.array([[9.0, 1, 2], [3, 9, 4], [5, 6, 9]])
    assert gains(score, np.array([0, 0, 0])).tolist() == [4.0, 3.5, 3.0]
    assert gains(score, np.array([0, 1, 0])).tolist() == [5.0, 0.0, 2.0]
    assert labels_of((("a", "c"), ("b",)), "abc").tolist() == [0, 1, 0]


def test_what_the_interval_cannot_tell_from_0_counts_as_0():
    score = np.array([[1, 0.4, -0.5], [0.1, 1, np.nan], [-0.4, 0, 1]])
    interval = np.full((3, 3), 0.2)
    interval[0, 2] = np.nan
    np.testing.assert_allclose(shrink(score, interval), [[0, 0.3, 0], [0, 0, 0], [-0.3, 0, 0]])


def linear_world(seed: int):
    """Gains that depend on affinity, but more on rows and type, which affinities do not know."""
    rng = np.random.default_rng(seed)
    tasks = [Task(name, TYPES[n % 4], group="ab"[n % 2]) for n, name in enumerate(NAMES)]
    rows = {task.id: int(n) for task, n in zip(tasks, rng.integers(50, 5000, 9), strict=True)}
    score = rng.normal(scale=1e-4, size=(9, 9)) * (1 - np.eye(9))

    def gain(task: int, group: list[int]) -> float:
        mean = score[[i for i in group if i != task], task].mean()
        small = 8 - np.log(rows[NAMES[task]])
        return float(300 * mean + 0.05 * small + 0.05 * (task % 4 == 3) + rng.normal(scale=0.01))

    groups = [rng.choice(9, rng.integers(2, 5), replace=False).tolist() for _ in range(40)]
    measured = [
        Measured(NAMES[group[0]], tuple(NAMES[i] for i in group), gain(group[0], group))
        for group in groups
    ]
    return tasks, rows, score, measured


def test_a_fit_to_measured_gains_ranks_others_better_and_knows_its_error():
    tasks, rows, score, measured = linear_world(0)
    predictor = fit_measured(score, tasks, rows, measured[:25])
    scaled = calibrated(score, tasks, rows, predictor)

    def predicted(score):
        inside = [np.array([name in one.group for name in NAMES]) for one in measured[25:]]
        found = [gains(score, labels) for labels in inside]
        return [
            float(f[NAMES.index(one.task)]) for f, one in zip(found, measured[25:], strict=True)
        ]

    truth = [one.gain for one in measured[25:]]
    before, after = (spearmanr(predicted(s), truth).statistic for s in (score, scaled))
    assert after > max(0.8, before + 0.2)
    errors = np.array(predicted(scaled)) - truth
    assert 0.5 < predictor.error / np.sqrt((errors**2).mean()) < 2


def test_the_error_of_a_fit_is_that_of_fits_without_each():
    rng = np.random.default_rng(0)
    table, gain = rng.normal(size=(8, 2)), rng.normal(size=8)
    table = (table - table.mean(0)) / table.std(0)
    centred = gain - gain.mean()
    slopes = np.linalg.solve(table.T @ table + np.eye(2), table.T @ centred)
    found = fit(table, gain)
    np.testing.assert_allclose(found.weights, slopes)
    np.testing.assert_allclose(found(table), table @ slopes + gain.mean())
    left_out = []
    for i in range(8):
        rest = np.arange(8) != i
        # The same penalty on the same columns, the intercept free.
        design = np.column_stack([np.ones(7), table[rest]])
        weights = np.linalg.solve(design.T @ design + np.diag([0, 1, 1]), design.T @ gain[rest])
        left_out.append(gain[i] - weights @ [1, *table[i]])
    np.testing.assert_allclose(found.error, np.sqrt(np.mean(np.square(left_out))))
    with pytest.raises(ValueError, match="2 measured gains; 3 are the least"):
        fit(table[:2], gain[:2])


def test_scores_are_read_from_affinities_with_their_own_steps():
    rng = np.random.default_rng(0)
    gradient = rng.normal(size=(60, 2, 6)) + np.array([[3.0], [1.0]])
    record = {
        "tasks": np.array(["a", "b"]),
        "groups": np.array(["all"]),
        "learning_rate": np.full(60, 0.1),
        "losses": np.full((60, 2), 2.0),
        "present": np.ones((60, 2), bool),
        "gramian": (gradient @ gradient.swapaxes(1, 2))[:, None],
        "square_norm": np.full((60, 1, 2), [54.0, 6.0]),
    }
    found = scores(affinity(record))
    np.testing.assert_allclose(found.own, [2.7, 0.3])
    np.testing.assert_allclose(found.score[0, 1], 0.05 * 18, rtol=0.1)
    cosine = scores(affinity(record), of="cosine")
    np.testing.assert_allclose(cosine.score[0, 1], 1, atol=0.1)
    np.testing.assert_allclose(
        cosine.interval[0, 1] / cosine.score[0, 1], found.interval[0, 1] / found.score[0, 1]
    )
