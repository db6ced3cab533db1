"""How sure a grouping is: found again from resampled steps and seeds, and from fewer steps."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from usfm.errors import UserError
from usfm.study.affinity import affinity
from usfm.study.grouping import scores, shrink
from usfm.study.search import best_partitions, together

RESAMPLES = 100
BLOCKS = 10  # of neighbouring steps, of each record; steps alone are too alike to be resampled
_STARTS = 10  # of each search; one in sixty hard ones of 9 tasks then misses the very best

_NAMES = ("tasks", "groups")  # of a record, which have no axis of steps

Record = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Stability:
    """The partitions that other steps and seeds would have led to.

    Attributes:
        tasks: ids.
        partitions: int [resamples, T]; tasks of equal numbers are one group.
        steps: how many recorded steps were enough: from then on all of more steps lead to the same
            partition, to a tenth of the record. None where it changed until the end.
    """

    tasks: tuple[str, ...]
    partitions: np.ndarray
    steps: int | None

    @property
    def together(self) -> np.ndarray:
        """How often each pair is in one group: float [T, T], shares of the resamples."""
        return together(self.partitions).mean(0)

    def agreement(self, labels: np.ndarray) -> np.ndarray:
        """Shares [T] of the resamples that agree with a partition [T] about each task.

        One agrees if its group of the task and the given one have more than half of their union in
        common. One task that comes and goes then leaves the others of its group as sure as they
        are; a task that is alone, or a pair, has to be just that, or a pair with one more.
        """
        found, given = together(self.partitions), together(labels)
        return ((found & given).sum(2) > (found | given).sum(2) / 2).mean(0)


def join(records: Sequence[Record]) -> dict[str, np.ndarray]:
    """Runs of the same tasks as one record, their steps one after the other.

    Raises:
        UserError: runs of different tasks.
    """
    first = records[0]["tasks"].tolist()
    for record in records:
        if record["tasks"].tolist() != first:
            raise UserError(
                f"records of different tasks: {', '.join(first)}, and"
                f" {', '.join(record['tasks'].tolist())}; give runs of the same ones"
            )
    return {
        name: value if name in _NAMES else np.concatenate([record[name] for record in records])
        for name, value in records[0].items()
    }


def stability(records: Sequence[Record], *, seed: int = 0) -> Stability:
    """Resamples runs, and within each of them blocks of neighbouring steps.

    Args:
        records: of one run a seed, of the same tasks. One run says nothing about other seeds.
        seed: of the resampling and of the searches.
    """
    blocks = [list(_split(record)) for record in records]
    run = np.repeat(np.arange(len(records)), [len(parts) for parts in blocks])
    found = [affinity(part, preconditioned=True) for parts in blocks for part in parts]
    steps = np.stack([block.steps for block in found]).astype(float)
    totals = np.stack([np.where(b.steps > 0, b.lookahead * b.steps, 0) for b in found])
    rng = np.random.default_rng(seed)
    drawn = np.stack([_draw(run, rng) for _ in range(RESAMPLES)])
    with np.errstate(invalid="ignore"):
        resampled = np.einsum("pb,bij->pij", drawn, totals) / np.einsum("pb,bij->pij", drawn, steps)

    length = len(records[0]["step"])
    lengths = sorted({-(-length * tenth // 10) for tenth in range(1, 11)})
    shorter = [
        scores(affinity(join([_take(r, slice(n)) for r in records]), preconditioned=True))
        for n in lengths
    ]
    # A resample has the noise of the whole twice: in what it is drawn from, and in the drawing.
    searched = [
        shrink(resampled, np.sqrt(2) * shorter[-1].interval),
        *(shrink(part.score, part.interval)[None] for part in shorter),
    ]
    ends, _ = best_partitions(np.concatenate(searched), starts=_STARTS, seed=seed)
    partitions = ends[:, 0]
    return Stability(
        shorter[-1].tasks,
        partitions[:RESAMPLES],
        _settled(partitions[RESAMPLES:], lengths),
    )


def _settled(partitions: np.ndarray, lengths: Sequence[int]) -> int | None:
    """The length from which on all lead to the last partition, if any but the last one does."""
    other = np.flatnonzero((partitions != partitions[-1]).any(1))
    first = other[-1] + 1 if len(other) else 0
    return lengths[first] if first < len(lengths) - 1 else None


def _draw(run: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How often each block is drawn: runs with replacement, then as many blocks of each of them."""
    count = np.zeros(len(run))
    runs = run[-1] + 1
    for drawn in rng.integers(runs, size=runs):
        own = np.flatnonzero(run == drawn)
        np.add.at(count, rng.choice(own, len(own)), 1)
    return count


def _split(record: Record) -> Iterator[Record]:
    steps = len(record["step"])
    for part in np.array_split(np.arange(steps), min(BLOCKS, steps)):
        yield _take(record, slice(part[0], part[-1] + 1))


def _take(record: Record, steps: slice) -> Record:
    return {name: value if name in _NAMES else value[steps] for name, value in record.items()}
