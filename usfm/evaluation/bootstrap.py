"""Bootstrap intervals of a task's metrics, and of the difference between two sets of answers.

Rows of one patient or video are alike, so groups are drawn, not rows (Field & Welsh 2007, JRSS
B 69). A resample is a weight a row, from which every metric follows without a copy of the rows.
Resamples on which a metric is undefined (an AUC without one of the classes) are left out of its
interval. With few groups, below some 20, percentile intervals are too short.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from usfm.evaluation.metrics import METRICS, Undefined, columns, metric_value, metric_values
from usfm.tasks import Task

RESAMPLES = 2000
AT_ONCE = 250  # resamples, to bound the memory of their weights


def intervals(
    task: Task, scored: Sequence[Mapping[str, float]], groups: Sequence[str], *, seed: int
) -> dict:
    """95 % percentile intervals of all metrics of a task, from one set of resamples.

    Args:
        task: what was asked.
        scored: what `score_row` says of its rows.
        groups: the group of each row.
        seed: fixes the resamples.

    Returns:
        {"groups": their number, "intervals": {metric: [low, high] or None}, "intervals_undefined":
        {metric: reason}}.
    """
    scores = columns(scored) if scored else {}
    found: dict[str, list[float] | None] = dict.fromkeys(METRICS[task.type])
    undefined = {}
    defined = []
    for metric in found:
        try:
            if not scored:
                raise Undefined("no row was scored")
            metric_value(task, metric, scores)
            _check(groups)
            defined.append(metric)
        except Undefined as reason:
            undefined[metric] = str(reason)
    values = {metric: [] for metric in defined}
    for weights in _resamples(groups, seed) if defined else ():
        for metric, of_metric in values.items():
            of_metric.append(metric_values(task, metric, scores, weights))
    for metric, of_metric in values.items():
        try:
            found[metric] = list(_percentiles(of_metric))
        except Undefined as reason:
            undefined[metric] = str(reason)
    return {"groups": len(set(groups)), "intervals": found, "intervals_undefined": undefined}


def interval(
    statistic: Callable[[np.ndarray], np.ndarray], groups: Sequence[str], *, seed: int
) -> tuple[float, float]:
    """95 % percentile interval of a statistic of rows.

    Args:
        statistic: maps B weightings of the rows, float64 [B, N], to values [B], NaN where it has
            none; see `difference`.
        groups: the group of each row.
        seed: fixes the resamples.

    Returns:
        The 2.5th and 97.5th percentile.

    Raises:
        Undefined: there are fewer than two groups, or most resamples are undefined.
    """
    _check(groups)
    return _percentiles([statistic(weights) for weights in _resamples(groups, seed)])


def difference(
    task: Task, metric: str, ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> Callable[[np.ndarray], np.ndarray]:
    """The statistic "metric of ours minus metric of theirs".

    Args:
        task: what was asked.
        metric: name of one of its metrics, of rows (dsc) or of sets of rows (auc).
        ours: scores of rows (`metrics.columns`).
        theirs: scores of the same rows in the same order.
    """

    def of_weightings(weights: np.ndarray) -> np.ndarray:
        a, b = (metric_values(task, metric, scores, weights) for scores in (ours, theirs))
        return a - b

    return of_weightings


def _check(groups: Sequence[str]) -> None:
    if len(set(groups)) < 2:
        raise Undefined("all rows are of one group")


def _percentiles(values: Sequence[np.ndarray]) -> tuple[float, float]:
    of_all = np.concatenate(values)
    defined = of_all[~np.isnan(of_all)]
    if len(defined) < RESAMPLES / 2:
        raise Undefined(f"undefined on {RESAMPLES - len(defined)} of {RESAMPLES} resamples")
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def _resamples(groups: Sequence[str], seed: int) -> Iterator[np.ndarray]:
    """How often each resample holds each row: float64 [AT_ONCE, N], RESAMPLES in all."""
    names, of_row = np.unique(np.asarray(groups), return_inverse=True)
    generator = np.random.default_rng(seed)
    for start in range(0, RESAMPLES, AT_ONCE):
        some = min(AT_ONCE, RESAMPLES - start)
        drawn = generator.integers(len(names), size=(some, len(names)))
        places = drawn + len(names) * np.arange(some)[:, None]
        counts = np.bincount(places.ravel(), minlength=some * len(names))
        yield counts.reshape(some, -1)[:, of_row].astype(np.float64)
