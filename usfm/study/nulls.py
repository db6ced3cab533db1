"""Studies in which nothing transfers, simulated: how often is harm seen where there is none?"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from usfm.study.gains import HARM, gain, judge
from usfm.study.scores import Table
from usfm.tasks import Task


@dataclasses.dataclass(frozen=True)
class Variation:
    """How the scores of one task vary.

    Attributes:
        task: what is learned.
        level: the metric.
        seed: standard deviation of a seed's metric, the rows being given.
        row: of what all models share on a group of rows (an easy patient).
        rest: of what a model adds on a single row.
        groups: int [N], the group of each test row, from 0.
    """

    task: Task
    level: float
    seed: float
    row: float
    rest: float
    groups: np.ndarray


def fit(task: Task, table: Table) -> Variation:
    """The variances of a table of two seeds or more, by moments (two-way analysis of variance)."""
    values, groups = table.values, table.groups
    seeds, rows = values.shape
    level = values.mean()
    of_seeds, of_rows = values.mean(1), values.mean(0)
    residual = values - of_seeds[:, None] - of_rows + level
    rest = (residual**2).sum() / ((seeds - 1) * max(rows - 1, 1))
    seed = of_seeds.var(ddof=1) - rest / rows
    of_groups = np.bincount(groups, of_rows) / np.bincount(groups)
    row = of_groups.var(ddof=1) - rest / seeds * np.mean(1 / np.bincount(groups))
    seed_sd, row_sd, rest_sd = np.sqrt(np.maximum([seed, row, rest], 0))
    return Variation(task, float(level), seed_sd, row_sd, rest_sd, groups)


def simulate(
    variations: Sequence[Variation], models: Sequence[str], seeds: int, seed: Sequence[int]
) -> dict[tuple[str, str], Table]:
    """Draws the tables of models that are equally good at every task.

    Args:
        variations: of the tasks.
        models: names.
        seeds: of each model.
        seed: of the draw.

    Returns:
        (model, task id) -> table, as Scores holds them.
    """
    generator = np.random.default_rng(seed)
    tables = {}
    for v in variations:
        shared = v.row * generator.standard_normal(v.groups.max() + 1)[v.groups]
        for model in models:
            of_seeds = v.seed * generator.standard_normal((seeds, 1))
            rest = v.rest * generator.standard_normal((seeds, len(v.groups)))
            values = v.level + shared + of_seeds + rest
            tables[model, v.task.id] = Table(
                v.task.id, model, tuple(range(seeds)), values, v.groups
            )
    return tables


def false_harm(
    fractions: Sequence[Sequence[Variation]], *, arms: int, seeds: int, studies: int, seed: int = 0
) -> float:
    """The share of null studies that call at least one negative transfer.

    Args:
        fractions: how tasks vary, at each fraction of the training rows.
        arms: beside the task-specific one; each trains a model of its own for each task.
        seeds: of each model.
        studies: to be simulated.
        seed: of the simulation.
    """
    names = ["own", *(f"arm{i}" for i in range(arms))]
    wrong = 0
    for study in range(studies):
        found = []
        for i, variations in enumerate(fractions):
            tables = simulate(variations, names, seeds, (seed, study, i))
            found += [
                gain(arm, float(i), v.task, 1, tables["own", v.task.id], tables[arm, v.task.id])
                for arm in names[1:]
                for v in variations
            ]
        wrong += any(gain.verdict == HARM for gain in judge(found))
    return wrong / studies
