"""The partition of tasks with the greatest value, by local moves from many starts at once.

The value of a partition is the sum over its groups S of (sum of weight[i, j] over pairs) / |S|. All
starts of all problems are rows of the same arrays, so that 27 tasks need no compiled solver.
"""

import numpy as np

_TIE = 1e-9  # of the largest weight, paid for each merge: what gains nothing stays apart
_ROUNDING = 1e-12


def best_partitions(score: np.ndarray, *, starts: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Climbs from all alone, all together, and random partitions.

    Args:
        score: float [problems, T, T]; [i, j] is what i does for j; the diagonal is not read.
        starts: for each problem, 2 or more.
        seed: of the random starts.

    Returns:
        The partitions where each climb ended, int [problems, starts, T], the best first, and
        their values [problems, starts]. Tasks of a group carry the index of its first task.
    """
    problems, tasks = score.shape[:2]
    rng = np.random.default_rng(seed)
    labels = rng.integers(rng.integers(1, tasks + 1, (starts, 1)), size=(starts, tasks))
    labels[0], labels[1] = np.arange(tasks), 0
    weight = np.repeat(_weights(score), starts, 0)
    ends = _climb(weight, np.tile(labels, (problems, 1)))
    values = _value(weight, ends).reshape(problems, starts)
    order = np.argsort(-values, 1, kind="stable")
    ends = ends.reshape(problems, starts, tasks)
    return np.take_along_axis(ends, order[..., None], 1), np.take_along_axis(values, order, 1)


def best_neighbour(score: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """The best partition one move away from labels [T], and its value (-inf if there is none)."""
    weight = _weights(score[None])
    improvement, moved = _step(weight, labels[None])
    return _canonical(moved)[0], float(_value(weight, labels[None])[0] + improvement[0])


def together(labels: np.ndarray) -> np.ndarray:
    """Whether two tasks are of one group: bool [..., T, T] of labels [..., T]."""
    return labels[..., :, None] == labels[..., None, :]


def _weights(score: np.ndarray) -> np.ndarray:
    weight = score + score.swapaxes(1, 2)
    weight = weight - _TIE * np.abs(weight).max((1, 2), keepdims=True)
    return weight * (1 - np.eye(weight.shape[1]))


def _canonical(labels: np.ndarray) -> np.ndarray:
    return together(labels).argmax(-1)


def _value(weight: np.ndarray, labels: np.ndarray) -> np.ndarray:
    same = together(labels)
    return ((weight * same).sum(2) / same.sum(2)).sum(1) / 2


def _climb(weight: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Takes the best move of each row until no row has one that improves it."""
    labels, active = labels.copy(), np.arange(len(labels))
    least = _ROUNDING * np.abs(weight).max((1, 2))
    while len(active):
        improvement, moved = _step(weight[active], labels[active])
        better = improvement > least[active]
        active = active[better]
        labels[active] = moved[better]
    return _canonical(labels)


def _step(weight: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best neighbour of each row, be it better or not.

    Args:
        weight: float [R, T, T], symmetric, 0 on the diagonal.
        labels: int [R, T], from 0 to T - 1.

    Returns:
        By how much its value is greater [R]; its labels [R, T].
    """
    rows, tasks = labels.shape
    each = np.arange(tasks)
    member = (labels[:, :, None] == each).astype(float)  # [R, T, group]
    toward = weight @ member  # of a task to all of a group
    size = member.sum(1)
    inside = (member * toward).sum(1) / 2
    worth = _share(inside, size)
    home = np.take_along_axis(toward, labels[:, :, None], 2)  # [R, T, 1]
    own_size, own_inside, own_worth = (
        np.take_along_axis(group, labels, 1)[:, :, None] for group in (size, inside, worth)
    )

    # A task moves to a group; an empty one takes it out.
    move = _share(own_inside - home, own_size - 1) - own_worth
    move = move + _share(inside[:, None] + toward, size[:, None] + 1) - worth[:, None]
    move[(member > 0) | ((own_size == 1) & (size[:, None] == 0))] = -np.inf

    # Two groups become one.
    across = member.swapaxes(1, 2) @ toward
    merge = _share(inside[:, :, None] + inside[:, None] + across, size[:, :, None] + size[:, None])
    merge = merge - worth[:, :, None] - worth[:, None]
    full = size > 0
    merge[~(full[:, :, None] & full[:, None] & (each[:, None] != each))] = -np.inf

    # Two tasks change places.
    there = np.take_along_axis(toward, np.repeat(labels[:, None], tasks, 1), 2)
    half = _share(own_inside - home + there.swapaxes(1, 2) - weight, own_size) - own_worth
    swap = half + half.swapaxes(1, 2)
    same = together(labels)
    swap[same | ((own_size == 1) & (own_size == 1).swapaxes(1, 2))] = -np.inf

    # A task leaves with those of its group that it has more than its mean with.
    leaves = same & ((weight > home / np.maximum(own_size - 1, 1)) | (each[:, None] == each))
    stays = same & ~leaves
    split = sum(
        _share((part * (part.astype(float) @ weight)).sum(2) / 2, part.sum(2))
        for part in (leaves, stays)
    )
    split = split - own_worth[:, :, 0]
    split[~stays.any(2)] = -np.inf

    choices = [move, merge, swap, split]
    ends = np.cumsum([choice[0].size for choice in choices])
    flat = np.concatenate([choice.reshape(rows, -1) for choice in choices], 1)
    best = flat.argmax(1)
    kind = np.searchsorted(ends, best, side="right")
    first, second = np.divmod(best - np.concatenate([[0], ends])[kind], tasks)

    moved = labels.copy()
    empty = (size == 0).argmax(1)
    r = np.flatnonzero(kind == 0)
    moved[r, first[r]] = second[r]
    r = np.flatnonzero(kind == 1)
    moved[r] = np.where(labels[r] == first[r, None], second[r, None], labels[r])
    r = np.flatnonzero(kind == 2)
    moved[r, first[r]], moved[r, second[r]] = labels[r, second[r]], labels[r, first[r]]
    r = np.flatnonzero(kind == 3)
    moved[r] = np.where(leaves[r, second[r]], empty[r, None], labels[r])
    return flat[np.arange(rows), best], moved


def _share(inside: np.ndarray, size: np.ndarray) -> np.ndarray:
    return inside / np.maximum(size, 1)
