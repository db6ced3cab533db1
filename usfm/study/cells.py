"""A study as what has to be trained: plans x fractions of the data x seeds, as cells.

A cell is one model trained on a set of tasks. Two plans that keep the same tasks together share
the cell: what differs between plans is which cells a task's figures come from.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from usfm.evaluation.files import write_atomically
from usfm.tasks import Task
from usfm.tasks.plans import Plan

FILE = "study.json"
TASK_SPECIFIC = "task_specific"  # the plan that gains are measured against
ADVISED = "advised"  # the plan that is found from what all_task recorded, at each fraction


@dataclasses.dataclass(frozen=True)
class Cell:
    """One model to be trained.

    Attributes:
        tasks: sorted ids.
        fraction: of the training rows.
        seed: of the run; the split and what a fraction keeps are the same for all seeds.
        method: multi-task method; "sum" where there is one task.
        model: variant of the encoder.
    """

    tasks: tuple[str, ...]
    fraction: float
    seed: int
    method: str
    model: str

    @property
    def name(self) -> str:
        """Of its workdir below cells/."""
        first, others = self.tasks[0], len(self.tasks) - 1
        digest = hashlib.sha256(",".join(self.tasks).encode()).hexdigest()[:8]
        tasks = f"{first}_and_{others}_more_{digest}" if others else first
        return f"{tasks}-{self.method}-{self.model}-fraction_{self.fraction:g}-seed_{self.seed}"


@dataclasses.dataclass(frozen=True)
class Arm:
    """What is compared: a plan carried out by a multi-task method with a model.

    Attributes:
        plan: its name; the partition may differ from fraction to fraction, see Study.partitions.
        method: multi-task method of its parts of two tasks or more.
        model: variant of the encoder.
    """

    plan: str
    method: str
    model: str


@dataclasses.dataclass(frozen=True)
class Study:
    """What is trained and compared; study.json.

    Attributes:
        tasks: sorted by id.
        fractions: of the training rows, rising.
        seeds: of the runs.
        methods: multi-task methods.
        models: variants of the encoder.
        partitions: name of a plan -> fraction -> the tasks trained together. ADVISED is absent
            until the cells that it is found from are trained.
        training_rows: fraction -> task id -> number of rows that are trained on.
        finds: ADVISED is found from what the runs of all tasks record, and not given.
    """

    tasks: tuple[Task, ...]
    fractions: tuple[float, ...]
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    models: tuple[str, ...]
    partitions: Mapping[str, Mapping[float, Plan]]
    training_rows: Mapping[float, Mapping[str, int]]
    finds: bool = False

    @property
    def is_open(self) -> bool:
        """Whether ADVISED is still to be found."""
        return self.finds and ADVISED not in self.partitions

    def records(self, cell: Cell) -> bool:
        """Whether ADVISED is found from what this cell records."""
        first = (self.methods[0], self.models[0])
        return self.finds and self.of_all(cell) and (cell.method, cell.model) == first

    def of_all(self, cell: Cell) -> bool:
        """Whether a cell trains all tasks together."""
        return len(cell.tasks) == len(self.tasks)

    @property
    def arms(self) -> tuple[Arm, ...]:
        """All that is compared; a plan of single tasks alone has no method to choose."""
        return tuple(
            Arm(plan, method, model)
            for model in self.models
            for plan, by_fraction in self.partitions.items()
            for method in (self.methods if _together(by_fraction) else ("sum",))
        )

    def label(self, arm: Arm) -> str:
        """Names an arm by what there is more than one of."""
        parts = [arm.plan]
        if len(self.methods) > 1 and _together(self.partitions[arm.plan]):
            parts.append(arm.method)
        if len(self.models) > 1:
            parts.append(arm.model)
        return "/".join(parts)

    def baseline(self, arm: Arm) -> Arm:
        """The task-specific arm of the same model."""
        return Arm(TASK_SPECIFIC, "sum", arm.model)

    def cell(self, arm: Arm, fraction: float, seed: int, task_id: str) -> Cell:
        """The cell that a task's figures come from."""
        parts = self.partitions[arm.plan][fraction].parts.values()
        (tasks,) = (part for part in parts if task_id in part)
        return self._of(tasks, arm, fraction, seed)

    def cells(self) -> tuple[Cell, ...]:
        """All cells, each once; those of equal shapes stand together, the small ones first."""
        found = {
            self._of(tasks, arm, fraction, seed): None
            for arm in self.arms
            for fraction in self.fractions
            for tasks in self.partitions[arm.plan][fraction].parts.values()
            for seed in self.seeds
        }
        return tuple(sorted(found, key=lambda cell: (len(cell.tasks), self.shape(cell), cell.name)))

    def shape(self, cell: Cell) -> str:
        """What cells have in common that can share a program."""
        tasks = [task for task in self.tasks if task.id in cell.tasks]
        return repr(
            [(task.type, task.size, task.flip_ok) for task in tasks] + [cell.method, cell.model]
        )

    def _of(self, tasks: tuple[str, ...], arm: Arm, fraction: float, seed: int) -> Cell:
        return Cell(tasks, fraction, seed, arm.method if len(tasks) > 1 else "sum", arm.model)


def _together(by_fraction: Mapping[float, Plan]) -> bool:
    return any(len(part) > 1 for plan in by_fraction.values() for part in plan.parts.values())


def write(study: Study, workdir: pathlib.Path) -> None:
    """Writes study.json."""
    content: dict[str, Any] = dataclasses.asdict(study)
    content["partitions"] = {
        name: {f"{fraction:g}": plan.parts for fraction, plan in by_fraction.items()}
        for name, by_fraction in study.partitions.items()
    }
    content["training_rows"] = {f"{f:g}": rows for f, rows in study.training_rows.items()}
    write_atomically(workdir / FILE, json.dumps(content, indent=2).encode() + b"\n")


def read(workdir: pathlib.Path) -> Study:
    """Reads study.json."""
    content = json.loads((workdir / FILE).read_text())
    return Study(
        tasks=tuple(Task(**task) for task in content["tasks"]),
        fractions=tuple(content["fractions"]),
        seeds=tuple(content["seeds"]),
        methods=tuple(content["methods"]),
        models=tuple(content["models"]),
        partitions={
            name: {
                float(fraction): Plan(name, {part: tuple(ids) for part, ids in parts.items()})
                for fraction, parts in by_fraction.items()
            }
            for name, by_fraction in content["partitions"].items()
        },
        training_rows={float(f): rows for f, rows in content["training_rows"].items()},
        finds=content["finds"],
    )


def place(workdir: pathlib.Path, cell: Cell) -> pathlib.Path:
    """Where a cell of the study in a workdir is trained."""
    return workdir / "cells" / cell.name


def workdirs(study: Study, workdir: pathlib.Path) -> Iterator[tuple[Cell, pathlib.Path]]:
    """All cells and where they are trained."""
    for cell in study.cells():
        yield cell, place(workdir, cell)
