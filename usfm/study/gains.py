"""What each task gains over its own model when it is trained together with others."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from usfm.evaluation.metrics import PRIMARY, sign
from usfm.study.cells import TASK_SPECIFIC, Arm, Study
from usfm.study.estimate import LEVEL, ROWS, SEEDS, Estimate, combine, holm
from usfm.study.few_seeds import chances
from usfm.study.scores import Scores, Table, model_of
from usfm.tasks import Task

FEWEST_SEEDS = 3  # with fewer, nothing is decided
LEAST = 1e-3  # of the baseline: what is left of a metric counts as this at least

GAIN, HARM, NO_CALL, UNDECIDED = "gain", "negative transfer", "no call", "undecided"


@dataclasses.dataclass(frozen=True)
class Gain:
    """What a task gains in one arm at one fraction; a row of gains.csv.

    Attributes:
        arm: label.
        fraction: of the training rows.
        task: id.
        type: of the task.
        group: clinical group.
        training_rows: of the task, at this fraction.
        test_rows: that both models answered.
        seeds: of the arm or the baseline, whichever has fewer.
        metric: name; mre is in pixels at original size, the others have no unit.
        baseline: the task-specific model's metric over the test rows, mean over seeds.
        value: the arm's.
        gain: relative change over the baseline, the sign turned where a lower metric is better.
        low, high: 95 % interval of the gain, not corrected for the number of tasks.
        p: two-sided, of no gain.
        p_holm: corrected over all gains of the study that are tested; NaN where it is not.
        verdict: GAIN, HARM, NO_CALL; UNDECIDED with fewer than FEWEST_SEEDS seeds.
        estimate: the gain with what it rests on; of no source where the arm trains the task alone.
    """

    arm: str
    fraction: float
    task: str
    type: str
    group: str
    training_rows: int
    test_rows: int
    seeds: int
    metric: str
    baseline: float
    value: float
    gain: float
    low: float
    high: float
    p: float
    p_holm: float
    verdict: str
    estimate: Estimate = dataclasses.field(repr=False, compare=False)

    @property
    def together(self) -> bool:
        """Whether the arm trains the task with others, so that there is something to be seen."""
        return bool(self.estimate.shifts)


def gains(study: Study, scores: Scores) -> tuple[tuple[Gain, ...], tuple[str, ...]]:
    """All gains that can be told, and one sentence for each baseline that nothing compares to."""
    found: list[Gain] = []
    faults: dict[str, None] = {}
    for arm in study.arms:
        for fraction in study.fractions if arm.plan != TASK_SPECIFIC else ():
            for task in study.tasks:
                theirs, ours = (
                    scores.tables.get((_model(study, a, fraction, task.id), task.id))
                    for a in (study.baseline(arm), arm)
                )
                if theirs is None or ours is None:
                    continue
                if theirs.values.mean() <= 0:
                    faults[f"{theirs.model}: {task.id}: {PRIMARY[task.type]} is 0"] = None
                    continue
                rows = study.training_rows[fraction][task.id]
                found.append(gain(study.label(arm), fraction, task, rows, theirs, ours))
    return judge(found), tuple(faults)


def gain(
    arm: str, fraction: float, task: Task, training_rows: int, theirs: Table, ours: Table
) -> Gain:
    """The gain of one task, not yet judged: no interval, no p-value.

    Args:
        arm: label.
        fraction: of the training rows.
        task: what is learned.
        training_rows: of the task, at this fraction.
        theirs: of the task-specific model.
        ours: of the arm's model, on the same rows.
    """
    metric = PRIMARY[task.type]
    estimate = compare(theirs, ours, metric)
    return Gain(
        arm=arm,
        fraction=fraction,
        task=task.id,
        type=task.type,
        group=task.group or task.id,
        training_rows=training_rows,
        test_rows=ours.values.shape[1],
        seeds=min(len(theirs.values), len(ours.values)),
        metric=metric,
        baseline=float(theirs.values.mean()),
        value=float(ours.values.mean()),
        gain=estimate.value,
        low=math.nan,
        high=math.nan,
        p=math.nan,
        p_holm=math.nan,
        verdict=UNDECIDED,
        estimate=estimate,
    )


def compare(theirs: Table, ours: Table, metric: str) -> Estimate:
    """The relative gain of ours over theirs: ours / theirs - 1, the sign turned for errors.

    Rows are paired: what a hard patient does to both models cancels. Seeds are not: the third run
    of one model has nothing in common with the third run of another but a number.

    Args:
        theirs: of the task-specific model.
        ours: on the same rows.
        metric: name.
    """
    if theirs.model == ours.model:
        return Estimate(0.0, {})
    a, b = _level(ours), _level(theirs)
    scale = sign(metric) / b.value
    ratio = a.value / b.value
    return combine(sign(metric) * (ratio - 1), [(scale, a), (-scale * ratio, b)])


def judge(gains: Sequence[Gain]) -> tuple[Gain, ...]:
    """Adds intervals, p-values and verdicts to all gains of a study.

    Holm's correction is over the whole study, not each arm and fraction by itself: otherwise a
    study of four arms at two fractions could see harm where there is none in one case of five.

    Chance is judged on the logarithm of the ratio. An error that is five times the baseline's would
    else carry the baseline's chance five times, and its interval reach to no harm at all; and the
    variances between seeds, which are shrunk together, are more alike as shares of the metric.
    """
    logs = [_log_ratio(gain) for gain in gains]
    chance = chances(logs)
    p = [of_gain.p(log.value) for of_gain, log in zip(chance, logs, strict=True)]
    tested = [i for i, gain in enumerate(gains) if _tested(gain) and math.isfinite(p[i])]
    corrected = dict(zip(tested, holm([p[i] for i in tested]), strict=True))
    judged = []
    for i, gain in enumerate(gains):
        low, high = (_from_log(end, gain.metric) for end in chance[i].interval(logs[i].value))
        p_holm = corrected.get(i, math.nan)
        verdict = _verdict(gain, p_holm)
        judged.append(
            dataclasses.replace(gain, low=low, high=high, p=p[i], p_holm=p_holm, verdict=verdict)
        )
    return tuple(judged)


def _log_ratio(gain: Gain) -> Estimate:
    """The gain as the logarithm of a ratio that is above 1 where ours is better."""
    ratio = max(1 + sign(gain.metric) * gain.gain, LEAST)
    return combine(sign(gain.metric) * math.log(ratio), [(1 / ratio, gain.estimate)])


def _from_log(log_ratio: float, metric: str) -> float:
    """The gain of such a logarithm."""
    beyond = math.expm1(min(sign(metric) * log_ratio, 700.0))  # no float is larger
    return sign(metric) * beyond + 0.0  # not -0


def _tested(gain: Gain) -> bool:
    return gain.seeds >= FEWEST_SEEDS and gain.together


def _verdict(gain: Gain, p_holm: float) -> str:
    if gain.seeds < FEWEST_SEEDS or (gain.together and math.isnan(p_holm)):
        return UNDECIDED
    if p_holm < LEVEL:
        return GAIN if gain.gain > 0 else HARM
    return NO_CALL


def _model(study: Study, arm: Arm, fraction: float, task_id: str) -> str:
    return model_of(study.cell(arm, fraction, study.seeds[0], task_id))


def _level(table: Table) -> Estimate:
    """The mean over seeds of a model's metric."""
    of_seeds, of_rows = table.values.mean(1), table.values.mean(0)
    value = float(of_rows.mean())
    # Tasks of one model share its seeds, except where a task has lost one of them.
    runs = f"{table.model} {table.seeds}"
    return Estimate(
        value,
        {
            (SEEDS, runs): (of_seeds - value) / len(of_seeds),
            (ROWS, table.task): np.bincount(table.groups, of_rows - value) / len(of_rows),
        },
    )
