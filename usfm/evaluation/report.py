"""report.html: one self-contained page that says how a run went."""

import collections
import csv
import html
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence

from etils import epath

import usfm
from usfm.config import flat
from usfm.evaluation.curves import Points, draw_curves, last_step, mean_curve, read_losses
from usfm.evaluation.experts import read_routing, routing_rows
from usfm.evaluation.files import write_atomically
from usfm.evaluation.metrics import LOWER_IS_BETTER, PRIMARY
from usfm.evaluation.overlay import PREDICTED, TRUTH, Example, caption, draw
from usfm.evaluation.page import folded, page, picture, scrolled, table
from usfm.evaluation.table import (
    NOTHING,
    Line,
    bracket,
    notes,
    number,
    table_lines,
    titled,
    type_of,
)

STYLE = f"""
.truth {{ background: rgb{TRUTH}; }}
.predicted {{ background: rgb{PREDICTED}; }}
.cases {{ display: grid; grid-auto-flow: column; grid-auto-columns: minmax(16rem, 23rem);
  background: none; border: 0; gap: 1rem; scroll-snap-type: x proximity; }}
.cases figure {{ scroll-snap-align: start; }}
@media (max-width: 40rem) {{
  #results td:nth-child(2), #results th:nth-child(2) {{ display: none; }} }}
@media print {{ .cases {{ grid-auto-columns: 1fr; }} .cases img {{ height: 9rem; }} }}
"""
BESIDE = {
    "before": "Before: the untrained model.",
    "previous": "Previous: what this workdir's evaluation said before this one.",
}


def write_report(
    workdir: epath.PathLike,
    evaluation: Mapping,
    examples: Sequence[Example],
    *,
    beside: Mapping[str, Mapping] = NOTHING,
) -> None:
    """Write WORKDIR/report.html, which needs no network.

    Beside what it is given, it shows what the workdir holds: config.json, splits.csv and
    metrics.jsonl. A part without its file is left out.

    Args:
        workdir: of the run.
        evaluation: content of its evaluation.json.
        examples: answered images to show, those of a task one after another.
        beside: other evaluations of the same rows, by one of BESIDE.

    Raises:
        ValueError: metrics.jsonl is damaged before its last line.
    """
    workdir = epath.Path(workdir)
    config = _read_json(workdir / "config.json")
    losses = read_losses(workdir / "metrics.jsonl")
    sections = [
        ("Results", _results(evaluation, beside)),
        ("Loss by type", _curves_of_types(losses, evaluation)),
        ("Loss by task", _curves(losses)),
        ("Routing", _routing(workdir / "metrics.jsonl")),
        ("Examples", "".join(_examples(examples))),
        ("Data", _data(workdir / "splits.csv", evaluation)),
        ("Configuration", _config(config) if config else ""),
    ]
    parts = ", ".join(f"{part} ({n:,} rows)" for part, n in evaluation["parts"].items())
    lead = (
        f"<p>{len(evaluation['tasks'])} tasks, scored on {html.escape(parts)}, "
        f"usfm {usfm.__version__}</p>"
    )
    write_atomically(workdir / "report.html", page(workdir.name, lead, sections, STYLE).encode())


def _read_json(path: epath.Path) -> dict | None:
    return json.loads(path.read_bytes()) if path.exists() else None


def _results(evaluation: Mapping, beside: Mapping[str, Mapping]) -> str:
    """What tasks are compared by as a table, and all metrics as one to be opened."""
    columns = ["model", "trivial", *beside]
    head, numbers = ["task", "type", "metric", *columns, "n"], len(columns) + 1
    lines = table_lines(evaluation, beside)
    first = [line for line in lines if line.metric == PRIMARY[line.type]]
    shown = table("Results", head, [_row(line, columns) for line in first], numbers)
    if len(first) < len(lines):
        rows = [_row(line, columns) for line in lines]
        every = table("Results, all metrics", head, rows, numbers)
        shown += folded(f"All metrics ({len(lines)})", every)
    said = "".join(f"<li>{html.escape(note)}</li>" for note in notes(evaluation))
    known = "Brackets: the model's 95 % interval. " if any(line.interval for line in lines) else ""
    explained = (
        f"<p>At original pixel size; the best value of a row is marked. {known}"
        f"{''.join(f'{BESIDE[name]} ' for name in beside)}Trivial: the mean training "
        "mask at its best threshold, class frequencies, mean box, mean points.</p>"
    )
    return explained + shown + (f"<ul>{said}</ul>" if said else "")


def _row(line: Line, columns: Sequence[str]) -> str:
    first = line.metric == PRIMARY[line.type]
    name = f"{titled(line.metric)} {'↓' if line.metric in LOWER_IS_BETTER else '↑'}"
    told = [line.task_id, line.type] if first else ["", ""]
    cells = "".join(f"<td>{html.escape(text)}</td>" for text in [*told, name])
    for column in columns:
        kind = "number best" if column in line.best else "number"
        value = f"<span>{number(line.metric, line.values[column])}</span>"
        if column == "model" and line.interval:
            value += f"<small>{bracket(line.metric, line.interval)}</small>"
        cells += f'<td class="{kind}">{value}</td>'
    cells += f'<td class="number">{line.n if first else ""}</td>'
    return f"<tr>{cells}</tr>" if first else f'<tr class="more">{cells}</tr>'


def _curves(losses: Mapping[str, Points]) -> str:
    last = last_step(losses)
    return _cards(
        (task_id, draw_curves([("", points)], last, f"Loss of {task_id} by step"))
        for task_id, points in losses.items()
    )


def _curves_of_types(losses: Mapping[str, Points], evaluation: Mapping) -> str:
    """The mean loss of the tasks of each type over those of its tasks."""
    of_type: dict[str, list[Points]] = {}
    for task_id, scored in evaluation["tasks"].items():
        if task_id in losses:
            of_type.setdefault(type_of(scored), []).append(losses[task_id])
    last = last_step(losses)
    cards = _cards(
        (
            f"{kind} ({len(curves)})",
            draw_curves(
                [*(("faint", points) for points in curves), ("", mean_curve(curves))],
                last,
                f"Mean loss of the {len(curves)} {kind} tasks by step",
            ),
        )
        for kind, curves in sorted(of_type.items())
    )
    return cards and f"<p>Mean over the tasks of a type; each task faintly.</p>{cards}"


def _cards(drawings: Iterator[tuple[str, str]]) -> str:
    figures = [f"<figure><b>{html.escape(name)}</b>{drawn}</figure>" for name, drawn in drawings]
    return f'<div class="cards">{"".join(figures)}</div>' if figures else ""


def _routing(path: epath.Path) -> str:
    shares = read_routing(path)
    if not shares:
        return ""
    experts = len(next(iter(shares.values())))
    said = "<p>Share of each task's tokens that each expert serves, in %, at the end.</p>"
    head = ["task", *(f"expert {i}" for i in range(experts))]
    return said + table("Routing", head, routing_rows(shares), experts)


def _examples(examples: Sequence[Example]) -> Iterator[str]:
    """The examples of each task side by side."""
    if not examples:
        return
    yield (
        "<p>Ranked by the task's first metric; classifications by the probability of the true "
        'class. <i class="key truth"></i> truth <i class="key predicted"></i> model</p>'
    )
    for task_id, of_task in itertools.groupby(examples, lambda example: example.task.id):
        name = html.escape(task_id)
        figures = "".join(map(_figure, of_task))
        yield f"<h3>{name}</h3>{scrolled(f'Examples of {task_id}', figures, 'cases')}"


def _figure(example: Example) -> str:
    task, case = example.task, example.case
    title = f"{case.name}: {titled(case.metric)} {number(case.metric, case.value)}" if case else ""
    shown = picture(draw(example), f"{task.id} {example.row_key}: truth and prediction")
    said = "<br/>".join(html.escape(text) for text in (caption(example), example.row_key) if text)
    return (
        f'<figure data-task="{html.escape(task.id)}" data-type="{task.type}">'
        f"<b>{html.escape(title)}</b>{shown}<figcaption>{said}</figcaption></figure>"
    )


def _data(path: epath.Path, evaluation: Mapping) -> str:
    """Rows of each task by part of the split."""
    if not path.exists():
        return ""
    lines = list(csv.DictReader(io.StringIO(path.read_bytes().decode())))
    counts = collections.Counter((line["task_id"], line["part"]) for line in lines)
    parts = sorted({part for _, part in counts})
    rows = []
    for task_id in sorted({task_id for task_id, _ in counts}):
        cells = "".join(f'<td class="number">{counts[task_id, part]:,}</td>' for part in parts)
        rows.append(f"<tr><td>{html.escape(task_id)}</td>{cells}</tr>")
    said = f"<p>{len(lines):,} rows; {evaluation['skipped_rows']:,} faulty rows were skipped.</p>"
    return said + table("Rows by part", ["task", *parts], rows, len(parts))


def _config(config: dict) -> str:
    rows = [
        f"<tr><td><code>{html.escape(name)}</code></td>"
        f"<td><code>{html.escape(json.dumps(value, ensure_ascii=False))}</code></td></tr>"
        for name, value in flat(config).items()
    ]
    return folded(f"{len(rows)} fields", table("Configuration", ["field", "value"], rows, 0))
