"""What recorded inner products of task gradients say about pairs of tasks.

Everything is averaged over steps as inner products first: the cosine of two gradients of a few
images each is noise, whose sign is a coin toss. To first order a step along g_i changes L_j by
-lr G_ij, so that lr G_ij / L_j is TAG's lookahead affinity (Fifty et al. 2021, arXiv 2109.04617),
at no extra pass.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

BLOCKS = 20  # of steps, whose means tell how sure the mean of all is


@dataclasses.dataclass(frozen=True)
class Affinity:
    """Means over steps, with the half-widths of their 95 % intervals.

    Attributes:
        tasks: ids.
        steps: int [T, T], in which both tasks were present.
        product, product_interval: float [T, T] of g_i . g_j.
        square_norm: float [T] of |E g_i|^2, unbiased where halves of slots were recorded.
        cosine: float [T, T] of the mean gradients; NaN where a norm is not known to be above 0.
        lookahead, lookahead_interval: float [T, T] of lr G_ij / L_j, what a step along task i takes
            off the loss of task j, as a share of it.
    """

    tasks: tuple[str, ...]
    steps: np.ndarray
    product: np.ndarray
    product_interval: np.ndarray
    square_norm: np.ndarray
    cosine: np.ndarray
    lookahead: np.ndarray
    lookahead_interval: np.ndarray

    @property
    def conflicts(self) -> float:
        """The share of pairs whose mean product is negative; NaN without a pair."""
        pairs = np.triu(self.steps > 0, 1)
        return float((self.product < 0)[pairs].mean()) if pairs.any() else float("nan")


def affinity(
    record: Mapping[str, np.ndarray], *, preconditioned: bool = False, group: str | None = None
) -> Affinity:
    """Averages a run's record.

    Args:
        record: as training/record.py reads it, or some of its steps.
        preconditioned: of the gradients as the optimizer scales them.
        group: of layers; None = all together.
    """
    prefix = "preconditioned_" if preconditioned else ""
    names = record["groups"].tolist()
    chosen = slice(None) if group is None else [names.index(group)]
    gramian = record[f"{prefix}gramian"][:, chosen].sum(1, dtype=np.float64)
    norms = record[f"{prefix}square_norm"][:, chosen].sum(1, dtype=np.float64)
    losses, present = record["losses"].astype(np.float64), record["present"]
    both = present[:, :, None] & present[:, None, :]

    product, product_interval = _mean(gramian, both)
    rate = record["learning_rate"][:, None, None]
    ahead = rate * gramian / np.where(present, losses, 1)[:, None, :]
    lookahead, lookahead_interval = _mean(ahead, both)
    known = present & np.isfinite(norms)
    square_norm = np.where(known, norms, 0).sum(0) / np.maximum(known.sum(0), 1)
    square_norm = np.where(known.any(0), square_norm, np.diagonal(product))
    length = np.sqrt(np.where(square_norm > 0, square_norm, np.nan))
    cosine = product / length[:, None] / length[None, :]
    np.fill_diagonal(cosine, np.where(np.isfinite(length), 1.0, np.nan))
    return Affinity(
        tuple(record["tasks"].tolist()),
        both.sum(0),
        product,
        product_interval,
        square_norm,
        cosine,
        lookahead,
        lookahead_interval,
    )


def _mean(values: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means [T, T] over steps, and 1.96 standard errors of them from means of blocks of steps.

    Neighbouring steps are alike; blocks of many are less so. NaN where there is nothing to say.
    """
    values = np.where(there, values, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = values.sum(0) / there.sum(0)
        blocks = np.array_split(np.arange(len(values)), min(BLOCKS, len(values)))
        means = np.stack([values[b].sum(0) / there[b].sum(0) for b in blocks])
    known = np.isfinite(means).sum(0)
    spread = np.nansum((means - mean) ** 2, 0) / np.maximum(known - 1, 1)
    interval = 1.96 * np.sqrt(spread / np.maximum(known, 1))
    return mean, np.where(known > 1, interval, np.nan)
