"""The result of an evaluation as a table: a model beside the trivial predictor."""

import dataclasses
from collections.abc import Mapping, Sequence

from usfm.evaluation.metrics import IN_PIXELS, METRICS, PRIMARY, sign

MISSING_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Line:
    """One metric of one task.

    Attributes:
        task_id: the task.
        type: its type.
        n: rows that were scored.
        metric: the metric's name.
        values: its value by column ("before", "model", "trivial"); None where undefined.
        best: the columns that hold the best value.
    """

    task_id: str
    type: str
    n: int
    metric: str
    values: dict[str, float | None]
    best: frozenset[str]


def table_lines(
    report: Mapping, before: Mapping | None = None, *, primary_only: bool = False
) -> list[Line]:
    """The lines of the table, by task and metric.

    Args:
        report: content of an evaluation.json.
        before: that of another evaluation, shown beside it: of the untrained model.
        primary_only: leave out all but the metric that tasks of a type are compared by.
    """
    sources = {"model": report["tasks"], "trivial": report["trivial"]}
    if before is not None:
        sources = {"before": before["tasks"], **sources}
    lines = []
    for task_id, scored in report["tasks"].items():
        type_ = next(t for t, primary in PRIMARY.items() if primary in scored)
        for metric in METRICS[type_][: 1 if primary_only else None]:
            values = {c: tasks.get(task_id, {}).get(metric) for c, tasks in sources.items()}
            goodness = {c: sign(metric) * v for c, v in values.items() if v is not None}
            best = frozenset(c for c, g in goodness.items() if g == max(goodness.values()))
            lines.append(Line(task_id, type_, scored["n"], metric, values, best))
    return lines


def number(metric: str, value: float | None) -> str:
    """A metric's value as text: three decimals, or one where it is in pixels."""
    if value is None:
        return "–"
    return f"{value:.1f}" if metric in IN_PIXELS else f"{value:.3f}"


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


def text_table(report: Mapping, before: Mapping | None = None) -> str:
    """The table for a terminal: the primary metric of each task, the best value starred."""
    lines = table_lines(report, before, primary_only=True)
    columns = ["before", "model", "trivial"][before is None :]
    cells = [["task", "type", "n", "metric", *(f"{column} " for column in columns)]]
    for line in lines:
        unit = f"{line.metric} px" if line.metric in IN_PIXELS else line.metric
        values = [
            number(line.metric, line.values[c]) + ("*" if c in line.best else " ") for c in columns
        ]
        cells.append([line.task_id, line.type, str(line.n), unit, *values])
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
