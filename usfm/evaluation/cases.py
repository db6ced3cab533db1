"""Which rows of a task to look at: the best, the median and the worst answer."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from usfm.evaluation.metrics import PRIMARY, sign
from usfm.tasks import Task

# What the rows of a task of each type are ranked by. An AUC is of many rows: in its place stands
# the probability that an answer gives the true class.
RANKED_BY = {**PRIMARY, "classification": "prob_true"}


@dataclasses.dataclass(frozen=True)
class Case:
    """A row to look at.

    Attributes:
        name: best, median or worst.
        row_key: of which row.
        metric: name of the score that ranks the rows.
        value: that score of this row.
    """

    name: str
    row_key: str
    metric: str
    value: float


def choose(
    tasks: Sequence[Task], rows: Iterable[tuple[str, str, str, str, str, float]]
) -> dict[str, tuple[Case, ...]]:
    """The best, median and worst row of each task, in this order, each row once.

    Where two rows are in the middle, the better is the median; equals are ordered by their keys.
    Rows whose answer is not finite have no rank. A task without any other is left out.

    Args:
        tasks: of which to choose.
        rows: of an Evaluation.
    """
    wanted = {task.id: RANKED_BY[task.type] for task in tasks}
    ranked: dict[str, list[tuple[float, str, float]]] = {}
    for task_id, row_key, _, _, metric, value in rows:
        if metric == wanted.get(task_id) and math.isfinite(value):
            ranked.setdefault(task_id, []).append((-sign(metric) * value, row_key, value))
    chosen = {}
    for task_id, of_task in ranked.items():
        of_task.sort()
        places = {(len(of_task) - 1) // 2: "median"}
        if len(of_task) > 1:
            places |= {0: "best", len(of_task) - 1: "worst"}
        chosen[task_id] = tuple(
            Case(places[place], of_task[place][1], wanted[task_id], of_task[place][2])
            for place in sorted(places)
        )
    return chosen
