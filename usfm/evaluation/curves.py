"""Loss curves as small SVG drawings, from a run's metrics.jsonl."""

import html
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from usfm.errors import UserError

PREFIX = "loss/"
# Points of a curve: each is the mean of the losses of as many equal stretches of the run.
POINTS = 120
WIDTH, HEIGHT = 320, 150
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 22

# (step, loss) by step, at least one.
Points = Sequence[tuple[float, float]]


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


def mean_curve(curves: Sequence[Points]) -> list[tuple[float, float]]:
    """The mean of several curves at all steps of any of them.

    Tasks take turns, so each counts at every step: between its own with a value in between, before
    its first and after its last with that.
    """
    arrays = [np.array(points, float).T for points in curves]
    steps = np.unique(np.concatenate([at for at, _ in arrays]))
    mean = np.mean([np.interp(steps, at, losses) for at, losses in arrays], axis=0)
    return list(zip(steps.tolist(), mean.tolist(), strict=True))


def last_step(curves: Mapping[str, Points]) -> int:
    """The step at which the axis of curves of one run ends, 1 or more."""
    return int(max([1, *(points[-1][0] for points in curves.values())]))


def draw_curves(curves: Sequence[tuple[str, Points]], last: int, label: str) -> str:
    """An SVG element of curves over each other, styled by the page it stands in.

    Args:
        curves: further class and points of each, the first the lowest, at least one.
        last: the step at which the axis ends, 1 or more.
        label: plain text: what is drawn, for those who have it read aloud.

    Returns:
        The element; its parts have the classes axis, label, curve and dot.
    """
    thinned = [(kind, *_thinned(points, last)) for kind, points in curves]
    lowest = min(ys.min() for _, _, ys in thinned)
    highest = max(ys.max() for _, _, ys in thinned)
    low, high = min(0.0, lowest), max(highest, 1e-12)

    def across(step: float) -> float:
        return LEFT + step / last * (WIDTH - LEFT - RIGHT)

    def down(loss: float) -> float:
        return TOP + (high - loss) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for value in (low, (low + high) / 2, high):
        y = down(value)
        parts.append(f'<path class="axis" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        text = f'<text class="label" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">'
        parts.append(f"{text}{value:.3g}</text>")
    for step, anchor in ((0, "start"), (last, "end")):
        text = f'<text class="label" x="{across(step):.1f}" y="{HEIGHT - 6}"'
        parts.append(f'{text} text-anchor="{anchor}">{step:,}</text>')
    for kind, xs, ys in thinned:
        line = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in zip(xs, ys, strict=True))
        parts.append(f'<polyline class="{f"curve {kind}".strip()}" points="{line}"/>')
        if len(xs) == 1:
            place = f'cx="{across(xs[0]):.1f}" cy="{down(ys[0]):.1f}"'
            parts.append(f'<circle class="{f"dot {kind}".strip()}" {place} r="3"/>')
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def _thinned(points: Points, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean steps and losses of the stretches that have any: float64 [up to POINTS] each."""
    steps, losses = np.array(points, float).T
    stretch = np.minimum((steps / last * POINTS).astype(int), POINTS - 1)
    count = np.bincount(stretch)
    kept = count > 0
    xs, ys = (np.bincount(stretch, values)[kept] / count[kept] for values in (steps, losses))
    return xs, ys
