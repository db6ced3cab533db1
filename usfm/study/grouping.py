"""Which tasks belong together, from what a step along one does for another.

A task's predicted gain in a group is the mean of its partners' scores, and 0 alone, as in TAG
(Fifty et al. 2021, arXiv 2109.04617) and the Higher-Order Approximation (Standley et al. 2020,
arXiv 1905.07553). Their sum alone is no good objective. A mean does not grow with the group: a
block of equal scores is worth as much in pairs, and noise, which makes some pairs look best, then
tears it up; TAG has to say how many groups it wants. So a task counts as one of its own partners
that gives it nothing:

    value = sum over tasks j of gain_j (1 - 1 / |S_j|) = sum over j of (sum of score_ij) / |S_j|

which is also what a step along the mean gradient of the group does for j, to first order, beyond
j's own share of it. A block is worth more whole than in parts; a task that is unrelated to it
dilutes it; alone is 0. A constant taken off all scores is a price for each model saved.
Scores below noise are nothing (`shrink`), so that merging has to pay by more than chance.

Every task has one model: what it would gain as a mere helper of another group is left out, for a
study's plans are partitions and a cover needs a budget of models that nobody has named.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from usfm.study.affinity import Affinity
from usfm.study.search import best_neighbour, best_partitions, together

Parts = tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a step along one task does for another.

    Attributes:
        tasks: ids.
        score: float [T, T]; [i, j] is what i does for j: as lookahead the share that a step along
            i takes off the loss of j, else a cosine. NaN where nothing is known.
        interval: float [T, T], half-widths of 95 %.
        own: float [T], the score of a task's own step, without the noise of its few images; NaN
            where that is not known to be above 0.
    """

    tasks: tuple[str, ...]
    score: np.ndarray
    interval: np.ndarray
    own: np.ndarray


@dataclasses.dataclass(frozen=True)
class Grouping:
    """The best partition found, and the best other one.

    Attributes:
        parts: sorted ids, in the order of their first ones.
        score: value of the partition, in the unit of the scores, summed over tasks.
        runner_up: the best different partition; () for one task.
        runner_up_score: its value; -inf for one task.
    """

    parts: Parts
    score: float
    runner_up: Parts
    runner_up_score: float

    @property
    def margin(self) -> float:
        """By how much the best is better than the next."""
        return self.score - self.runner_up_score


def scores(affinity: Affinity, of: Literal["lookahead", "cosine"] = "lookahead") -> Scores:
    """Reads scores from the affinities of a run.

    For a run trained by Adam, take them of the preconditioned gradients.
    """
    noisy, own = np.diagonal(affinity.product), affinity.square_norm
    own = np.where(own > 0, own, np.nan)
    if of == "cosine":
        length = np.sqrt(own[:, None] * own)
        return Scores(
            affinity.tasks,
            affinity.cosine,
            affinity.product_interval / length,
            np.diagonal(affinity.cosine),
        )
    return Scores(
        affinity.tasks,
        affinity.lookahead,
        affinity.lookahead_interval,
        np.diagonal(affinity.lookahead) * own / np.where(noisy > 0, noisy, np.nan),
    )


def shrink(score: np.ndarray, interval: np.ndarray) -> np.ndarray:
    """Scores [..., T, T] drawn to 0 by their noise: s (1 - interval^2 / s^2), or 0 below it.

    The search takes the best of very many sums, and so would pick noise. What cannot be told from
    0 counts as 0; what is clear is left nearly whole, where a plain subtraction of the interval
    would make equal scores unequal (the garrote of Breiman 1995). Unknown is 0 as well.
    """
    square = np.where(score == 0, 1, score**2)
    left = score * np.maximum(1 - interval**2 / square, 0)
    return np.where(np.isfinite(left), left, 0) * (1 - np.eye(score.shape[-1]))


def gains(score: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Predicted gains [..., T] of the tasks in their groups: the means of their partners' scores.

    Args:
        score: float [..., T, T], of `shrink`.
        labels: int [..., T]; tasks with equal ones are trained together.
    """
    partners = together(labels) & ~np.eye(score.shape[-1], dtype=bool)
    return (score * partners).sum(-2) / np.maximum(partners.sum(-2), 1)


def find(score: np.ndarray, tasks: Sequence[str], *, starts: int = 100, seed: int = 0) -> Grouping:
    """Searches for the partition of the greatest value.

    Args:
        score: float [T, T], of `shrink`.
        tasks: their ids, sorted.
        starts: of the local search, 2 or more.
        seed: of its random starts; the same seed finds the same.
    """
    ends, values = best_partitions(score[None], starts=starts, seed=seed)
    best = ends[0, 0]
    # The second best of all is a local optimum too, or has the best as its only better neighbour.
    others = [best_neighbour(score, best)]
    others += [
        (end, value) for end, value in zip(ends[0], values[0], strict=True) if (end != best).any()
    ]
    second, second_value = max(others, key=lambda other: other[1])
    there_is = np.isfinite(second_value)
    return Grouping(
        parts_of(best, tasks),
        value(score, best),
        parts_of(second, tasks) if there_is else (),
        value(score, second) if there_is else -np.inf,
    )


def value(score: np.ndarray, labels: np.ndarray) -> float:
    """What the search maximises, of one partition [T]."""
    return float((gains(score, labels) * (1 - 1 / together(labels).sum(1))).sum())


def parts_of(labels: np.ndarray, tasks: Sequence[str]) -> Parts:
    """The groups of a partition, by ids."""
    groups: dict[int, list[str]] = {}
    for label, task in zip(labels.tolist(), tasks, strict=True):
        groups.setdefault(label, []).append(task)
    return tuple(map(tuple, groups.values()))


def labels_of(parts: Iterable[Iterable[str]], tasks: Sequence[str]) -> np.ndarray:
    """The inverse of `parts_of`: int [T]."""
    number = {task: index for index, part in enumerate(parts) for task in part}
    return np.array([number[task] for task in tasks])
