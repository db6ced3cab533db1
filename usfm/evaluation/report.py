"""report.html: one self-contained page that says how a run went."""

import collections
import csv
import html
import io
import json
from collections.abc import Iterator, Mapping, Sequence

from etils import epath

import usfm
from usfm.evaluation.curves import draw_curve, read_losses
from usfm.evaluation.experts import read_routing, routing_rows
from usfm.evaluation.files import write_atomically
from usfm.evaluation.metrics import LOWER_IS_BETTER, PRIMARY
from usfm.evaluation.overlay import PREDICTED, TRUTH, Example, caption, draw
from usfm.evaluation.page import page, picture, table
from usfm.evaluation.table import notes, number, table_lines

STYLE = f"""
.truth {{ background: rgb{TRUTH}; }}
.predicted {{ background: rgb{PREDICTED}; }}
"""


def write_report(
    workdir: epath.PathLike,
    evaluation: Mapping,
    examples: Sequence[Example],
    *,
    before: Mapping | None = None,
) -> None:
    """Write WORKDIR/report.html, which needs no network.

    Beside what it is given, it shows what the workdir holds: config.json, splits.csv and
    metrics.jsonl. A part without its file is left out.

    Args:
        workdir: of the run.
        evaluation: content of its evaluation.json.
        examples: answered images to show, usually one a task.
        before: the evaluation of the untrained model on the same rows, shown beside it.

    Raises:
        ValueError: metrics.jsonl is damaged before its last line.
    """
    workdir = epath.Path(workdir)
    config = _read_json(workdir / "config.json")
    sections = [
        ("Results", _results(evaluation, before)),
        ("Loss by task", _curves(workdir / "metrics.jsonl")),
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


def _results(evaluation: Mapping, before: Mapping | None) -> str:
    columns = ["before", "model", "trivial"][before is None :]
    rows = []
    for line in table_lines(evaluation, before):
        first = line.metric == PRIMARY[line.type]
        name = f"{line.metric} px ↓" if line.metric in LOWER_IS_BETTER else f"{line.metric} ↑"
        told = [line.task_id, line.type, str(line.n)] if first else ["", "", ""]
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in [*told, name])
        for column in columns:
            kind = "number best" if column in line.best else "number"
            value = number(line.metric, line.values[column])
            cells += f'<td class="{kind}"><span>{value}</span></td>'
        rows.append(f"<tr>{cells}</tr>" if first else f'<tr class="more">{cells}</tr>')
    said = "".join(f"<li>{html.escape(note)}</li>" for note in notes(evaluation))
    explained = (
        "<p>At original pixel size; the best value of a row is marked. Trivial: the mean training "
        "mask at its best threshold, class frequencies, mean box, mean points.</p>"
    )
    lines = table(["task", "type", "n", "metric", *columns], rows, len(columns))
    return explained + lines + (f"<ul>{said}</ul>" if said else "")


def _curves(path: epath.Path) -> str:
    losses = read_losses(path)
    last = max([1, *(points[-1][0] for points in losses.values())])
    figures = [
        f"<figure><b>{html.escape(task_id)}</b>{draw_curve(points, last)}</figure>"
        for task_id, points in losses.items()
    ]
    return f'<div class="cards">{"".join(figures)}</div>' if figures else ""


def _routing(path: epath.Path) -> str:
    shares = read_routing(path)
    if not shares:
        return ""
    experts = len(next(iter(shares.values())))
    said = "<p>Share of each task's tokens that each expert serves, in %, at the end.</p>"
    head = ["task", *(f"expert {i}" for i in range(experts))]
    return said + table(head, routing_rows(shares), experts)


def _examples(examples: Sequence[Example]) -> Iterator[str]:
    if not examples:
        return
    yield '<p><i class="key truth"></i> truth <i class="key predicted"></i> model</p>'
    yield '<div class="cards">'
    for example in examples:
        shown = picture(draw(example), f"{example.task.id}: truth and prediction")
        said = "<br/>".join(
            html.escape(text) for text in (caption(example), example.row_key) if text
        )
        yield (
            f"<figure><b>{html.escape(example.task.id)}</b>{shown}"
            f"<figcaption>{said}</figcaption></figure>"
        )
    yield "</div>"


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
    return said + table(["task", *parts], rows, len(parts))


def _config(config: Mapping) -> str:
    rows = [
        f"<tr><td><code>{html.escape(name)}</code></td>"
        f"<td><code>{html.escape(json.dumps(value, ensure_ascii=False))}</code></td></tr>"
        for name, value in _flat(config)
    ]
    lines = table(["field", "value"], rows, 0)
    return f"<details><summary>{len(rows)} fields</summary>{lines}</details>"


def _flat(config: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Fields by dotted name."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
