"""compare.html: runs side by side on one self-contained page."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

import usfm
from usfm.evaluation.compare import Compared, Comparison, summary, told
from usfm.evaluation.curves import Points, draw_curves, last_step
from usfm.evaluation.files import write_atomically
from usfm.evaluation.metrics import LOWER_IS_BETTER, METRICS, PRIMARY, sign
from usfm.evaluation.page import folded, page, table
from usfm.evaluation.runs import Run
from usfm.evaluation.table import bracket, number, titled

COLOURS = ("--accent", "--second", "--third", "--fourth")
DASHES = ("none", "6 3", "2 3", "9 3 2 3")
# Colours and dashes tell runs apart; the seventeenth looks as the first.
LOOKS = len(COLOURS) * len(DASHES)
STYLE = """
.runs { list-style: none; padding: 0; overflow-wrap: anywhere; }
.runs svg { display: inline-block; width: 2rem; margin: 0 .5rem 0 0; vertical-align: middle; }
.runs b { color: var(--ink); }
.better, .worse { font-weight: 650; }
"""


def _look(place: int) -> str:
    """How the curve of the run in a place is drawn."""
    colour, dashes = COLOURS[place % 4], DASHES[(place + place // 4) % 4]
    return (
        f".run{place} {{ stroke: var({colour}); stroke-dasharray: {dashes}; }}\n"
        f".dot.run{place} {{ fill: var({colour}); }}\n"
    )


def write_comparison(path: epath.PathLike, comparison: Comparison) -> None:
    """Write the page, which needs no network."""
    sections = [
        ("Results", _results(comparison)),
        ("Loss by task", _curves(comparison)),
        ("Configuration", _config(comparison)),
    ]
    looks = "".join(map(_look, range(min(LOOKS, len(comparison.runs)))))
    text = page(" and ".join(comparison.names), _lead(comparison), sections, STYLE + looks)
    write_atomically(path, text.encode())


def _lead(comparison: Comparison) -> str:
    """Which runs are compared, and how each is drawn."""
    items = "".join(
        f'<li><svg viewBox="0 0 32 8" aria-hidden="true"><path class="curve run{place % LOOKS}" '
        f'd="M0 4H32"/></svg><b>{html.escape(name)}</b> {_described(run)}</li>'
        for place, (name, run) in enumerate(zip(comparison.names, comparison.runs, strict=True))
    )
    found = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in summary(comparison))
    return f'<ul class="runs">{items}</ul>{found}<p>usfm {usfm.__version__}</p>'


def _described(run: Run) -> str:
    parts = ", ".join(f"{part} ({n:,} rows)" for part, n in run.evaluation["parts"].items())
    return html.escape(f"{run.workdir}: {len(run.evaluation['tasks'])} tasks, scored on {parts}")


def _results(comparison: Comparison) -> str:
    first, *others = comparison.names
    explained = (
        "<p>The best value of a row is marked. Brackets hold 95 % intervals. A difference from "
        f"{html.escape(first)} is over the rows that both runs scored, its interval from a "
        "bootstrap over their groups (patients, videos or images). Each interval is that of one "
        "task by itself: of twenty that hold no difference, one excludes zero by chance.</p>"
    )
    names = [*comparison.names, *(f"{name} − {first}" for name in others)]
    rows = [_row(task, PRIMARY[task.type]) for task in comparison.tasks]
    shown = table("Results", ["task", "type", "metric", *names], rows, len(names))
    every = [_row(task, metric) for task in comparison.tasks for metric in METRICS[task.type]]
    if len(every) > len(rows):
        of_all = table("All metrics", ["task", "type", "metric", *names], every, len(names))
        shown += folded(f"All metrics ({len(every)})", of_all)
    said = "".join(f"<li>{html.escape(note)}</li>" for note in comparison.notes)
    return explained + shown + (f"<ul>{said}</ul>" if said else "")


def _row(task: Compared, metric: str) -> str:
    """A metric of a task; differences are known of what it is compared by."""
    first = metric == PRIMARY[task.type]
    name = f"{titled(metric)} {'↓' if metric in LOWER_IS_BETTER else '↑'}"
    words = [task.task_id if first else "", task.type if first else "", name]
    cells = "".join(f"<td>{html.escape(word)}</td>" for word in words)
    values = [one.get(metric) if one else None for one in task.scored]
    best = max((sign(metric) * value for value in values if value is not None), default=None)
    for one, value in zip(task.scored, values, strict=True):
        known = (one or {}).get("intervals", {}).get(metric)
        brackets = f"<small>{bracket(metric, tuple(known))}</small>" if known else ""
        kind = "number best" if value is not None and sign(metric) * value == best else "number"
        cells += f'<td class="{kind}"><span>{number(metric, value)}</span>{brackets}</td>'
    for found in task.differences:
        said = told(metric, found) if first else ""
        verdict = found.verdict(metric) if first else ""
        cells += f'<td class="{f"number {verdict}".strip()}">{html.escape(said)}</td>'
    return f"<tr>{cells}</tr>" if first else f'<tr class="more">{cells}</tr>'


def _curves(comparison: Comparison) -> str:
    """The curves of each task over each other, by the step of each run."""
    losses = [run.losses for run in comparison.runs]
    last = max(map(last_step, losses))
    figures = []
    for task in comparison.tasks:
        drawn: list[tuple[str, Points]] = [
            (f"run{place % LOOKS}", of_run[task.task_id])
            for place, of_run in enumerate(losses)
            if task.task_id in of_run
        ]
        if drawn:
            label = f"Loss of {task.task_id} by step in {len(drawn)} runs"
            figure = f"<b>{html.escape(task.task_id)}</b>{draw_curves(drawn, last, label)}"
            figures.append(f"<figure>{figure}</figure>")
    return f'<div class="cards">{"".join(figures)}</div>' if figures else ""


def _config(comparison: Comparison) -> str:
    configs = [run.config for run in comparison.runs]
    differ = differing(configs)
    if not differ:
        return "<p>No field differs.</p>"
    rows = [
        f"<tr><td><code>{html.escape(name)}</code></td>"
        + "".join(
            f"<td><code>{html.escape(_value(config, name))}</code></td>" for config in configs
        )
        + "</tr>"
        for name in differ
    ]
    head = ["field", *comparison.names]
    return f"<p>Fields that differ: {len(rows)}.</p>" + table("Fields that differ", head, rows, 0)


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fields that not all configs give the same value."""
    names = sorted({name for config in configs for name in config})
    return [name for name in names if len({_value(config, name) for config in configs}) > 1]


def _value(config: Mapping[str, Any], name: str) -> str:
    return json.dumps(config[name], ensure_ascii=False) if name in config else "–"
