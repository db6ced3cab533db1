"""Intervals and p-values of many figures, each of which rests on two or three seeds.

Student's t on three seeds sees next to nothing after a correction for 27 tasks, and Satterthwaite's
short cut, sound at 5 %, errs several-fold so far out in the tails. Two known remedies go together:

- The variance between seeds is shrunk towards what is usual in the study, by as much as the
  variances of all figures agree (Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3, article 3).
- The critical value is the mean of the sources' own t quantiles, weighted by their variances
  (Cochran and Cox 1950, Experimental Designs), which is never too small.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import root_scalar
from scipy.special import digamma, polygamma, stdtrit

from usfm.study.estimate import LEVEL, SEEDS, Estimate

SMALLEST = 1e-30  # p-value that is told apart from 0


@dataclasses.dataclass(frozen=True)
class Chance:
    """The variances that a figure's sources of chance give it.

    Attributes:
        variances: float64 [K].
        free: float64 [K], their degrees of freedom.
    """

    variances: np.ndarray
    free: np.ndarray

    def interval(self, value: float) -> tuple[float, float]:
        """Of 95 %; NaN where a source has a single unit."""
        half = self._critical(LEVEL) * math.sqrt(self.variances.sum())
        return value - half, value + half

    def p(self, value: float) -> float:
        """Two-sided, of the figure being 0."""
        error = math.sqrt(self.variances.sum())
        if not math.isfinite(error):
            return math.nan
        if error == 0 or value == 0:
            return float(value == 0)
        t = abs(value) / error
        if t > self._critical(SMALLEST):
            return 0.0
        found = root_scalar(
            lambda x: self._critical(math.exp(x)) - t, bracket=(math.log(SMALLEST), 0.0)
        )
        return math.exp(found.root)

    def _critical(self, level: float) -> float:
        total = self.variances.sum()
        if total == 0:
            return 0.0
        return float(-stdtrit(self.free, level / 2) @ self.variances / total)


def shrink(variances: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shrinks variances towards their common size.

    Args:
        variances: [n] estimates, each a scaled chi-square.
        free: [n] their degrees of freedom.

    Returns:
        The variances [n] and their degrees of freedom [n], those of the common size added.
    """
    known = variances > 0
    if np.count_nonzero(known) < 2:
        return variances, free
    # A variance of 0 by chance would be the strongest evidence of all in logarithms.
    floor = 1e-5 * np.median(variances[known])
    half = free / 2
    logs = np.log(np.maximum(variances, floor)) - digamma(half) + np.log(half)
    scatter = logs.var(ddof=1) - polygamma(1, half).mean()
    if scatter <= 0:  # they are no more different than chance makes them
        prior = 1e6
        common = math.exp(logs.mean())
    else:
        prior = 2 * _inverse_trigamma(scatter)
        common = math.exp(logs.mean() + digamma(prior / 2) - math.log(prior / 2))
    return (prior * common + free * variances) / (prior + free), prior + free


def chances(estimates: Sequence[Estimate]) -> list[Chance]:
    """The chance in each of many figures, the variances between seeds shrunk together."""
    parts = [(source[0], *part) for e in estimates for source, part in e.chance.items()]
    if not parts:
        return [Chance(np.zeros(0), np.zeros(0)) for _ in estimates]
    kinds, variances, free = (np.array(column) for column in zip(*parts, strict=True))
    free = free.astype(float)
    chosen = (kinds == SEEDS) & (free > 0)
    variances[chosen], free[chosen] = shrink(variances[chosen], free[chosen])
    ends = np.cumsum([len(e.shifts) for e in estimates])[:-1]
    pairs = zip(np.split(variances, ends), np.split(free, ends), strict=True)
    return [Chance(*pair) for pair in pairs]


def _inverse_trigamma(x: float) -> float:
    """Newton's method on 1 / trigamma, which is nearly a line (Smyth 2004, appendix)."""
    y = 0.5 + 1 / x
    for _ in range(20):
        trigamma = float(polygamma(1, y))
        y += trigamma * (1 - trigamma / x) / float(polygamma(2, y))
    return y
