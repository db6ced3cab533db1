"""The claims of arXiv 2603.18123 on task aggregation, as tests of a study.

A claim is supported where its interval leaves no doubt, contradicted where the opposite's does,
and undecided otherwise. Where one of several comparisons is enough, each is held to its share of
5 % (Bonferroni); where all are needed, 5 % each is enough (Berger 1982, Technometrics 24).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from usfm.study.estimate import LEVEL, Estimate, combine, difference, mean, spread
from usfm.study.gains import FEWEST_SEEDS, Gain

GROUPED, UNIFIED = "clinically_grouped", "all_task"
SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
NEGLIGIBLE = 0.05  # of the baseline: a change of the mean gain that is as good as none


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim put to the test.

    Attributes:
        text: what is claimed.
        verdict: SUPPORTED, CONTRADICTED or UNDECIDED.
        evidence: the numbers behind the verdict, as relative gains with 95 % intervals.
    """

    text: str
    verdict: str
    evidence: str


def claims(gains: Sequence[Gain]) -> tuple[Claim, ...]:
    """Puts the paper's four claims to the test.

    They are about clinically_grouped and all_task; with several methods or models, those that the
    study names first.

    Args:
        gains: of the study. Those of fewer than FEWEST_SEEDS seeds, or of unknown error, say
            nothing here.
    """
    known = [g for g in gains if g.seeds >= FEWEST_SEEDS and math.isfinite(g.estimate.variance)]
    by_plan: dict[str, list[Gain]] = {GROUPED: [], UNIFIED: []}
    for gain in known:
        of_plan = by_plan.get(gain.arm.partition("/")[0])
        if of_plan is not None and (not of_plan or of_plan[0].arm == gain.arm):
            of_plan.append(gain)
    return (_scale(by_plan), _rich_and_poor(by_plan[GROUPED]), _steady(by_plan), _types(by_plan))


def _scale(by_plan: Mapping[str, Sequence[Gain]]) -> Claim:
    """Of the same tasks at two fractions, as different tasks differ in more than size."""
    text = "What aggregation does depends on the number of training rows."
    changes = {}
    for plan, gains in by_plan.items():
        together = [gain for gain in gains if gain.together]
        fractions = sorted({gain.fraction for gain in together})
        if len(fractions) < 2:
            continue
        poor, rich = (
            {g.task: g.estimate for g in together if g.fraction == fraction}
            for fraction in (fractions[0], fractions[-1])
        )
        both = [difference(rich[task], poor[task]) for task in rich if task in poor]
        if both:
            changes[plan] = mean(both)
    if not changes:
        return Claim(text, UNDECIDED, "no arm has the same task at two fractions")
    evidence = "change of the mean gain from the smallest to the largest fraction: " + "; ".join(
        f"{plan} {_told(change)}" for plan, change in changes.items()
    )
    strict = [change.interval(LEVEL / len(changes)) for change in changes.values()]
    if any(low > 0 or high < 0 for low, high in strict):
        return Claim(text, SUPPORTED, evidence)
    usual = [change.interval() for change in changes.values()]
    if all(low > -NEGLIGIBLE and high < NEGLIGIBLE for low, high in usual):
        return Claim(text, CONTRADICTED, evidence)
    return Claim(text, UNDECIDED, evidence)


def _rich_and_poor(gains: Sequence[Gain]) -> Claim:
    """Of the richer and the poorer half of all (clinical group, fraction), by training rows."""
    text = "Clinical groups gain when they are rich in data, and are harmed when they are poor."
    sets: dict[tuple[str, float], list[Gain]] = {}
    for gain in gains:
        if gain.together:
            sets.setdefault((gain.group, gain.fraction), []).append(gain)
    points = sorted(
        ((sum(gain.training_rows for gain in members), members) for members in sets.values()),
        key=lambda point: point[0],
    )
    half = len(points) // 2
    if not half or points[half - 1][0] == points[-half][0]:
        return Claim(text, UNDECIDED, "no two clinical groups differ in training rows")
    poor, rich = (
        mean([mean([gain.estimate for gain in members]) for _, members in part])
        for part in (points[:half], points[-half:])
    )
    evidence = (
        f"mean gain of groups of {points[-half][0]} to {points[-1][0]} training rows "
        f"{_told(rich)}, of {points[0][0]} to {points[half - 1][0]} {_told(poor)}"
    )
    if rich.interval()[0] > 0 and poor.interval()[1] < 0:
        return Claim(text, SUPPORTED, evidence)
    if rich.interval(LEVEL / 2)[1] < 0 or poor.interval(LEVEL / 2)[0] > 0:
        return Claim(text, CONTRADICTED, evidence)
    return Claim(text, UNDECIDED, evidence)


def _steady(by_plan: Mapping[str, Sequence[Gain]]) -> Claim:
    """By the spread of mean gains over the groups that both arms have, mean over fractions."""
    text = "The model of all tasks is steadier across clinical groups than those of single groups."
    grouped, unified = (_by_group(by_plan[plan]) for plan in (GROUPED, UNIFIED))
    spreads = []
    for fraction in sorted({fraction for fraction, _ in grouped.keys() & unified.keys()}):
        shared = sorted(key for key in grouped.keys() & unified.keys() if key[0] == fraction)
        if len(shared) > 1:
            spreads.append([spread([of[key] for key in shared]) for of in (unified, grouped)])
    if not spreads:
        return Claim(text, UNDECIDED, "the two arms do not share two clinical groups")
    less = mean([difference(ours, theirs) for ours, theirs in spreads])
    ours, theirs = (mean(list(column)) for column in zip(*spreads, strict=True))
    evidence = (
        f"standard deviation over groups: {UNIFIED} {_told(ours)}, {GROUPED} {_told(theirs)}; "
        f"difference {_told(less)}"
    )
    low, high = less.interval()
    verdict = SUPPORTED if high < 0 else CONTRADICTED if low > 0 else UNDECIDED
    return Claim(text, verdict, evidence)


def _types(by_plan: Mapping[str, Sequence[Gain]]) -> Claim:
    """By the mean absolute gain, less what chance alone would make of no gain."""
    text = "Segmentation is the most sensitive type: its gains and losses are the largest."
    sets: dict[str, list[Estimate]] = {}
    for gain in (gain for gains in by_plan.values() for gain in gains if gain.together):
        sets.setdefault(gain.type, []).append(gain.estimate)
    sizes = {kind: mean([_size(gain) for gain in members]) for kind, members in sets.items()}
    # The mean of |x| is sqrt(2 / pi) standard errors where x is 0 but for chance.
    floors = {
        kind: math.sqrt(2 / math.pi)
        * math.fsum(math.sqrt(g.variance) for g in members)
        / len(members)
        for kind, members in sets.items()
    }
    others = sorted(sizes.keys() - {"segmentation"})
    if "segmentation" not in sizes or not others:
        return Claim(text, UNDECIDED, "there are no gains of segmentation and of another type")
    evidence = "mean absolute gain: " + "; ".join(
        f"{kind} {_told(sizes[kind])}, of which chance explains {floors[kind]:.3f}"
        for kind in ("segmentation", *others)
    )
    leads = {kind: difference(sizes["segmentation"], sizes[kind]) for kind in others}
    if all(lead.interval()[0] > floors["segmentation"] for lead in leads.values()):
        return Claim(text, SUPPORTED, evidence)
    strict = {kind: lead.interval(LEVEL / len(others)) for kind, lead in leads.items()}
    if any(high < -floors[kind] for kind, (_, high) in strict.items()):
        return Claim(text, CONTRADICTED, evidence)
    return Claim(text, UNDECIDED, evidence)


def _by_group(gains: Sequence[Gain]) -> dict[tuple[float, str], Estimate]:
    sets: dict[tuple[float, str], list[Estimate]] = {}
    for gain in gains:
        sets.setdefault((gain.fraction, gain.group), []).append(gain.estimate)
    return {key: mean(members) for key, members in sets.items()}


def _size(gain: Estimate) -> Estimate:
    return combine(abs(gain.value), [(math.copysign(1, gain.value), gain)])


def _told(estimate: Estimate) -> str:
    low, high = estimate.interval()
    return f"{estimate.value:+.3f} [{low:+.3f}, {high:+.3f}]"
