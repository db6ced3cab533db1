"""Runs side by side: what each scores, and how far another is from the first on the same rows."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from usfm.data.progress import progress
from usfm.errors import UserError
from usfm.evaluation import bootstrap
from usfm.evaluation.metrics import PRIMARY, Undefined, columns, metric_value, sign
from usfm.evaluation.runs import Run, Scored
from usfm.evaluation.table import aligned, bracket, number, titled, type_of
from usfm.tasks import Task

SEED = 0  # of the bootstrap


@dataclasses.dataclass(frozen=True)
class Difference:
    """A run's metric minus that of the first, over the rows that both scored.

    Attributes:
        value: the difference; None where it cannot be told.
        interval: its 95 % interval, by a bootstrap over groups of rows; None where there is none.
    """

    value: float | None = None
    interval: tuple[float, float] | None = None

    def verdict(self, metric: str) -> str:
        """Whether the run is better or worse; "" where the interval holds zero."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return ""
        return "better" if self.interval[0] * sign(metric) > 0 else "worse"


@dataclasses.dataclass(frozen=True)
class Compared:
    """A task in all runs, by what tasks of its type are compared by.

    Attributes:
        task_id: the task.
        type: its type.
        scored: what each run's evaluation.json says of it; None where that did not score it.
        differences: of each run but the first.
    """

    task_id: str
    type: str
    scored: tuple[Mapping | None, ...]
    differences: tuple[Difference, ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What runs say beside each other.

    Attributes:
        names: of the runs, as short as tells them apart.
        runs: the runs.
        tasks: those that two or more of them scored.
        notes: one sentence for all that keeps a reader from taking a difference as it stands.
    """

    names: tuple[str, ...]
    runs: tuple[Run, ...]
    tasks: tuple[Compared, ...]
    notes: tuple[str, ...]


def compare(runs: Sequence[Run]) -> Comparison:
    """Compares runs, the first being the one that differences are taken from.

    Raises:
        UserError: no task was scored by two of them, or one is of two types.
    """
    names = short_names([run.workdir for run in runs])
    scored = [run.evaluation["tasks"] for run in runs]
    all_ids = list(dict.fromkeys(task_id for tasks in scored for task_id in tasks))
    shared = [id for id in all_ids if sum(id in tasks for tasks in scored) > 1]
    if not shared:
        told = "; ".join(
            f"{name} has {', '.join(tasks)}" for name, tasks in zip(names, scored, strict=True)
        )
        raise UserError(f"the runs have no task in common: {told}")
    tasks, notes = [], []
    for task_id in progress(shared, len(shared), "comparing"):
        of_task = tuple(tasks_.get(task_id) for tasks_ in scored)
        types = {name: type_of(one) for name, one in zip(names, of_task, strict=True) if one}
        kind = next(iter(types.values()))
        if len(set(types.values())) > 1:
            told = ", ".join(f"{type_} in {name}" for name, type_ in types.items())
            raise UserError(f"task '{task_id}' is {told}: not the same task")
        differences = []
        for name, run in zip(names[1:], runs[1:], strict=True):
            found, why = _difference(task_id, kind, runs[0], run)
            differences.append(found)
            if why:
                notes.append(f"{task_id}, {name} and {names[0]}: {why}")
        tasks.append(Compared(task_id, kind, of_task, tuple(differences)))
    alone = [id for id in all_ids if id not in shared]
    if alone:
        notes.append(f"left out, for only one of the runs scored them: {', '.join(alone)}")
    return Comparison(names, tuple(runs), tuple(tasks), tuple(notes))


def short_names(workdirs: Sequence[pathlib.Path]) -> tuple[str, ...]:
    """The last parts of paths, as many as tell them all apart."""
    parts = [workdir.resolve().parts for workdir in workdirs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return tuple(names)
    raise UserError(f"{workdirs[0]} is given twice: give different workdirs")


def _difference(task_id: str, kind: str, first: Run, other: Run) -> tuple[Difference, str]:
    """The difference, and what a reader must know of it ("" if nothing)."""
    ours, theirs = (_rows_of(run, task_id) for run in (other, first))
    both = sorted(ours.keys() & theirs.keys())
    if not ours or not theirs:
        return Difference(), ""
    notes = []
    if len(both) < max(len(ours), len(theirs)):
        notes.append(
            f"{len(ours)} and {len(theirs)} rows were scored, {len(both)} by both; the difference "
            "is over these"
        )
    if not both:
        return Difference(), "no row was scored by both"
    told = [{key: rows[key].scores.get("label") for key in both} for rows in (ours, theirs)]
    if odd := sum(told[0][key] != told[1][key] for key in both):
        return Difference(), f"the truth of {odd} rows differs, so there is no difference"
    a, b = (_columns(kind, [rows[key] for key in both]) for rows in (ours, theirs))
    task = Task(task_id, kind, num_classes=sum(name.startswith("prob_") for name in a))
    metric = PRIMARY[kind]
    try:
        value = metric_value(task, metric, a) - metric_value(task, metric, b)
    except Undefined as reason:
        return Difference(), "; ".join([*notes, f"no difference: {reason}"])
    try:
        interval = bootstrap.interval(
            bootstrap.difference(task, metric, a, b),
            [theirs[key].group for key in both],
            seed=SEED,
        )
    except Undefined as reason:
        return Difference(value), "; ".join([*notes, f"no interval: {reason}"])
    return Difference(value, interval), "; ".join(notes)


def _rows_of(run: Run, task_id: str) -> dict[str, Scored]:
    return {key: scored for (id, key), scored in run.rows.items() if id == task_id}


def _columns(kind: str, rows: Sequence[Scored]) -> dict[str, np.ndarray]:
    """The scores that the primary metric of a type follows from."""
    wanted = [PRIMARY[kind]]
    if kind == "classification":
        classes = sum(name.removeprefix("prob_").isdigit() for name in rows[0].scores)
        wanted = ["label", *(f"prob_{c}" for c in range(classes))]
    return columns([{name: row.scores.get(name, math.nan) for name in wanted} for row in rows])


def told(metric: str, found: Difference) -> str:
    """A difference as text."""
    if found.value is None:
        return "–"
    value = f"+{number(metric, found.value)}" if found.value >= 0 else number(metric, found.value)
    return " ".join(
        text for text in (value, bracket(metric, found.interval), found.verdict(metric)) if text
    )


def summary(comparison: Comparison) -> list[str]:
    """A sentence for each run but the first."""
    sentences = []
    first, *others = comparison.names
    for place, name in enumerate(others):
        verdicts = [
            task.differences[place].verdict(PRIMARY[task.type]) for task in comparison.tasks
        ]
        better, worse = verdicts.count("better"), verdicts.count("worse")
        rest = len(verdicts) - better - worse
        sentences.append(
            f"{name} beside {first}: better on {better} tasks, worse on {worse}, undecided on "
            f"{rest}."
        )
    return sentences


def text_comparison(comparison: Comparison) -> str:
    """The comparison for a terminal: the primary metric of each task."""
    first, *others = comparison.names
    cells = [["task", "metric", *comparison.names, *(f"{name} − {first}" for name in others)]]
    for task in comparison.tasks:
        metric = PRIMARY[task.type]
        cells.append(
            [
                *(task.task_id, titled(metric)),
                *(number(metric, one[metric] if one else None) for one in task.scored),
                *(told(metric, found) for found in task.differences),
            ]
        )
    return "\n".join(
        [
            *aligned(cells, left=(0, 1)),
            "brackets: 95 % interval of the difference, of each task by itself",
            *summary(comparison),
            *comparison.notes,
        ]
    )
