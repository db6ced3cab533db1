"""Which experts serve which task, as a table of shares, from a run's metrics.jsonl."""

import html
from collections.abc import Mapping, Sequence

from etils import epath

from usfm.evaluation.curves import read_metrics

PREFIX = "routing/"
# Share of the accent colour in the darkest cell, in %: the number on it stays easy to read.
DARKEST = 45


def read_routing(path: epath.PathLike) -> dict[str, list[float]]:
    """The last logged share of each task's choices by expert; {} without mixtures."""
    shares: dict[str, list[float]] = {}
    for entry in read_metrics(path):
        shares |= {
            name.removeprefix(PREFIX): value
            for name, value in entry.items()
            if name.startswith(PREFIX)
        }
    return dict(sorted(shares.items()))


def routing_rows(shares: Mapping[str, Sequence[float]]) -> list[str]:
    """A tr element a task, its cells the darker the larger the share."""
    largest = max((max(row) for row in shares.values()), default=1) or 1
    rows = []
    for task_id, row in shares.items():
        cells = "".join(
            f'<td class="number" style="background: color-mix(in srgb, var(--accent) '
            f'{DARKEST * share / largest:.0f}%, transparent)">{100 * share:.0f}</td>'
            for share in row
        )
        rows.append(f"<tr><td>{html.escape(task_id)}</td>{cells}</tr>")
    return rows
