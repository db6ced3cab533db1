"""What to train together, said of each task of a run, from what the run recorded.

Every stretch of the run counts the same (level). The best partition is searched on what intervals
leave of the scores (grouping), again on resampled steps and seeds (stability), and is advised of a
task where the evidence is enough:

- in a group: at least SURE of the resamples agree about it, and its expected gain is above 0 (where
  gains were measured, with a probability of SURE or more). Where they agree that the group is
  good in sum and the task is not expected to gain, it is better alone.
- alone: at least SURE of the resamples agree, and each recorded partner is known to be of little
  use to it: its effect a step is known to within NEGLIGIBLE of the task's own step, or the upper
  end of its interval is below that. Or, where gains were measured, it is expected to lose with its
  clinical group and with all, with a probability of SURE or more each.

Else, or where a task was present in fewer than LEAST_STEPS recorded steps, whose spread says little
of their noise, there is not enough evidence, and the task is planned alone, which is what gains are
measured against; nothing was shown to be better.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import norm

from usfm.errors import UserError
from usfm.study.affinity import Affinity, affinity
from usfm.study.calibration import (
    FEWEST,
    Measured,
    Predictor,
    calibrated,
    features,
    fit_measured,
)
from usfm.study.cells import ADVISED
from usfm.study.grouping import Grouping, Scores, find, gains, labels_of, parts_of, scores, shrink
from usfm.study.level import level
from usfm.study.stability import Record, join, stability
from usfm.tasks import Task
from usfm.tasks.plans import Plan, all_task, clinically_grouped, partition
from usfm.training.record import read

ALONE, CLINICAL, ALL, FOUND = "alone", "clinical group", "all", "found group"
UNKNOWN = "not enough evidence"
SURE = 0.8
NEGLIGIBLE = 0.1
LEAST_STEPS = 100


@dataclasses.dataclass(frozen=True)
class TaskAdvice:
    """What is advised of one task.

    Attributes:
        task: id.
        choice: ALONE, CLINICAL, ALL, FOUND or UNKNOWN.
        group: what to train together, it included.
        gain: expected in that group, in the unit of the advice; 0 alone.
        clinical_gain, all_gain: the same, with its clinical group and with all.
        own: the score of its own step; NaN where unknown.
        agreement: share of the resamples that agree with the found partition about it.
    """

    task: str
    choice: str
    group: tuple[str, ...]
    gain: float
    clinical_gain: float
    all_gain: float
    own: float
    agreement: float


@dataclasses.dataclass(frozen=True)
class Advice:
    """What is advised of the tasks of a run.

    Attributes:
        tasks: sorted by id.
        affinity: of their preconditioned gradients, levelled, over all records.
        lines: one a task, in their order.
        grouping: the best partition, before any task was set aside for lack of evidence.
        steps: recorded, of all seeds.
        seeds: how many runs there were.
        enough_steps: recorded steps of a run from which on the partition was the same, or None.
        training_rows: by task id; may be empty.
        predictor: of gains, where some were measured. Gains are relative changes of the metric
            then, else mean lookahead affinities: shares of the task's loss that a typical step
            along a partner takes off it.
    """

    tasks: tuple[Task, ...]
    affinity: Affinity = dataclasses.field(repr=False, compare=False)
    lines: tuple[TaskAdvice, ...]
    grouping: Grouping
    steps: int
    seeds: int
    enough_steps: int | None
    training_rows: Mapping[str, int]
    predictor: Predictor | None


def advise(
    records: Sequence[Record],
    tasks: Sequence[Task],
    training_rows: Mapping[str, int],
    *,
    measured: Sequence[Measured] = (),
) -> Advice:
    """Advises from the records of runs that trained all of the tasks.

    Args:
        records: one a seed, as training/record.py reads it.
        tasks: of the runs.
        training_rows: by task id; needed where gains are measured, else only shown.
        measured: gains of some tasks in some groups, at the same data; fewer than FEWEST are
            not made use of.

    Raises:
        UserError: the records are of other tasks.
    """
    tasks = tuple(sorted(tasks, key=lambda task: task.id))
    records = [level(record) for record in records]
    record = join(records)
    ids = tuple(record["tasks"].tolist())
    if ids != tuple(task.id for task in tasks):
        raise UserError(
            f"the record is of {', '.join(ids)}, not of {', '.join(task.id for task in tasks)};"
            " give the tasks that the run was trained on"
        )
    mean = affinity(record, preconditioned=True)
    known = scores(mean)
    shrunk = shrink(known.score, known.interval)
    predictor = None
    if len(measured) >= FEWEST:
        predictor = fit_measured(shrunk, tasks, training_rows, measured)

    # Who belongs together is a matter of affinity; whether it pays, of gains where there are any.
    # Gains are measured in the groups that a study was given, most of them mixed: what they come to
    # among tasks of much affinity is a guess beyond them, and no ground to part these.
    grouping = find(shrunk, ids)
    score = calibrated(shrunk, tasks, training_rows, predictor) if predictor else shrunk
    labels = labels_of(grouping.parts, ids)
    again = stability(records)
    agreement = again.agreement(labels)
    clinical, everything = (
        labels_of(plan.parts.values(), ids) for plan in (clinically_grouped(tasks), all_task(tasks))
    )

    def doubt(labels: np.ndarray) -> np.ndarray:
        """By how much a gain may be wrong on one side, with a probability of SURE."""
        if predictor is None:
            return np.zeros(len(ids))
        table = features(gains(shrunk, labels), tasks, training_rows)
        return norm.ppf(SURE) * predictor.doubt(table)

    better_alone = _needs_nobody(known)
    if predictor:
        better_alone |= np.logical_and.reduce(
            [
                (gains(score, others) + doubt(others) < 0) | (np.bincount(others)[others] == 1)
                for others in (clinical, everything)
            ]
        )
    gain = gains(score, labels)
    unsure = (agreement < SURE) | (np.diagonal(mean.steps) < LEAST_STEPS)
    verdicts = np.select(
        [unsure, np.bincount(labels)[labels] == 1, gain > doubt(labels), gain <= 0],
        [UNKNOWN, np.where(better_alone, ALONE, UNKNOWN), FOUND, ALONE],
        UNKNOWN,
    )
    # The others of a group go on without those that are not advised to be in it.
    labels = np.where(verdicts == FOUND, labels, len(ids) + np.arange(len(ids)))
    groups = {id: part for part in parts_of(labels, ids) for id in part}

    in_groups = (gains(score, others) for others in (labels, clinical, everything))
    figures = np.column_stack([*in_groups, known.own, agreement]).tolist()
    lines = tuple(
        TaskAdvice(id, _choice(verdict, groups[id], tasks), groups[id], *row)
        for id, verdict, row in zip(ids, verdicts.tolist(), figures, strict=True)
    )
    steps = len(record["step"])
    return Advice(
        tasks, mean, lines, grouping, steps, len(records), again.steps, training_rows, predictor
    )


def _needs_nobody(known: Scores) -> np.ndarray:
    """Whether every partner that was recorded with a task is known to be of little use to it."""
    little = NEGLIGIBLE * known.own
    useless = (known.interval <= little) | (known.score + known.interval <= little)
    recorded = np.isfinite(known.score) & ~np.eye(len(known.tasks), dtype=bool)
    return np.logical_and(recorded.any(0), (useless | ~recorded).all(0))


def _choice(verdict: str, group: tuple[str, ...], tasks: Sequence[Task]) -> str:
    if verdict != FOUND:
        return verdict
    if len(group) == 1:
        return UNKNOWN  # all its partners were set aside
    if len(group) == len(tasks):
        return ALL
    return CLINICAL if group in clinically_grouped(tasks).parts.values() else FOUND


def recommended(advice: Advice) -> Plan:
    """The advice as a plan; tasks without enough evidence are alone in it."""
    clinical = {part: name for name, part in clinically_grouped(advice.tasks).parts.items()}
    parts: dict[str, tuple[str, ...]] = {}
    for line in advice.lines:
        if line.group not in parts.values():
            name = {ALL: "all", CLINICAL: clinical.get(line.group, ""), FOUND: f"with_{line.task}"}
            parts[name.get(line.choice, line.task)] = line.group
    return partition(ADVISED, advice.tasks, parts)


def run_advise(
    workdir: pathlib.Path, tasks: tuple[Task, ...], training_rows: dict[str, int]
) -> Advice:
    """Advises from what one run recorded.

    Raises:
        UserError: nothing was recorded.
    """
    try:
        record = read(workdir / "gramians")
    except FileNotFoundError as error:
        raise UserError(str(error)) from None
    return advise([record], tasks, training_rows)
