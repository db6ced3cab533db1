"""The result of an evaluation as a table: a model beside the trivial predictor."""

import dataclasses
from collections.abc import Mapping, Sequence

from usfm.evaluation.metrics import LOWER_IS_BETTER, METRICS, PRIMARY, sign

MISSING_SHOWN = 5
NOTHING: Mapping[str, Mapping] = {}


@dataclasses.dataclass(frozen=True)
class Line:
    """One metric of one task.

    Attributes:
        task_id: the task.
        type: its type.
        n: rows that were scored.
        metric: the metric's name.
        values: its value by column ("model", "trivial", and those beside them); None where
            undefined.
        best: the columns that hold the best value.
        interval: 95 % interval of the model's value; None where it is not known.
    """

    task_id: str
    type: str
    n: int
    metric: str
    values: dict[str, float | None]
    best: frozenset[str]
    interval: tuple[float, float] | None


def table_lines(
    report: Mapping, beside: Mapping[str, Mapping] = NOTHING, *, primary_only: bool = False
) -> list[Line]:
    """The lines of the table, by task and metric.

    Args:
        report: content of an evaluation.json.
        beside: those of other evaluations of the same rows, by the column that shows them.
        primary_only: leave out all but the metric that tasks of a type are compared by.
    """
    sources = {name: other["tasks"] for name, other in beside.items()}
    sources |= {"model": report["tasks"], "trivial": report["trivial"]}
    lines = []
    for task_id, scored in report["tasks"].items():
        type_ = type_of(scored)
        intervals = scored.get("intervals", {})
        for metric in METRICS[type_][: 1 if primary_only else None]:
            values = {c: tasks.get(task_id, {}).get(metric) for c, tasks in sources.items()}
            goodness = {c: sign(metric) * v for c, v in values.items() if v is not None}
            best = frozenset(c for c, g in goodness.items() if g == max(goodness.values()))
            low_high = tuple(intervals[metric]) if intervals.get(metric) else None
            lines.append(Line(task_id, type_, scored["n"], metric, values, best, low_high))
    return lines


def type_of(scored: Mapping) -> str:
    """The type of a task, from what an evaluation.json says of it."""
    return next(type_ for type_, primary in PRIMARY.items() if primary in scored)


def number(metric: str, value: float | None) -> str:
    """A metric's value as text: three decimals, or one where it is in pixels."""
    if value is None:
        return "–"
    return f"{value:.1f}" if metric in LOWER_IS_BETTER else f"{value:.3f}"


def bracket(metric: str, interval: tuple[float, float] | None) -> str:
    """A metric's interval as text, "" where there is none."""
    if interval is None:
        return ""
    return f"[{number(metric, interval[0])}, {number(metric, interval[1])}]"


def titled(metric: str) -> str:
    """A metric's name with its unit."""
    return f"{metric} px" if metric in LOWER_IS_BETTER else metric


def notes(report: Mapping) -> list[str]:
    """What a reader of the table must know: undefined metrics, missing and skipped rows."""
    said = [
        f"{task_id}: {metric} is undefined: {reason}"
        for task_id, scored in report["tasks"].items()
        for metric, reason in scored["undefined"].items()
    ]
    if missing := report["missing"]:
        named = [f"{row['task_id']} {row['row_key']}" for row in missing[:MISSING_SHOWN]]
        rest = f" and {len(missing) - len(named)} more" if len(missing) > len(named) else ""
        said.append(f"{len(missing)} rows have no prediction: {', '.join(named)}{rest}")
    if report["skipped_rows"]:
        said.append(f"{report['skipped_rows']} faulty rows of the folder were skipped")
    return said


def text_table(report: Mapping, beside: Mapping[str, Mapping] = NOTHING) -> str:
    """The table for a terminal: the primary metric of each task, the best value starred."""
    lines = table_lines(report, beside, primary_only=True)
    columns = [*beside, "model", "trivial"]
    known = any(line.interval for line in lines)
    head = ["task", "type", "n", "metric", *(f"{column} " for column in columns)]
    cells = [[*head, "model's 95 %"] if known else head]
    for line in lines:
        values = [
            number(line.metric, line.values[c]) + ("*" if c in line.best else " ") for c in columns
        ]
        told = [line.task_id, line.type, str(line.n), titled(line.metric), *values]
        cells.append([*told, bracket(line.metric, line.interval)] if known else told)
    return "\n".join(
        [
            *aligned(cells, left=(0, 1, 3)),
            "* best of the row; dsc, auc and iou: higher is better; mre: lower",
            *notes(report),
        ]
    )


def aligned(cells: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """Lines of equal width, with a rule under the first; columns not in `left` end flush right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
