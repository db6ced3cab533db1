"""From a config to the study that it asks for."""

import pathlib
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from usfm.data.folder import Folder
from usfm.data.source import training_rows
from usfm.data.splits import Splits
from usfm.errors import UserError
from usfm.study.cells import ADVISED, TASK_SPECIFIC, Cell, Study
from usfm.tasks import Task, plans
from usfm.tasks.plans import Plan
from usfm.tasks.suggest import suggest

ALL_TASK = "all_task"
_KNOWN = {
    TASK_SPECIFIC: plans.task_specific,
    "clinically_grouped": plans.clinically_grouped,
    ALL_TASK: plans.all_task,
}


def plan(config: ConfigDict, folder: Folder, splits: Splits) -> Study:
    """The study of a config, without the plan that is still to be found.

    Raises:
        UserError: a plan, fraction or seed that cannot be; it names the field.
    """
    given = config.study
    if config.train.seconds:
        raise UserError(
            f"train.seconds={config.train.seconds:g}: the runs of a study are compared after equal "
            "numbers of steps; give --config.train.steps"
        )
    for field, alike in (("temperature", "0"), ("temperature_schedule", "''"), ("weights", "{}")):
        if config.data[field]:
            raise UserError(
                f"data.{field} is set: in a study all tasks of a run have as many slots; give "
                f"--config.data.{field}={alike}"
            )
    fractions, seeds = tuple(given.fractions), tuple(given.seeds)
    for field, values in (("fractions", fractions), ("seeds", seeds), ("methods", given.methods)):
        if not values or len(set(values)) < len(values):
            raise UserError(f"study.{field}={tuple(values)}: give one or more, each once")
    if not all(0 < fraction <= 1 for fraction in fractions):
        raise UserError(f"study.fractions={fractions}: give shares above 0, up to 1")
    own = partitions(given.partitions, folder.tasks)
    names = dict.fromkeys((TASK_SPECIFIC, *given.plans))
    known = {*_KNOWN, *own, ADVISED}
    finds = ADVISED in names and ADVISED not in own
    for name in names:
        if name not in known:
            raise UserError(f"study.plans: there is no plan {name!r}; {suggest(name, known)}")
    if finds and ALL_TASK not in names:
        raise UserError(
            f"study.plans: '{ADVISED}' is found from what '{ALL_TASK}' records: add '{ALL_TASK}'"
        )
    made = {name: own.get(name) or _KNOWN[name](folder.tasks)
            for name in names if name in own or name in _KNOWN}  # fmt: skip
    return Study(
        tasks=folder.tasks,
        fractions=tuple(sorted(fractions)),
        seeds=seeds,
        methods=tuple(given.methods),
        models=tuple(given.models) or (config.model.variant,),
        partitions={name: dict.fromkeys(fractions, plan) for name, plan in made.items()},
        training_rows={
            fraction: _counts(config, folder, splits, fraction) for fraction in fractions
        },
        finds=finds,
    )


def config_of(
    config: ConfigDict, study: Study, cell: Cell, splits_file: pathlib.Path
) -> ConfigDict:
    """The config of a cell: an ordinary run's."""
    config = config.copy_and_resolve_references()
    slots_per_task = config.study.slots_per_task
    with config.unlocked():
        del config.study
    config.tasks = ",".join(f"task:{id}" for id in cell.tasks)
    config.data.update(fraction=cell.fraction, splits_file=str(splits_file))
    config.model.variant = cell.model
    config.train.seed = cell.seed
    config.watch.tensorboard = False  # nobody looks at hundreds of runs there
    if slots_per_task:
        config.train.slots = slots_per_task * len(cell.tasks)
    config.multitask.update(method=cell.method, record=study.records(cell))
    return config


def partitions(text: str, tasks: Sequence[Task]) -> dict[str, Plan]:
    """Reads study.partitions: 'NAME: a+b | c; NAME: ...'.

    Raises:
        UserError: it cannot be read so, or a plan is no partition of the tasks.
    """
    found = {}
    for one in filter(None, (one.strip() for one in text.split(";"))):
        name, colon, parts = one.partition(":")
        if not colon:
            raise UserError(f"study.partitions: {one!r}: write 'NAME: task+task | task'")
        ids = [sorted(id.strip() for id in part.split("+")) for part in parts.split("|")]
        named = {f"part_{number}": part for number, part in enumerate(ids, start=1)}
        found[name.strip()] = plans.partition(name.strip(), tasks, named)
    return found


def as_text(plan: Plan) -> str:
    """A plan as study.partitions takes it."""
    return f"{plan.name}: " + " | ".join("+".join(ids) for ids in plan.parts.values())


def describe(study: Study, seconds: Mapping[str, float], steps: int) -> str:
    """What will be trained, how much of it, and about how long it takes.

    Args:
        study: planned.
        seconds: type of task -> of a step of one task of that type, as measured.
        steps: of each cell.
    """
    cells = study.cells()
    kinds = {task.id: task.type for task in study.tasks}
    total = sum(steps * seconds[kinds[id]] for cell in cells for id in cell.tasks)
    lines = [
        f"{len(study.tasks)} tasks, fractions {', '.join(f'{f:g}' for f in study.fractions)}, "
        f"{len(study.seeds)} seeds"
    ]
    for name, by_fraction in study.partitions.items():
        parts = by_fraction[study.fractions[-1]].parts
        lines.append(f"  {name:<20} {len(parts):>3} models a fraction and seed")
    lines.append(
        f"{len(cells)} different runs of {steps} steps: about {total / 60:.0f} minutes of training "
        "by one process"
    )
    return "\n".join(lines)


def _counts(config: ConfigDict, folder: Folder, splits: Splits, fraction: float) -> dict[str, int]:
    """Training rows of each task at a fraction."""
    data = config.data.copy_and_resolve_references()
    data.fraction = fraction
    return {id: len(rows) for id, rows in training_rows(folder, splits, data).items()}
