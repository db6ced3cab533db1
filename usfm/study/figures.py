"""Figures of the gains of a study: by task, by interval, and against the training rows."""

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from usfm.study.break_even import BreakEven
from usfm.study.cells import Study
from usfm.study.drawing import DIVERGING, INK, LINE, SOFT, bands, new_figure, on, style, styled
from usfm.study.gains import UNDECIDED, Gain
from usfm.study.words import arms, percent, share
from usfm.tasks import TYPES, Task

_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:+g}".replace("-", "−") if value else "0")
_FAR = {"fontsize": 7, "weight": "bold"}
_ROWS = FuncFormatter(lambda value, _: f"{value:,.0f}")


def compared(gains: Sequence[Gain]) -> list[Gain]:
    """Gains that are numbers, of tasks that are trained with others: the rest are 0 as such."""
    return [gain for gain in gains if gain.together and math.isfinite(gain.gain)]


def sure(gain: Gain) -> bool:
    """Whether the interval excludes zero."""
    return gain.low > 0 or gain.high < 0


def limit(values: np.ndarray) -> float:
    """Where colours end: beyond most values, so that one extreme does not pale the others."""
    return max(float(np.quantile(np.abs(values), 0.9)), 1e-12)


def ordered(tasks: Sequence[Task]) -> list[Task]:
    """By type, so that the rows of figures compare like with like."""
    return sorted(tasks, key=lambda task: (task.type, task.id))


@styled
def draw_gains(study: Study, gains: Sequence[Gain]) -> Figure:
    """The heat map of gains by task, arm and fraction.

    Args:
        study: for the order of tasks, arms and fractions.
        gains: at least one of `compared`.
    """
    tasks, plans = ordered(study.tasks), arms(study, gains)
    columns = len(study.fractions) * len(plans)
    figure = new_figure(3.6 + max(0.95 * columns, 2), 1.9 + 0.25 * len(tasks))
    by_place = {(gain.fraction, gain.task, gain.arm): gain for gain in gains}
    end = limit(np.array([gain.gain for gain in compared(gains)]))
    colours = matplotlib.colormaps[DIVERGING]
    norm = Normalize(-end, end)
    panels = figure.subplots(1, len(study.fractions), sharey=True, squeeze=False)[0]
    for axes, fraction in zip(panels, study.fractions, strict=True):
        there = [[by_place.get((fraction, task.id, arm)) for arm in plans] for task in tasks]
        values = np.array([[g.gain if g else math.nan for g in row] for row in there])
        axes.pcolormesh(
            np.ma.masked_invalid(values),
            cmap=colours,
            norm=norm,
            edgecolors="white",
            linewidth=1,
        )
        for (row, column), value in np.ndenumerate(values):
            gain = there[row][column]
            _write(axes, column, row, gain, on(colours(norm(value))))
        axes.set_title(share(fraction), fontsize=10, pad=8)
        axes.set_xticks(np.arange(len(plans)) + 0.5, plans, rotation=25, ha="right")
        axes.set_ylim(len(tasks), 0)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        _between_types(axes, tasks, 0)
    panels[0].set_yticks(np.arange(len(tasks)) + 0.5, [task.id for task in tasks])
    _name_types(panels[-1], tasks, 0.5)
    bar = figure.colorbar(
        ScalarMappable(norm, colours),
        ax=panels,
        location="bottom",
        extend="both",
        aspect=60,
        fraction=0.03,
        format=_PERCENT,
    )
    bar.set_label("harm   ←   gain over one model a task, in %   →   help")
    bar.outline.set_visible(False)
    return figure


def _write(axes: Axes, column: int, row: int, gain: Gain | None, colour: str) -> None:
    """The number of a cell, marked where it is sure."""
    text, weight = "–", "normal"
    if gain is None or not math.isfinite(gain.gain):
        colour = SOFT
    elif not gain.together:
        text, colour = "alone", SOFT
    else:
        text = percent(gain.gain).removesuffix(" %")
        if sure(gain):
            text, weight = f"{text} ●", "bold"
    place = {"ha": "center", "va": "center"}
    axes.text(column + 0.5, row + 0.53, text, **place, fontsize=8, weight=weight, color=colour)


def _between_types(axes: Axes, tasks: Sequence[Task], offset: float) -> None:
    """Lines where the type of the rows changes."""
    for row in range(1, len(tasks)):
        if tasks[row].type != tasks[row - 1].type:
            axes.axhline(row + offset, color=INK, linewidth=0.8)


def _name_types(axes: Axes, tasks: Sequence[Task], offset: float) -> None:
    """The types at the right, each beside the middle of its rows."""
    for kind in TYPES:
        rows = [row for row, task in enumerate(tasks) if task.type == kind]
        if rows:
            axes.text(
                1.02,
                sum(rows) / len(rows) + offset,
                kind,
                transform=axes.get_yaxis_transform(),
                rotation=270 if len(rows) > 3 else 0,
                va="center",
                color=SOFT,
            )


@styled
def draw_intervals(study: Study, gains: Sequence[Gain]) -> Figure:
    """The forest plot: a row a task, a panel a fraction, a colour an arm.

    Args:
        study: for the order of tasks, arms and fractions.
        gains: at least one of `compared`.
    """
    tasks, plans = ordered(study.tasks), arms(study, gains)
    looks = style(plans)
    places = {task.id: row for row, task in enumerate(tasks)}
    step = 0.8 / len(plans)
    height = max(0.28, 0.1 * len(plans)) * len(tasks)
    figure = new_figure(3 + 4 * len(study.fractions), 1.4 + height)
    panels = figure.subplots(1, len(study.fractions), sharey=True, sharex=True, squeeze=False)[0]
    reach = _reach(compared(gains))
    for axes, fraction in zip(panels, study.fractions, strict=True):
        bands(axes, len(tasks))
        axes.axvline(0, color=INK, linewidth=1)
        for gain in compared(gains):
            if gain.fraction == fraction:
                colour, marker = looks[gain.arm]
                y = places[gain.task] + step * (plans.index(gain.arm) - (len(plans) - 1) / 2)
                if math.isfinite(gain.low) and math.isfinite(gain.high):
                    axes.plot([gain.low, gain.high], [y, y], color=colour, linewidth=1.2)
                edge = _edge(gain, reach)
                if edge is None:
                    hollow = "white" if gain.verdict == UNDECIDED else colour
                    axes.plot(gain.gain, y, marker, color=colour, markersize=4.5, mfc=hollow)
                else:
                    side = "left" if edge < 0 else "right"
                    axes.text(
                        edge, y, percent(gain.gain), ha=side, va="center", **_FAR, color=colour
                    )
        axes.set_title(share(fraction), fontsize=10)
        axes.set_xlabel("gain over one model a task, in %")
        axes.xaxis.set_major_formatter(_PERCENT)
        axes.tick_params(axis="y", length=0)
        _between_types(axes, tasks, -0.5)
    panels[0].set_ylim(len(tasks) - 0.5, -0.5)
    panels[0].set_xlim(*reach)
    panels[0].set_yticks(range(len(tasks)), [task.id for task in tasks])
    _name_types(panels[-1], tasks, 0)
    _legend(figure, looks)
    return figure


def _reach(gains: Sequence[Gain]) -> tuple[float, float]:
    """Of the axis of gains: 0, and most gains with their intervals, not the few far from all."""
    values = np.array([gain.gain for gain in gains])
    first, last = np.quantile(values, (0.25, 0.75))
    fence = 3 * (last - first) + 0.05
    near = [gain for gain in gains if first - fence <= gain.gain <= last + fence]
    ends = [end for gain in near for end in (gain.low, gain.high) if math.isfinite(end)]
    cut = np.quantile(ends, (0.02, 0.98)) if ends else ()
    reached = [0.0, *(gain.gain for gain in near), *cut]
    margin = 0.08 * (max(reached) - min(reached)) or 0.01
    return min(reached) - margin, max(reached) + margin


def _edge(gain: Gain, reach: tuple[float, float]) -> float | None:
    """Where a gain out of reach is written as a number; None where it is within."""
    if reach[0] <= gain.gain <= reach[1]:
        return None
    return reach[0] if gain.gain < reach[0] else reach[1]


def _legend(figure: Figure, looks: dict[str, tuple[str, str]]) -> None:
    handles = [
        matplotlib.lines.Line2D([], [], color=colour, marker=marker, label=arm)
        for arm, (colour, marker) in looks.items()
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=5)


@styled
def draw_scale(study: Study, gains: Sequence[Gain], break_evens: Sequence[BreakEven]) -> Figure:
    """Gains against the training rows, a panel a type, with the lines that have a break-even.

    Args:
        study: for the order of arms.
        gains: at least one of `compared`.
        break_evens: by arm and type.
    """
    looks = style(arms(study, gains))
    shown = [gain for gain in compared(gains) if gain.training_rows > 0]
    kinds = [kind for kind in TYPES if any(gain.type == kind for gain in shown)]
    rows, reach = math.ceil(len(kinds) / 2), _reach(shown)
    figure = new_figure(11, 0.6 + 3 * rows)
    panels = figure.subplots(rows, 2, sharey=True, squeeze=False).ravel()
    for axes, kind in zip(panels, kinds, strict=False):
        axes.set_xscale("log")
        axes.axhline(0, color=INK, linewidth=1)
        of_kind = [gain for gain in shown if gain.type == kind]
        for gain in of_kind:
            colour, marker = looks[gain.arm]
            x, edge = gain.training_rows, _edge(gain, reach)
            if edge is None:
                axes.plot(x, gain.gain, marker, color=colour, markersize=5, alpha=0.7)
            else:
                side = "bottom" if edge < 0 else "top"
                axes.text(x, edge, percent(gain.gain), ha="center", va=side, **_FAR, color=colour)
        span = [gain.training_rows for gain in of_kind]
        for line in break_evens:
            if line.type == kind and line.arm in looks:
                _draw_line(axes, line, (min(span), max(span)), looks[line.arm][0])
        axes.set_title(kind, fontsize=10)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(_ROWS)
        axes.yaxis.set_major_formatter(_PERCENT)
        axes.grid(color=LINE, linewidth=0.4)
        axes.set_xlabel("training rows of the task")
        axes.set_ylabel("gain, in %")
    panels[0].set_ylim(*reach)
    for axes in panels[len(kinds) :]:
        axes.set_visible(False)
    _legend(figure, looks)
    return figure


def _draw_line(axes: Axes, line: BreakEven, span: tuple[int, int], colour: str) -> None:
    """A fitted line, which is straight in log10 of the rows, with its break-even if it has one."""
    if line.rows is None or line.low is None or line.high is None:
        return
    x = np.array([min(span[0], line.rows), max(span[1], line.rows)])
    axes.plot(x, line.slope * np.log10(x / line.rows), color=colour, linewidth=1.4)
    axes.plot([line.low, line.high], [0, 0], color=colour, linewidth=5, alpha=0.3)
    axes.plot(line.rows, 0, "|", color=colour, markersize=16, markeredgewidth=2.5)
