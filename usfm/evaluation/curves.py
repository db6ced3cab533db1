"""Loss curves as small SVG drawings, from a run's metrics.jsonl."""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from usfm.errors import UserError

PREFIX = "loss/"
# Points of a curve: each is the mean of the losses of as many equal stretches of the run.
POINTS = 120
WIDTH, HEIGHT = 320, 150
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 22


def read_metrics(path: epath.PathLike) -> Iterator[dict[str, Any]]:
    """The lines of metrics.jsonl, but for a last one cut short by a kill.

    Args:
        path: of metrics.jsonl; one that does not exist has no lines.

    Raises:
        UserError: a line other than the last is not a JSON object.
    """
    path = epath.Path(path)
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            yield json.loads(line)
        except ValueError as error:  # not JSON, or cut within a character
            # Only a line without its newline is torn.
            if number == len(lines):
                return
            raise UserError(f"{path} line {number} is not JSON: {error}; remove it") from error


def read_losses(path: epath.PathLike) -> dict[str, list[tuple[int, float]]]:
    """The losses of each task as (step, loss), by step, from metrics.jsonl.

    Where a step was logged twice, before and after a resume, the later line counts. Losses that
    are not finite are left out.
    """
    losses: dict[str, dict[int, float]] = {}
    for entry in read_metrics(path):
        for name, value in entry.items():
            if name.startswith(PREFIX) and value is not None and math.isfinite(value):
                losses.setdefault(name.removeprefix(PREFIX), {})[entry["step"]] = value
    return {task_id: sorted(of_task.items()) for task_id, of_task in sorted(losses.items())}


def draw_curve(points: Sequence[tuple[int, float]], last: int) -> str:
    """An SVG element of one curve, styled by the page it stands in.

    Args:
        points: (step, loss) by step, at least one.
        last: the step at which the axis ends, 1 or more.

    Returns:
        The element; its parts have the classes axis, label, curve and dot.
    """
    steps, losses = np.array(points, float).T
    stretch = np.minimum((steps / last * POINTS).astype(int), POINTS - 1)
    count = np.bincount(stretch)
    kept = count > 0
    xs = np.bincount(stretch, steps)[kept] / count[kept]
    ys = np.bincount(stretch, losses)[kept] / count[kept]
    low, high = min(0.0, ys.min()), max(ys.max(), 1e-12)

    def across(step: float) -> float:
        return LEFT + step / last * (WIDTH - LEFT - RIGHT)

    def down(loss: float) -> float:
        return TOP + (high - loss) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for value in (low, (low + high) / 2, high):
        y = down(value)
        parts.append(f'<path class="axis" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        label = f'<text class="label" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">'
        parts.append(f"{label}{value:.3g}</text>")
    for step, anchor in ((0, "start"), (last, "end")):
        label = f'<text class="label" x="{across(step):.1f}" y="{HEIGHT - 6}"'
        parts.append(f'{label} text-anchor="{anchor}">{step:,}</text>')
    line = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in zip(xs, ys, strict=True))
    parts.append(f'<polyline class="curve" points="{line}"/>')
    if len(xs) == 1:
        parts.append(f'<circle class="dot" cx="{across(xs[0]):.1f}" cy="{down(ys[0]):.1f}" r="3"/>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
