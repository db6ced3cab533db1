"""What a study says, in sentences."""

import math
import shlex
from collections.abc import Mapping, Sequence

from usfm.study import claims
from usfm.study.advise import ALONE, UNKNOWN, Advice, recommended
from usfm.study.agreement import Agreement
from usfm.study.cells import ADVISED, Study
from usfm.study.gains import NO_CALL, UNDECIDED, Gain
from usfm.study.means import Mean
from usfm.study.plan import as_text
from usfm.study.transfer import Analysis
from usfm.tasks.plans import Plan


def percent(value: float) -> str:
    """A relative gain: "+3.1 %"."""
    return f"{100 * value:+.1f} %".replace("-", "−") if math.isfinite(value) else "–"


def interval(mean: Mean | Gain) -> str:
    """A gain and its interval."""
    if not (math.isfinite(mean.low) and math.isfinite(mean.high)):
        return f"{percent(mean.gain)} (of unknown error)"
    return f"{percent(mean.gain)} [{percent(mean.low)}, {percent(mean.high)}]"


def share(fraction: float) -> str:
    """A fraction of the data: "25 % of the data"."""
    return f"{100 * fraction:g} % of the data"


def arms(study: Study, gains: Sequence[Gain]) -> tuple[str, ...]:
    """Labels of the arms that have gains, as the study orders them."""
    found = {gain.arm for gain in gains}
    return tuple(label for label in map(study.label, study.arms) if label in found)


def answer(fraction: float, overall: Sequence[Mean], advice: Advice | None) -> tuple[str, str]:
    """What to do at one fraction, and what was measured there.

    Args:
        fraction: of the training rows.
        overall: mean gains of all arms and fractions.
        advice: at this fraction, if any; it does not count where following it did harm.
    """
    means = [mean for mean in overall if mean.fraction == fraction and math.isfinite(mean.gain)]
    means.sort(key=lambda mean: -mean.gain)
    told = "; ".join(f"{mean.arm} {interval(mean)}" for mean in means)
    measured = f"Measured, mean over tasks: {told}." if told else "Nothing was measured."
    tried = [mean for mean in means if mean.arm.partition("/")[0] == ADVISED]
    if advice is not None and not (tried and all(mean.high < 0 for mean in tried)):
        untried = "" if tried else " The advice comes from gradients and was not tried."
        return f"At {share(fraction)}, {_advised(advice)}.", measured + untried
    if means and means[0].low > 0:
        best = f"{means[0].arm} is the best plan that was measured, {interval(means[0])}"
        return f"At {share(fraction)}, {best}.", measured
    return f"At {share(fraction)}, no plan is known to beat one model a task.", measured


def _advised(advice: Advice) -> str:
    groups = [group for group in recommended(advice).parts.values() if len(group) > 1]
    alone = [line.task for line in advice.lines if line.choice == ALONE]
    unknown = [line.task for line in advice.lines if line.choice == UNKNOWN]
    if any(len(group) == len(advice.lines) for group in groups):
        said = [f"train all {len(advice.lines)} tasks together"]
    elif groups:
        said = ["train together " + listed([" + ".join(group) for group in groups])]
    else:
        said = ["train no tasks together"]
    if alone:
        said.append(f"train {listed(alone)} alone")
    if unknown:
        said.append(f"too little is known of {listed(unknown)}: until then, alone")
    return "; ".join(said)


def agreed(agreement: Agreement) -> str:
    """How far the affinities foretold what was measured."""
    if not math.isfinite(agreement.spearman):
        return ""
    rank = f"{agreement.spearman:+.2f}".replace("-", "−")
    said = (
        f"Of {agreement.pairs} tasks in groups, the gains that these affinities alone predict and "
        f"those measured rank alike by {rank} (Spearman)"
    )
    if math.isfinite(agreement.ceiling):
        return (
            f"{said}; a perfect prediction would reach about {agreement.ceiling:.2f}, since gains "
            "are measured with error."
        )
    return f"{said}; gains measured in two halves of seeds and test rows do not rank alike at all."


def listed(names: Sequence[str]) -> str:
    """One name or more as a list in a sentence: "a, b and c"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def recommended_command(config_path: str, plan: Plan, fraction: float) -> str:
    """The command that trains a plan, and its tasks alone beside it.

    Args:
        config_path: of a config that has the fields of a study.
        plan: a partition of all tasks of the folder.
        fraction: of the training rows that it is for.
    """
    flags = (
        f"--config={config_path}",
        "--mode=study",
        f"--workdir=runs/{plan.name}_{fraction:g}",
        "--config.data.root=FM_UIA_FOLDER",
        f"--config.study.fractions={float(fraction)}",
        f"--config.study.plans={plan.name}",
        f"--config.study.partitions={as_text(plan)}",
    )
    return " \\\n  ".join(["python -m usfm.main", *map(shlex.quote, flags)])


def undecided(study: Study, analysis: Analysis, advice: Mapping[float, Advice]) -> list[str]:
    """What cannot be said, one sentence each."""
    said = [
        f"Claim “{claim.text}”: {claim.evidence}."
        for claim in analysis.claims
        if claim.verdict == claims.UNDECIDED
    ]
    for arm in arms(study, analysis.gains):
        for fraction in study.fractions:
            here = [
                g for g in analysis.gains if g.together and (g.arm, g.fraction) == (arm, fraction)
            ]
            of = f"{arm} at {share(fraction)}"
            if tasks := [gain.task for gain in here if gain.verdict == UNDECIDED]:
                seeds = min(gain.seeds for gain in here)
                counted = f"{seeds} seed{'s' * (seeds != 1)}"
                said.append(f"{of}: undecided, {counted} being too few, for {listed(tasks)}.")
            if tasks := [gain.task for gain in here if gain.verdict == NO_CALL]:
                said.append(f"{of}: neither gain nor harm is sure for {listed(tasks)}.")
    said += [
        f"Break-even of {line.arm}, {line.type}: {line.reason}."
        for line in analysis.break_evens
        if line.rows is None
    ]
    for fraction, of_fraction in sorted(advice.items()):
        if tasks := [line.task for line in of_fraction.lines if line.choice == UNKNOWN]:
            said.append(f"Whom to train {listed(tasks)} with, at {share(fraction)}.")
    return said
