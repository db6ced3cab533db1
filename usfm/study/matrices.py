"""Figures of who helps whom, and of which experts serve which task."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform

from usfm.study.affinity import Affinity
from usfm.study.drawing import DIVERGING, INK, SOFT, new_figure, on, styled

CELL = 0.27  # inches


@styled
def draw_affinity(affinity: Affinity) -> Figure:
    """The lookahead affinities, rows and columns ordered by a tree of mutual help.

    Args:
        affinity: of two tasks or more.
    """
    tree = _tree(affinity.lookahead)
    order = tree["leaves"]
    tasks = [affinity.tasks[i] for i in order]
    values = np.where(np.eye(len(tasks), dtype=bool), np.nan, affinity.lookahead)
    values = values[np.ix_(order, order)]
    half = affinity.lookahead_interval[np.ix_(order, order)]
    size = CELL * len(tasks)
    figure = new_figure(3.6 + size, 2.6 + size)
    ratios = {"width_ratios": [1, size], "wspace": 0}
    left, axes = figure.subplots(1, 2, sharey=True, gridspec_kw=ratios)
    for depth, place in zip(tree["dcoord"], tree["icoord"], strict=True):
        # SciPy puts leaves at 5, 15, 25 and so on.
        left.plot(np.sqrt(depth), np.array(place) / 10, color=SOFT, linewidth=1)
    left.invert_xaxis()
    left.set_axis_off()
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(values), cmap=DIVERGING, norm=_symmetric(values), edgecolors="white"
    )
    rows, columns = np.nonzero(np.abs(values) > half)
    dots = [on(mesh.cmap(mesh.norm(value))) for value in values[rows, columns]]
    axes.scatter(columns + 0.5, rows + 0.5, s=7, c=dots, linewidths=0)
    _label(axes, tasks, tasks)
    axes.set_ylabel("a step along this task …")
    axes.yaxis.set_label_position("right")
    axes.tick_params(labelright=True, labelleft=False)
    axes.set_title("… does this for the loss of", fontsize=9)
    bar = figure.colorbar(
        mesh, ax=axes, location="bottom", extend="both", aspect=40, fraction=0.04, format="%+.1g"
    )
    bar.set_label("harms   ←   share taken off the loss by a step   →   helps")
    bar.outline.set_visible(False)
    return figure


def _tree(score: np.ndarray) -> dict[str, Any]:
    """Average linkage of what two tasks do for each other; what is unknown counts as 0."""
    mutual = np.nan_to_num((score + score.T) / 2, nan=0.0, posinf=0.0, neginf=0.0)
    distance = mutual.max() - mutual
    np.fill_diagonal(distance, 0)
    found = linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    return dendrogram(found, no_plot=True)


def _symmetric(values: np.ndarray) -> Normalize:
    known = np.abs(values[np.isfinite(values)])
    end = max(float(np.quantile(known, 0.95)), 1e-12) if known.size else 1.0
    return Normalize(-end, end)


@styled
def draw_routing(tasks: Sequence[str], shares: np.ndarray) -> Figure:
    """The share of each task's tokens that each expert serves.

    Args:
        tasks: ids.
        shares: float [T, E]; rows of NaN are left empty.
    """
    experts = shares.shape[1]
    figure = new_figure(2.4 + 0.55 * experts, 1.1 + CELL * len(tasks))
    axes = figure.subplots()
    colours, norm = matplotlib.colormaps["Blues"], Normalize(0, max(float(np.nanmax(shares)), 1e-9))
    axes.pcolormesh(
        np.ma.masked_invalid(shares), cmap=colours, norm=norm, edgecolors="white", linewidth=1
    )
    for (row, column), value in np.ndenumerate(shares):
        text, colour = (f"{100 * value:.0f}", on(colours(norm(value)))) if value == value else (
            "–", SOFT)  # fmt: skip
        axes.text(
            column + 0.5, row + 0.53, text, ha="center", va="center", fontsize=8, color=colour
        )
    _label(axes, [f"expert {i}" for i in range(experts)], tasks)
    return figure


def _label(axes: Axes, columns: Sequence[str], rows: Sequence[str]) -> None:
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=90)
    axes.xaxis.tick_top()
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes.set_ylim(len(rows), 0)
    axes.set_xlim(0, len(columns))
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines[:].set_visible(False)
