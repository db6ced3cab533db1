"""How well affinities rank the gains that were measured, beside how well those are known at all."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import rankdata

from usfm.evaluation.metrics import PRIMARY
from usfm.study.affinity import Affinity
from usfm.study.cells import Study
from usfm.study.gains import compare
from usfm.study.grouping import gains as mean_scores
from usfm.study.grouping import scores as pair_scores
from usfm.study.scores import Scores, Table, model_of

SPLITS = 50  # into two halves, at random


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How predicted gains agree with measured ones.

    Attributes:
        pairs: of a task and the group it was trained in, of all fractions.
        spearman: rank correlation, within fractions, of the gains that affinities alone predict and
            those measured; NaN with fewer than three pairs.
        ceiling: what a perfect prediction would reach, from gains measured in two halves of the
            seeds and test rows (Spearman 1910; Brown 1910); NaN where these do not agree at all.
    """

    pairs: int
    spearman: float
    ceiling: float


def agreement(
    study: Study, scores: Scores, affinities: Mapping[float, Affinity], *, seed: int = 0
) -> Agreement:
    """Compares gains as affinities predict them with those that the cells measured.

    A gain is predicted as the mean of what the partners do for the task, as in TAG; no measured
    gain enters it.

    Args:
        study: with the plans that were trained.
        scores: of its cells.
        affinities: fraction -> of the run of all tasks there.
        seed: of the halves.
    """
    pairs = _pairs(study, scores, affinities)
    if len(pairs) < 3:
        return Agreement(len(pairs), math.nan, math.nan)
    fractions = [pair.fraction for pair in pairs]
    measured = [pair.gain() for pair in pairs]
    predicted = [pair.predicted for pair in pairs]
    rng, halves = np.random.default_rng(seed), []
    for _ in range(SPLITS):
        one, other = zip(*(_halves(pair, rng) for pair in pairs), strict=True)
        halves.append(_correlation(fractions, one, other))
    half = float(np.mean(halves))
    ceiling = math.sqrt(2 * half / (1 + half)) if half > 0 else math.nan
    return Agreement(len(pairs), _correlation(fractions, predicted, measured), ceiling)


@dataclasses.dataclass(frozen=True)
class _Pair:
    """A task in a group: its gain as predicted, and the two models that it is measured by."""

    fraction: float
    metric: str
    predicted: float
    alone: Table
    together: Table

    def gain(self, seeds: slice = slice(None), groups: np.ndarray | None = None) -> float:
        """The measured gain, of some seeds and groups of test rows."""
        alone, together = (_part(table, seeds, groups) for table in (self.alone, self.together))
        return compare(alone, together, self.metric).value


def _pairs(study: Study, scores: Scores, affinities: Mapping[float, Affinity]) -> list[_Pair]:
    """The pairs that can be halved, and of which a relative gain can be told."""
    pairs: dict[tuple[str, str], _Pair] = {}
    metrics = {task.id: PRIMARY[task.type] for task in study.tasks}
    for fraction, affinity in affinities.items():
        known = np.nan_to_num(pair_scores(affinity).score)
        for arm in study.arms:
            for index, id in enumerate(affinity.tasks):
                cell = study.cell(arm, fraction, study.seeds[0], id)
                alone = study.cell(study.baseline(arm), fraction, study.seeds[0], id)
                ours, theirs = (scores.tables.get((model_of(c), id)) for c in (cell, alone))
                if len(cell.tasks) == 1 or ours is None or theirs is None:
                    continue
                inside = np.isin(affinity.tasks, cell.tasks)
                predicted = float(mean_scores(known, inside)[index])
                pairs[ours.model, id] = _Pair(fraction, metrics[id], predicted, theirs, ours)
    return [
        pair
        for pair in pairs.values()
        if pair.alone.groups.max() > 0 and pair.alone.values.mean() > 0
    ]


def _halves(pair: _Pair, rng: np.random.Generator) -> tuple[float, float]:
    """The gain as one half of the seeds and groups of rows has it, and as the other has it."""
    groups = rng.permutation(pair.alone.groups.max() + 1)
    seeds = min(len(pair.alone.values), len(pair.together.values))
    middle = seeds // 2 + rng.integers(2) * (seeds % 2)  # of three, now one and now two
    first, second = (slice(middle), slice(middle, None)) if seeds > 1 else (slice(None),) * 2
    half = len(groups) // 2
    return pair.gain(first, groups[:half]), pair.gain(second, groups[half:])


def _part(table: Table, seeds: slice, groups: np.ndarray | None) -> Table:
    rows = np.ones(len(table.groups), bool) if groups is None else np.isin(table.groups, groups)
    return dataclasses.replace(
        table,
        seeds=table.seeds[seeds],
        values=table.values[seeds][:, rows],
        groups=np.unique(table.groups[rows], return_inverse=True)[1],
    )


def _correlation(fractions: Sequence[float], one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's, of ranks within each fraction; NaN where one side does not vary."""
    ranks = np.zeros((2, len(fractions)))
    for fraction in set(fractions):
        here = np.array(fractions) == fraction
        for ranked, values in zip(ranks, (one, other), strict=True):
            ranked[here] = rankdata(np.array(values)[here])
            ranked[here] -= ranked[here].mean()
    lengths = np.linalg.norm(ranks, axis=1)
    return float(ranks[0] @ ranks[1] / lengths.prod()) if lengths.all() else math.nan
