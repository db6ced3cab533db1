"""Figures that know what they owe to chance: the linearised form of a hierarchical bootstrap.

A figure of a study rests on units that were drawn independently: the seeds of each model, and the
groups of rows of each test set. To first order each unit shifts it by a number of its own (its
influence), so that the bootstrap that resamples seeds and groups has a variance in closed form:
no resampling noise, and p-values below one over the number of resamples, which Holm's correction
over 27 tasks asks for. Shifts of the same units add up: two models scored on the same rows, or two
tasks of one model, are paired without further ado.

Three seeds say little of their own spread, so each source's variance is corrected by k / (k - 1)
and intervals are Student's.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.05

# (SEEDS, name of a model and its seeds) or (ROWS, id of a task).
Source = tuple[str, str]
SEEDS, ROWS = "seeds", "rows"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure and the shifts of the units it rests on.

    Attributes:
        value: the figure.
        shifts: source -> float64 [k], what each of its k units shifts the figure by; they sum to 0.
            No source = nothing was left to chance.
    """

    value: float
    shifts: Mapping[Source, np.ndarray]

    @property
    def chance(self) -> dict[Source, tuple[float, int]]:
        """Source -> the variance it gives the figure, and degrees of freedom; NaN of one unit."""
        return {source: (_variance(shift), len(shift) - 1) for source, shift in self.shifts.items()}

    @property
    def variance(self) -> float:
        """The square of the standard error; NaN where a source has a single unit."""
        return math.fsum(variance for variance, _ in self.chance.values())

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Holds the truth but for `level`; Welch's and Satterthwaite's degrees of freedom."""
        total = self.variance
        if not total:
            return self.value, self.value
        free = total**2 / sum(v**2 / k for v, k in self.chance.values() if k) if total > 0 else 1
        half = math.sqrt(total) * float(stdtrit(free, 1 - level / 2))
        return self.value - half, self.value + half


def combine(value: float, terms: Iterable[tuple[float, Estimate]]) -> Estimate:
    """A function of estimates, from its value and its derivative by each of them."""
    shifts: dict[Source, np.ndarray] = {}
    for weight, term in terms:
        for source, shift in term.shifts.items():
            shifts[source] = shifts.get(source, 0) + weight * shift
    return Estimate(value, shifts)


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of estimates, which may share units."""
    weight = 1 / len(estimates)
    value = math.fsum(e.value for e in estimates) * weight
    return combine(value, [(weight, estimate) for estimate in estimates])


def difference(a: Estimate, b: Estimate) -> Estimate:
    """What a has over b, paired where they share units."""
    return combine(a.value - b.value, [(1, a), (-1, b)])


def spread(estimates: Sequence[Estimate]) -> Estimate:
    """The standard deviation of two estimates or more."""
    values = np.array([estimate.value for estimate in estimates])
    deviation = float(values.std(ddof=1))
    slopes = (values - values.mean()) / ((len(values) - 1) * (deviation or 1))
    return combine(deviation, zip(slopes.tolist(), estimates, strict=True))


def _variance(shift: np.ndarray) -> float:
    units = len(shift)
    return float(shift @ shift) * units / (units - 1) if units > 1 else math.nan


def draws(estimates: Sequence[Estimate], resamples: int, seed: int) -> np.ndarray:
    """Resamples the units of all sources: float64 [E, resamples]; a unit's fate is shared.

    Shifts are stretched by sqrt(k / (k - 1)), which makes the spread of the draws unbiased.
    """
    generator = np.random.default_rng(seed)
    drawn = np.repeat([[estimate.value] for estimate in estimates], resamples, axis=1)
    for source in sorted({source for estimate in estimates for source in estimate.shifts}):
        units = next(len(e.shifts[source]) for e in estimates if source in e.shifts)
        counts = generator.multinomial(units, np.full(units, 1 / units), resamples)
        for line, estimate in zip(drawn, estimates, strict=True):
            if source in estimate.shifts:
                line += counts @ estimate.shifts[source] * math.sqrt(units / max(units - 1, 1))
    return drawn


def holm(p: Sequence[float]) -> list[float]:
    """p-values that hold for all hypotheses of a family at once (Holm 1979, Scand. J. Stat. 6)."""
    order = np.argsort(p, kind="stable")
    factors = len(p) - np.arange(len(p))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.asarray(p)[order] * factors), 1)
    return adjusted.tolist()
