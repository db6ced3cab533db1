"""Advice as a table for a terminal."""

import numpy as np

from usfm.evaluation.table import aligned
from usfm.study.advise import SURE, Advice, TaskAdvice
from usfm.study.stability import RESAMPLES

HEAD = ("task", "rows", "advice", "gain", "own steps", "clinical", "all", "sure", "with")


def describe(advice: Advice) -> str:
    """One line a task, and how to read them."""
    if advice.predictor is None:
        gain = (
            "gain: the share of the task's loss that a typical step along a partner takes off it,"
            " mean over partners; it ranks groups, and is no gain of a metric; own steps: as many"
            " of its own"
        )
    else:
        gain = (
            "gain: relative change of the metric; gains that were left out of the fit are predicted"
            f" to within {advice.predictor.error:.1%} (root mean square)"
        )
    again = "of steps and seeds" if advice.seeds > 1 else "of steps, of one seed"
    settled = (
        f"the best partition is the same from step {advice.enough_steps} of a run on"
        if advice.enough_steps is not None
        else "the best partition changed until the last of them"
    )
    return "\n".join(
        [
            *aligned([HEAD, *(_cells(line, advice) for line in advice.lines)], left=(0, 2, 8)),
            gain,
            f"sure: of {RESAMPLES} resamples {again}; below {SURE:.0%} is not enough evidence",
            f"{advice.steps} steps were recorded, of {advice.seeds} seed(s); {settled}",
        ]
    )


def _cells(line: TaskAdvice, advice: Advice) -> tuple[str, ...]:
    calibrated = advice.predictor is not None
    gains = (line.gain, line.clinical_gain, line.all_gain)
    gain, clinical, everything = (f"{g:+.1%}" if calibrated else f"{g:+.1e}" for g in gains)
    own = np.nan if calibrated else line.gain / line.own
    return (
        line.task,
        str(advice.training_rows.get(line.task, "-")),
        line.choice,
        gain,
        f"{own:+.2f}" if np.isfinite(own) else "-",
        clinical,
        everything,
        f"{line.agreement:.0%}",
        ", ".join(id for id in line.group if id != line.task) or "-",
    )
