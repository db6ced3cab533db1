"""From what a step along one task does for another, to what is gained by training them together.

A lookahead affinity is a share of the loss a step; a study measures gains of metrics over a whole
run. Where some were measured, a ridge regression of them on the predicted mean affinity of the
group, the task's training rows and its type turns scores into gains. Without any, scores only rank.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from usfm.study.grouping import gains
from usfm.tasks import TYPES, Task

FEWEST = 3  # measured gains that can be fitted
PENALTY = 1.0  # on squared weights of standardised features, beside the sum of squared errors


@dataclasses.dataclass(frozen=True)
class Measured:
    """A gain that a study measured.

    Attributes:
        task: id.
        group: the tasks that were trained together, it included.
        gain: relative change of its metric from training alone, above 0 where together is better.
    """

    task: str
    group: tuple[str, ...]
    gain: float


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A linear model of gains.

    Attributes:
        weights: float [features].
        intercept: gain where all features are 0.
        error: root mean square of the errors in measured gains that were left out one by one.
        centre: float [features], their means where gains were measured.
        covariance: float [features, features] of the weights, as far as they are known.
        variance: of the mean of the measured gains.
    """

    weights: np.ndarray
    intercept: float
    error: float
    centre: np.ndarray
    covariance: np.ndarray
    variance: float

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Gains [...] of features [..., F]."""
        return features @ self.weights + self.intercept

    def doubt(self, features: np.ndarray) -> np.ndarray:
        """Standard errors [...] of the gains to be expected at features [..., F].

        A single gain strays further, by what its few seeds and rows make of it.
        """
        away = features - self.centre
        return np.sqrt(self.variance + np.einsum("...f,fg,...g->...", away, self.covariance, away))


def features(
    affinity: np.ndarray, tasks: Sequence[Task], training_rows: Mapping[str, int]
) -> np.ndarray:
    """What a gain is predicted from.

    Args:
        affinity: float [..., N], mean scores of the partners of N tasks.
        tasks: those N.
        training_rows: by id.

    Returns:
        float [..., N, 2 + types]: the affinity, the logarithm of the rows, and the type as 0 or 1.
    """
    rows = np.log([max(training_rows[task.id], 1) for task in tasks])
    types = [[task.type == kind for kind in TYPES] for task in tasks]
    fixed = np.column_stack([rows, np.array(types, float)])
    fixed = np.broadcast_to(fixed, (*affinity.shape, fixed.shape[1]))
    return np.concatenate([affinity[..., None], fixed], -1)


def fit(features: np.ndarray, measured: np.ndarray) -> Predictor:
    """Fits gains [N] to features [N, F]: a ridge regression of standardised features.

    Raises:
        ValueError: fewer than FEWEST gains, whose error could not be told.
    """
    count = len(measured)
    if count < FEWEST:
        raise ValueError(f"{count} measured gains; {FEWEST} are the least that can be fitted")
    mean, scale = features.mean(0), features.std(0)
    scale = np.where(scale > 1e-12 * np.abs(features).max(0, initial=1e-300), scale, 1)
    standard = (features - mean) / scale
    inverse = np.linalg.inv(standard.T @ standard + PENALTY * np.eye(features.shape[1]))
    slopes = inverse @ standard.T @ (measured - measured.mean())
    residuals = measured - measured.mean() - standard @ slopes
    leverage = 1 / count + np.einsum("nf,fg,ng->n", standard, inverse, standard)
    weights = slopes / scale
    noise = np.sum(residuals**2) / max(count - leverage.sum(), 1)
    return Predictor(
        weights,
        float(measured.mean() - mean @ weights),
        float(np.sqrt(np.mean((residuals / (1 - leverage)) ** 2))),
        centre=mean,
        covariance=noise * inverse / np.outer(scale, scale),
        variance=float(noise / count),
    )


def fit_measured(
    score: np.ndarray,
    tasks: Sequence[Task],
    training_rows: Mapping[str, int],
    measured: Sequence[Measured],
) -> Predictor:
    """Fits measured gains of any tasks in any groups to scores [T, T] of `shrink`."""
    index = {task.id: number for number, task in enumerate(tasks)}
    means = []
    for one in measured:
        inside = np.isin(np.arange(len(tasks)), [index[id] for id in one.group])
        means.append(gains(score, inside)[index[one.task]])
    table = features(np.array(means), [tasks[index[one.task]] for one in measured], training_rows)
    return fit(table, np.array([one.gain for one in measured]))


def calibrated(
    score: np.ndarray, tasks: Sequence[Task], training_rows: Mapping[str, int], predictor: Predictor
) -> np.ndarray:
    """Scores [..., T, T] such that the mean of a task's partners is its predicted gain in a group.

    That is so because the model is linear, and all but the affinity is the task's own.
    """
    gain = predictor(features(score, tasks, training_rows))
    return gain * (1 - np.eye(len(tasks)))
