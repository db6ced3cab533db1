"""What the cells of a study score on test rows: files in, one table a model and task out.

A task is compared by the first metric of its type (evaluation.metrics.PRIMARY). Of classification
that is the AUC: it needs no threshold, which few rows place badly, and it is a mean over rows of
placement values (DeLong et al. 1988, Biometrics 44), so that resampled rows are reweighted rows
and a resample without one of the classes still has a value. The macro F1 has neither.
"""

import csv
import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np
from scipy.stats import rankdata

from usfm.evaluation.metrics import PRIMARY, Undefined, columns, metric_value
from usfm.study.cells import Cell, Study, workdirs
from usfm.tasks import Task

FILE = "evaluation_rows.csv"


@dataclasses.dataclass(frozen=True)
class Table:
    """What the seeds of one model score on the test rows of one task.

    Attributes:
        task: id.
        model: name that its cells share; see `model_of`.
        seeds: of the runs, rising; those that are left out are absent.
        values: float64 [S, N], one line a seed; the mean over rows is the seed's metric.
        groups: int [N], the group (patient, video, image) of each row, from 0.
    """

    task: str
    model: str
    seeds: tuple[int, ...]
    values: np.ndarray
    groups: np.ndarray


@dataclasses.dataclass(frozen=True)
class Scores:
    """The tables of a study.

    Attributes:
        tables: (model, task id) -> table. Of one task all have the same rows in the same order.
        missing: one sentence for each cell, or task of a cell, that is left out.
    """

    tables: Mapping[tuple[str, str], Table]
    missing: tuple[str, ...]


def model_of(cell: Cell) -> str:
    """The cell's name without its seed: what several seeds are runs of."""
    return cell.name.rpartition("-seed_")[0]


def read_scores(study: Study, workdir: pathlib.Path) -> Scores:
    """Reads the evaluation_rows.csv of all cells.

    The rows of a task are those that any cell answered; a cell that lacks one of them, or gave an
    answer that is not finite, is left out for that task.

    Args:
        study: what was to be trained.
        workdir: of the study.
    """
    missing = []
    found: dict[str, list[tuple[Cell, _Rows]]] = {task.id: [] for task in study.tasks}
    for cell, folder in workdirs(study, workdir):
        if not (folder / FILE).exists():
            missing.append(f"{cell.name}: has no {FILE}")
            continue
        by_task = _read(folder / FILE)
        for task_id in cell.tasks:
            found[task_id].append((cell, by_task.get(task_id, {})))
    tables = {}
    for task in study.tasks:
        of_task, faults = _tables(task, found[task.id])
        tables |= {(table.model, task.id): table for table in of_task}
        missing += faults
    return Scores(tables, tuple(missing))


def row_values(task: Task, scores: Mapping[str, np.ndarray]) -> np.ndarray:
    """Values of rows, float64 [N], whose mean is the primary metric of the task.

    Args:
        task: what was asked.
        scores: of the rows; see evaluation.metrics.columns.

    Raises:
        Undefined: the metric has no value on these rows.
    """
    metric = PRIMARY[task.type]
    value = metric_value(task, metric, scores)
    if metric in scores:
        return scores[metric]
    labels = scores["label"].astype(int)
    classes = (1,) if task.num_classes == 2 else range(task.num_classes)
    return np.mean([_placements(scores[f"prob_{c}"], labels == c) for c in classes], 0) + value


# (row key, group) -> scores of a row.
_Rows = Mapping[tuple[str, str], Mapping[str, float]]


def _read(path: pathlib.Path) -> dict[str, dict[tuple[str, str], dict[str, float]]]:
    found: dict[str, dict[tuple[str, str], dict[str, float]]] = {}
    with path.open(newline="") as file:
        lines = csv.reader(file)
        next(lines)
        for task_id, key, group, _, metric, value in lines:
            rows = found.setdefault(task_id, {})
            rows.setdefault((key, group), {})[metric] = float(value or "nan")
    return found


def _tables(task: Task, cells: list[tuple[Cell, _Rows]]) -> tuple[list[Table], list[str]]:
    keys = sorted({key for _, rows in cells for key in rows})
    groups = np.unique([group for _, group in keys], return_inverse=True)[1]
    values: dict[str, dict[int, np.ndarray]] = {}
    faults = []
    for cell, rows in sorted(cells, key=lambda found: found[0].seed):
        absent = sum(key not in rows for key in keys)
        try:
            if absent or not keys:
                raise Undefined(f"{absent} of {len(keys)} test rows have no answer")
            of_rows = row_values(task, columns([rows[key] for key in keys]))
            values.setdefault(model_of(cell), {})[cell.seed] = of_rows
        except Undefined as reason:
            faults.append(f"{cell.name}: {task.id}: {reason}")
    tables = [
        Table(task.id, model, tuple(by_seed), np.stack([*by_seed.values()]), groups)
        for model, by_seed in values.items()
    ]
    return tables, faults


def _placements(prob: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """By how much each row moves the AUC of one class: [N], of mean 0.

    A positive row's placement value is the share of negatives below it, a negative row's that of
    positives above it; ties count half. Both average to the AUC.
    """
    ranks, moved = rankdata(prob), np.empty(len(prob))
    for rows, side in ((positive, 1), (~positive, -1)):
        below = (ranks[rows] - rankdata(prob[rows])) / np.count_nonzero(~rows)
        moved[rows] = side * (below - below.mean()) / rows.mean()
    return moved
