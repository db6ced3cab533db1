"""What a study says: gains over task-specific models, and what follows from them.

How gains are measured is in gains.py, what is known of their errors in estimate.py (one figure)
and few_seeds.py (many), the checks on simulated studies without any transfer in nulls.py.
"""

import csv
import dataclasses
import io
import pathlib

from usfm.evaluation.files import write_atomically
from usfm.study.break_even import BreakEven, break_evens
from usfm.study.cells import Study
from usfm.study.claims import Claim, claims
from usfm.study.gains import Gain, gains
from usfm.study.means import Consistency, Mean, consistency, means
from usfm.study.scores import Scores

COLUMNS = tuple(field.name for field in dataclasses.fields(Gain) if field.name != "estimate")


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What a study says.

    Attributes:
        gains: of every arm but the task-specific, fraction and task that was scored.
        type_means, group_means, overall: mean gains by arm and fraction.
        consistency: spread of the group means.
        break_evens: by arm and type.
        claims: those of the paper.
        missing: one sentence for everything that is left out.
    """

    gains: tuple[Gain, ...]
    type_means: tuple[Mean, ...]
    group_means: tuple[Mean, ...]
    overall: tuple[Mean, ...]
    consistency: tuple[Consistency, ...]
    break_evens: tuple[BreakEven, ...]
    claims: tuple[Claim, ...]
    missing: tuple[str, ...]


def analyse(study: Study, scores: Scores, *, resamples: int = 2000, seed: int = 0) -> Analysis:
    """Draws the conclusions from what the cells of a study scored.

    Args:
        study: what was to be trained; cells that were not are named under `missing`.
        scores: of its cells.
        resamples: of the bootstrap behind break-evens; all else is in closed form.
        seed: fixes the resamples.
    """
    found, faults = gains(study, scores)
    group_means = means(found, "group")
    return Analysis(
        gains=found,
        type_means=means(found, "type"),
        group_means=group_means,
        overall=means(found, None),
        consistency=consistency(group_means),
        break_evens=break_evens(found, resamples, seed),
        claims=claims(found),
        missing=scores.missing + faults,
    )


def write_gains(analysis: Analysis, path: pathlib.Path) -> None:
    """Writes gains.csv, the fields of Gain to six digits; the same gains give the same bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for gain in sorted(analysis.gains, key=lambda gain: (gain.arm, gain.fraction, gain.task)):
        writer.writerow([_cell(getattr(gain, column)) for column in COLUMNS])
    write_atomically(path, text.getvalue().encode())


def _cell(value: str | int | float) -> str:
    """A NaN is an empty cell."""
    if isinstance(value, float):
        return f"{value:.6g}" if value == value else ""
    return str(value)
