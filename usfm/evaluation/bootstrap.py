"""Intervals of a task's metrics, all from one set of bootstrap resamples."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from usfm.evaluation.interval import RESAMPLES
from usfm.evaluation.metrics import METRICS, Undefined, columns, metric_value, metric_values
from usfm.tasks import Task

AT_ONCE = 250  # resamples, to bound the memory of their weights


def intervals(
    task: Task, scored: Sequence[Mapping[str, float]], groups: Sequence[str], *, seed: int
) -> dict:
    """95 % percentile intervals of all metrics of a task, resampled by whole groups.

    Rows of one patient or video are alike, so groups are drawn, not rows (Field & Welsh 2007, JRSS
    B 69). A resample is a weight a row, from which every metric follows without a copy of the
    rows. Resamples on which a metric is undefined (an AUC without one of the classes) are left
    out of its interval. With few groups, below some 20, percentile intervals are too short.

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
    count = len(set(groups))
    found: dict[str, list[float] | None] = dict.fromkeys(METRICS[task.type])
    undefined = {}
    defined = []
    for metric in found:
        try:
            if not scored:
                raise Undefined("no row was scored")
            metric_value(task, metric, scores)
            if count < 2:
                raise Undefined("all rows are of one group")
            defined.append(metric)
        except Undefined as reason:
            undefined[metric] = str(reason)
    values = {metric: [] for metric in defined}
    for weights in _resamples(groups, seed) if defined else ():
        for metric, of_metric in values.items():
            of_metric.append(metric_values(task, metric, scores, weights))
    for metric, of_metric in values.items():
        all_values = np.concatenate(of_metric)
        kept = all_values[~np.isnan(all_values)]
        if len(kept) < RESAMPLES / 2:
            undefined[metric] = f"undefined on {RESAMPLES - len(kept)} of {RESAMPLES} resamples"
        else:
            found[metric] = np.percentile(kept, [2.5, 97.5]).tolist()
    return {"groups": count, "intervals": found, "intervals_undefined": undefined}


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
