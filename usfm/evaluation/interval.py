"""Confidence intervals of the difference between two sets of answers to the same rows."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from usfm.evaluation.metrics import Undefined, metric_value
from usfm.tasks import Task

RESAMPLES = 2000


def difference(
    task: Task, metric: str, ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> Callable[[np.ndarray], float]:
    """The statistic "metric of ours minus metric of theirs" of a selection of rows.

    Args:
        task: what was asked.
        metric: name of one of its metrics, of rows (dsc) or of sets of rows (auc).
        ours: scores of rows (`metrics.columns`).
        theirs: scores of the same rows in the same order.
    """

    def of_rows(index: np.ndarray) -> float:
        a, b = ({name: v[index] for name, v in scores.items()} for scores in (ours, theirs))
        return metric_value(task, metric, a) - metric_value(task, metric, b)

    return of_rows


def paired_interval(
    statistic: Callable[[np.ndarray], float], groups: Sequence[str], *, seed: int
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a statistic of rows, resampled by whole groups.

    Rows of one patient or video are alike, so groups are drawn, not rows. Samples on which the
    statistic is undefined (an AUC without one of the classes) are left out.

    Args:
        statistic: maps int [n] row numbers, repeats included, to a value; see `difference`.
        groups: the group of each row.
        seed: fixes the samples.

    Returns:
        The 2.5th and 97.5th percentile.

    Raises:
        ValueError: there are fewer than two groups, or most samples are undefined.
    """
    names, of_row = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"an interval needs at least two groups of rows, got {len(names)}")
    members = [np.flatnonzero(of_row == g) for g in range(len(names))]
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(RESAMPLES):
        drawn = generator.integers(len(members), size=len(members))
        try:
            values.append(statistic(np.concatenate([members[g] for g in drawn])))
        except Undefined:
            continue
    if len(values) < RESAMPLES / 2:
        raise ValueError(f"undefined on {RESAMPLES - len(values)} of {RESAMPLES} resamples")
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
