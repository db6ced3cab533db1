"""A record in which every stretch of a run counts the same.

Gradients are by far the largest in the first steps, and so are their inner products: in a plain
mean over a run the first twentieth can outweigh all the rest, and its interval covers everything.
"""

from collections.abc import Mapping

import numpy as np

from usfm.study.affinity import BLOCKS


def level(record: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scales inner products of each block of steps to the size of the run's median block.

    The size of a task in a block is the root of its mean lr G_ii / L_i, its lookahead affinity to
    itself; G_ij is divided by that of i and of j, so that G stays symmetric and signs and cosines
    within a block stay what they are. A lookahead affinity is then one of a typical step.

    Returns:
        The record, with all groups of layers summed as one.
    """
    levelled = {**record, "groups": np.array(["all"])}
    blocks = np.array_split(np.arange(len(record["step"])), min(BLOCKS, len(record["step"])))
    rate, present = record["learning_rate"][:, None], record["present"]
    losses = np.where(present, record["losses"], 1)
    for prefix in ("", "preconditioned_"):
        gramian = record[f"{prefix}gramian"].sum(1, dtype=np.float64)
        norms = record[f"{prefix}square_norm"].sum(1, dtype=np.float64)
        own = np.where(present, rate * np.diagonal(gramian, axis1=1, axis2=2) / losses, 0)
        size = np.array([own[b].sum(0) / np.maximum(present[b].sum(0), 1) for b in blocks])
        size = np.sqrt(np.where(size > 0, size, np.nan))
        median = np.array([np.median(s[s > 0]) if (s > 0).any() else 1.0 for s in size.T])
        factor = np.where(size > 0, median / size, 1)
        factor = np.repeat(factor, [len(b) for b in blocks], 0)
        gramian = gramian * factor[:, :, None] * factor[:, None, :]
        levelled[f"{prefix}gramian"] = gramian[:, None]
        levelled[f"{prefix}square_norm"] = (norms * factor**2)[:, None]
    return levelled
