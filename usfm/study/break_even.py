"""From how many training rows on it pays to learn tasks of a type together.

Gains are regressed on log10(training rows), type, arm and all their interactions, by weighted
least squares: so every type and arm has a line of its own, and its zero is the break-even.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from usfm.study.estimate import LEVEL, draws
from usfm.study.gains import Gain

REACH = 10  # times beyond the seen numbers of rows, where a line is still believed
RIDGE = 1e-6  # on the slope, as a share of the weights; keeps a resample of one point finite


@dataclasses.dataclass(frozen=True)
class BreakEven:
    """The line of one type and arm, and where it crosses zero.

    Attributes:
        arm: label.
        type: of the tasks.
        tasks: their number.
        slope, slope_low, slope_high: change of the gain for ten times the training rows, with its
            95 % interval; NaN where there is no line.
        rows: training rows of a task from which on the gain is positive (up to which, where the
            slope is negative); None where the line tells none.
        low, high: its 95 % interval, cut REACH times beyond the seen numbers of rows.
        reason: why rows is None; "" where it is not.
    """

    arm: str
    type: str
    tasks: int
    slope: float = math.nan
    slope_low: float = math.nan
    slope_high: float = math.nan
    rows: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""


def break_evens(gains: Sequence[Gain], resamples: int, seed: int) -> tuple[BreakEven, ...]:
    """The break-even of every arm and type.

    The bootstrap draws tasks, which differ in more than size, and on top of that the seeds and
    test rows behind each gain: wide rather than narrow where a type has few tasks.

    Args:
        gains: of the study. Tasks trained alone are left out, and gains of a single seed.
        resamples: of the bootstrap.
        seed: fixes them.
    """
    sets: dict[tuple[str, str], list[Gain]] = {}
    for gain in gains:
        known = gain.together and math.isfinite(gain.estimate.variance)
        sets.setdefault((gain.arm, gain.type), []).extend([gain] if known else [])
    return tuple(
        _break_even(arm, kind, members, resamples, seed)
        for (arm, kind), members in sorted(sets.items())
    )


def _break_even(arm: str, kind: str, gains: Sequence[Gain], resamples: int, seed: int) -> BreakEven:
    tasks = sorted({gain.task for gain in gains})
    nothing = BreakEven(arm, kind, len(tasks))
    if len(gains) < 3 or len(tasks) < 2:
        few = f"{len(gains)} gains of {len(tasks)} tasks are too few for a line"
        return dataclasses.replace(nothing, reason=few)
    x = np.log10([gain.training_rows for gain in gains])
    if np.ptp(x) < math.log10(1.5):
        return dataclasses.replace(nothing, reason="all gains are at about the same training rows")

    weights = _weights(x, gains)
    slope, zero = _line(x, np.array([[gain.gain] for gain in gains]), weights[:, None])
    counts = np.random.default_rng(seed).multinomial(
        len(tasks), np.full(len(tasks), 1 / len(tasks)), resamples
    )
    chosen = counts.T[[tasks.index(gain.task) for gain in gains]]
    slopes, zeros = _line(
        x, draws([gain.estimate for gain in gains], resamples, seed), weights[:, None] * chosen
    )
    tails = (100 * LEVEL / 2, 100 - 100 * LEVEL / 2)
    slope_low, slope_high = np.percentile(slopes, tails).tolist()
    line = dataclasses.replace(
        nothing, slope=float(slope[0]), slope_low=slope_low, slope_high=slope_high
    )
    if slope_low <= 0 <= slope_high:
        return dataclasses.replace(line, reason="whether more rows help or harm is not known")
    first, last = x.min() - math.log10(REACH), x.max() + math.log10(REACH)
    if not first <= zero[0] <= last:
        above = line.slope * (x.mean() - zero[0]) > 0
        side = "a gain" if above else "a loss"
        reason = f"{side} within {REACH} times the seen numbers of rows"
        return dataclasses.replace(line, reason=reason)
    low, high = np.percentile(np.clip(zeros[slopes * slope > 0], first, last), tails)
    return dataclasses.replace(line, rows=10 ** float(zero[0]), low=10**low, high=10**high)


def _weights(x: np.ndarray, gains: Sequence[Gain]) -> np.ndarray:
    """Inverse variances [n] of gains about the line: their own and that between tasks.

    The second, by moments from the residuals of a plain line, keeps one task with a large test
    set from being all that counts.
    """
    own = np.array([gain.estimate.variance for gain in gains])
    y = np.array([gain.gain for gain in gains])
    slope, level = np.polyfit(x, y, 1)
    residual = ((y - level - slope * x) ** 2).sum() / (len(x) - 2)
    between = max(residual - own.mean(), 0.0)
    return 1 / np.maximum(own + between, 1e-12)


def _line(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes [B] and zeros [B] of the lines through x [n] and y [n, B]."""
    total = weights.sum(0)
    x_mean, y_mean = weights.T @ x / total, (weights * y).sum(0) / total
    off = x[:, None] - x_mean
    slope = (weights * off * (y - y_mean)).sum(0) / ((weights * off**2).sum(0) + RIDGE * total)
    return slope, x_mean - y_mean / np.where(slope == 0, np.finfo(float).tiny, slope)
