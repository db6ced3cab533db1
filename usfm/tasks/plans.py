"""Which tasks are run, and which of them are trained together."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from usfm.errors import UserError
from usfm.tasks.suggest import suggest
from usfm.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Plan:
    """A partition of tasks: one model is trained for each part.

    Attributes:
        name: of the plan.
        parts: name of a part -> the sorted ids of its tasks.
    """

    name: str
    parts: dict[str, tuple[str, ...]]


def task_specific(tasks: Sequence[Task]) -> Plan:
    """One model a task (the paper's TS)."""
    return Plan("task_specific", {task.id: (task.id,) for task in tasks})


def clinically_grouped(tasks: Sequence[Task]) -> Plan:
    """One model a clinical group (the paper's CG)."""
    parts: dict[str, tuple[str, ...]] = {}
    for task in sorted(tasks, key=lambda task: task.id):
        parts[task.group] = (*parts.get(task.group, ()), task.id)
    return Plan("clinically_grouped", parts)


def all_task(tasks: Sequence[Task]) -> Plan:
    """One model for everything (the paper's AU)."""
    return Plan("all_task", {"all": tuple(sorted(task.id for task in tasks))})


def partition(name: str, tasks: Sequence[Task], parts: Mapping[str, Iterable[str]]) -> Plan:
    """Makes a plan of any named parts.

    Args:
        name: of the plan.
        tasks: what has to be covered.
        parts: name of a part -> ids of its tasks.

    Raises:
        UserError: a task in no part or in two, an unknown id, or an empty part; all are named.
    """
    plan = Plan(name, {part: tuple(sorted(ids)) for part, ids in parts.items()})
    known = {task.id for task in tasks}
    given = [id for ids in plan.parts.values() for id in ids]
    faults = [f"part {part!r} is empty" for part, ids in plan.parts.items() if not ids]
    faults += [f"no task {id!r}, {suggest(id, known)}" for id in sorted({*given} - known)]
    faults += [f"{id!r} is in no part" for id in sorted(known - {*given})]
    faults += [
        f"{id!r} is given {given.count(id)} times" for id in sorted({*given}) if given.count(id) > 1
    ]
    if faults:
        raise UserError(f"plan {name!r}: {'; '.join(faults)}; give every task exactly once")
    return plan


def select(tasks: Sequence[Task], expression: str) -> tuple[Task, ...]:
    """Picks the tasks that the config field `tasks` names.

    Args:
        tasks: those of the folder.
        expression: "all", "group:NAME", "task:ID", a bare ID, or a comma list of these.

    Returns:
        The chosen tasks, sorted by id, each once.

    Raises:
        UserError: a name that no task or group has; the message suggests the closest ones.
    """
    named: dict[str, set[str]] = {"all": {task.id for task in tasks}}
    for task in tasks:
        named[f"task:{task.id}"] = {task.id}
        named.setdefault(f"group:{task.group}", set()).add(task.id)
        named.setdefault(task.id, {task.id})
    chosen: set[str] = set()
    for term in (term.strip() for term in expression.split(",")):
        if term not in named:
            raise UserError(f"tasks: nothing is called {term!r}; {suggest(term, named)}")
        chosen |= named[term]
    return tuple(sorted((task for task in tasks if task.id in chosen), key=lambda task: task.id))
