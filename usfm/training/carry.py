"""What a run with other tasks takes over from a state: all that tasks share, and each one's own."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from usfm.errors import UserError
from usfm.models.functional import path_name
from usfm.tasks import Task

_Places = tuple[list[int], list[int]]


def carried(old: Any, fresh: Any, before: Sequence[Task], now: Sequence[Task]) -> Any:
    """A fresh tree with all that the old one of other tasks has for it.

    A task in both keeps its head, its embedding, their moments and averages, and what the
    multi-task method remembers of it, whatever its places in the two lists. What is of tasks that
    are left out is left; what is of new ones stays as it is in the fresh tree.

    Args:
        old: the parameters, or the train state, of a model of `before`.
        fresh: those of the same model of `now`.
        before: tasks, sorted by id.
        now: tasks, sorted by id.
    """
    leaves = jax.tree_util.tree_leaves_with_path(old)
    saved = {path_name(path): leaf for path, leaf in leaves}

    def leaf(path: Any, value: jax.Array) -> jax.Array:
        name = path_name(path)
        if name not in saved:
            return value
        found = saved[name]
        if name.startswith("multitask/"):  # numbers, [T] and [T, T]
            return _with_rows(value, found, _places(before, now), axes=found.ndim)
        if head := re.search(r"(?:^|/)heads/(\w+)/", name):
            of_type = [[t for t in tasks if t.type == head[1]] for tasks in (before, now)]
            return _with_rows(value, found, _places(*of_type), axes=1)
        if name.endswith("task_embedding"):
            return _with_rows(value, found, _places(before, now), axes=1)
        return found

    return jax.tree_util.tree_map_with_path(leaf, fresh)


def told(before: Sequence[Task], now: Sequence[Task]) -> str:
    """What a person is told of the tasks that come and go.

    Raises:
        UserError: a task of both has another form now, so that its head does not fit.
    """
    old, new = ({task.id: task for task in tasks} for tasks in (before, now))
    for task_id in old.keys() & new.keys():
        a, b = old[task_id], new[task_id]
        if (a.type, a.size) != (b.type, b.size):
            raise UserError(
                f"task '{task_id}' is {b.type} of {b.size} now and was {a.type} of {a.size}: its "
                "head does not fit; give it another id, or train in another --workdir"
            )
    said = {
        "kept": [task_id for task_id in new if task_id in old],
        "new, with fresh heads": [task_id for task_id in new if task_id not in old],
        "left out": [task_id for task_id in old if task_id not in new],
    }
    return "tasks " + "; ".join(f"{how}: {', '.join(ids)}" for how, ids in said.items() if ids)


def _places(before: Sequence[Task], now: Sequence[Task]) -> _Places:
    """Where the tasks of both are in either."""
    old, new = ([task.id for task in tasks] for tasks in (before, now))
    both = [task_id for task_id in old if task_id in new]
    return [old.index(task_id) for task_id in both], [new.index(task_id) for task_id in both]


def _with_rows(value: jax.Array, found: jax.Array, places: _Places, *, axes: int) -> jax.Array:
    """`value` with rows of `found` along leading axes; of the other axes, what both have."""
    if not axes:
        return found
    old, new = (np.ix_(*[rows] * axes) for rows in places)
    rest = tuple(
        slice(min(a, b)) for a, b in zip(value.shape[axes:], found.shape[axes:], strict=True)
    )
    return value.at[(*new, *rest)].set(found[(*old, *rest)])
