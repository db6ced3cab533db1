"""One number that checkpoints are compared by: checkpoint.best_metric."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from usfm.errors import UserError
from usfm.evaluation.metrics import METRICS, sign
from usfm.tasks import Task


def scored_tasks(best_metric: str, tasks: Sequence[Task]) -> list[str]:
    """The ids of the tasks that best_metric is of.

    Args:
        best_metric: METRIC, the mean over all tasks that have it, or TASK/METRIC.
        tasks: of the run.

    Raises:
        UserError: no task of the run has it.
    """
    of_task, _, metric = best_metric.rpartition("/")
    found = [task.id for task in tasks if metric in METRICS[task.type] and of_task in ("", task.id)]
    if not found:
        have = ", ".join(f"{task.id} has {', '.join(METRICS[task.type])}" for task in tasks)
        raise UserError(f"checkpoint.best_metric={best_metric!r} is of no task of the run: {have}")
    return found


def value_of(best_metric: str, scores: Mapping[str, Mapping[str, Any]]) -> float:
    """best_metric in the "tasks" of an evaluation's report; NaN where a task has no value."""
    metric = best_metric.rpartition("/")[2]
    values = [of_task[metric] for of_task in scores.values()]
    return math.nan if None in values or not values else sum(values) / len(values)


def comparable(best_metric: str, value: float) -> float:
    """The value with a sign such that higher is better."""
    return sign(best_metric.rpartition("/")[2]) * value
