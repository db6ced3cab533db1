"""In which order a task walks through its rows: any place of the endless walk at once."""

import dataclasses
import functools

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Epochs:
    """Every row once an epoch, in an order that is new every epoch.

    Made an epoch at a time, because grain's shuffle takes up to 0.2 ms a row for tasks of some
    hundred rows: more than reading the images.

    Attributes:
        rows: int [N].
        seed: of the orders.
    """

    rows: np.ndarray
    seed: tuple[int, ...]

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """The rows at these places of the walk, int [n]."""
        epochs, places = np.divmod(positions, len(self.rows))
        found = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            of_epoch = epochs == epoch
            found[of_epoch] = _order(len(self.rows), (*self.seed, epoch))[places[of_epoch]]
        return self.rows[found]


class ByClass:
    """All classes that there are take turns, in an order that is new every turn.

    Each class walks through its own rows by epochs, so a row of a small class comes more often.
    """

    def __init__(self, rows: np.ndarray, classes: np.ndarray, seed: tuple[int, ...]):
        """Takes rows int [N], their classes int [N] and the seed of the orders."""
        present = np.unique(classes)
        self._turns = Epochs(np.arange(len(present)), (*seed, 0))
        self._rows = [
            Epochs(rows[classes == class_], (*seed, nth))
            for nth, class_ in enumerate(present.tolist(), start=1)
        ]

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """The rows at these places of the walk, int [n]."""
        turns, classes = positions // len(self._rows), self._turns(positions)
        found = np.empty(len(positions), np.int32)
        for class_ in np.unique(classes).tolist():
            of_class = classes == class_
            found[of_class] = self._rows[class_](turns[of_class])
        return found


@functools.lru_cache(maxsize=1024)  # room for the present and next epoch of every task and class
def _order(length: int, seed: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).permutation(length).astype(np.int32)
