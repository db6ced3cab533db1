"""Gains of many tasks as one figure: of a type, of a clinical group, of all, and how they spread.

The tasks of one model share its seeds, so that their gains rise and fall together; the intervals
know (see estimate.py).
"""

import dataclasses
from collections.abc import Iterable

from usfm.study.estimate import Estimate, mean, spread
from usfm.study.gains import Gain


@dataclasses.dataclass(frozen=True)
class Mean:
    """The mean gain of some tasks of one arm at one fraction, with its 95 % interval.

    Attributes:
        arm: label.
        fraction: of the training rows.
        of: the type or clinical group of the tasks; "all".
        tasks: their number.
        gain, low, high: the mean and its interval.
        estimate: the mean with what it rests on.
    """

    arm: str
    fraction: float
    of: str
    tasks: int
    gain: float
    low: float
    high: float
    estimate: Estimate = dataclasses.field(repr=False, compare=False)


@dataclasses.dataclass(frozen=True)
class Consistency:
    """How far the mean gains of clinical groups lie apart: less is steadier.

    Attributes:
        arm: label.
        fraction: of the training rows.
        groups: their number.
        spread: standard deviation over groups; chance alone makes it more than 0.
        low, high: its 95 % interval.
        estimate: the spread with what it rests on.
    """

    arm: str
    fraction: float
    groups: int
    spread: float
    low: float
    high: float
    estimate: Estimate = dataclasses.field(repr=False, compare=False)


def means(gains: Iterable[Gain], field: str | None) -> tuple[Mean, ...]:
    """Mean gains by arm, fraction and a field of Gain ("type", "group"; None = over all)."""
    sets: dict[tuple[str, float, str], list[Gain]] = {}
    for gain in gains:
        of = getattr(gain, field) if field else "all"
        sets.setdefault((gain.arm, gain.fraction, of), []).append(gain)
    found = []
    for (arm, fraction, of), members in sorted(sets.items()):
        estimate = mean([gain.estimate for gain in members])
        low, high = estimate.interval()
        n = len(members)
        found.append(Mean(arm, fraction, of, n, estimate.value, low, high, estimate))
    return tuple(found)


def consistency(group_means: Iterable[Mean]) -> tuple[Consistency, ...]:
    """How steady each arm is over clinical groups at each fraction; none with a single group."""
    sets: dict[tuple[str, float], list[Estimate]] = {}
    for group in group_means:
        sets.setdefault((group.arm, group.fraction), []).append(group.estimate)
    found = []
    for (arm, fraction), members in sorted(sets.items()):
        if len(members) > 1:
            estimate = spread(members)
            low, high = estimate.interval()
            n, low = len(members), max(low, 0.0)
            found.append(Consistency(arm, fraction, n, estimate.value, low, high, estimate))
    return tuple(found)
