"""Which task fills which slot: exact shares by weight, a pure function of the step.

Any step is found from its number alone, so that a run goes on at once wherever it stopped.
"""

import bisect
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from usfm.data.slots import slots_per_type, task_weights, type_weights
from usfm.errors import UserError
from usfm.tasks import Task
from usfm.tasks.fm_uia import check_overrides


@dataclasses.dataclass(frozen=True)
class Stage:
    """Steps of a run in which tasks are mixed alike.

    Attributes:
        start: the first of them, counted from 0.
        weights: task id -> how often its slots come, relative to the others; None for equally.
    """

    start: int = 0
    weights: Mapping[str, float] | None = None


def stages_of(rows: Mapping[str, np.ndarray], data: ConfigDict) -> tuple[Stage, ...]:
    """The stages of a run.

    A task's weight is its number of rows to the power of 1 / temperature, times its own in
    data.weights.

    Args:
        rows: task id -> Row.index of its training rows, int [N].
        data: the config's section: temperature, temperature_schedule, weights.

    Raises:
        UserError: data.weights names a task that the run has not.
    """
    check_overrides("data.weights", data.weights, rows)
    return tuple(
        Stage(
            start,
            {
                task_id: weight * data.weights.get(task_id, 1)
                for task_id, weight in mixing_weights(rows, temperature).items()
            },
        )
        for start, temperature in temperatures(data).items()
    )


def mixing_weights(rows: Mapping[str, np.ndarray], temperature: float) -> dict[str, float]:
    """How often each task is to be drawn: its number of rows to the power of 1 / temperature.

    Args:
        rows: task id -> Row.index of its training rows, int [N].
        temperature: 1 = in proportion to rows; the higher, the more alike; 0 = all alike, the
            limit.

    Returns:
        task id -> weight, relative to the others; 0 where a task has no row, but for temperature 0.
    """
    power = 1 / temperature if temperature else 0.0
    return {task_id: float(len(of_task)) ** power for task_id, of_task in rows.items()}


def temperatures(data: ConfigDict) -> dict[int, float]:
    """The temperatures of a run by the first step of each, counted from 0.

    Args:
        data: the config's section: temperature, temperature_schedule ('STEP=TEMPERATURE,...').

    Raises:
        UserError: one that cannot be, or steps that do not rise; it names the field.
    """
    found = {0: data.temperature}
    named = {0: f"data.temperature={data.temperature}"}
    for part in filter(None, data.temperature_schedule.split(",")):
        name = f"data.temperature_schedule: {part.strip()!r}"
        step, _, temperature = part.partition("=")
        try:
            start, value = int(step), float(temperature)
        except ValueError:
            raise UserError(f"{name} is not STEP=TEMPERATURE, such as 5000=2") from None
        if start <= max(found):
            raise UserError(f"{name} is not after step {max(found)}: give rising steps, above 0")
        found[start], named[start] = value, name
    for start, temperature in found.items():
        if temperature != 0 and not 0.1 <= temperature < float("inf"):
            raise UserError(
                f"{named[start]}: give 0 (all tasks alike), or 0.1 or more (1 = in proportion to "
                "their rows)"
            )
    return found


@dataclasses.dataclass(frozen=True)
class Mix:
    """Which tasks fill the slots of every step.

    A type has the slots that its tasks' weights of the first stage give it, in all stages: so the
    program of a step stays one. Within a type they are dealt to its tasks in exact proportion to
    the stage's weights, rounded to hundredths of the least.

    Attributes:
        tasks: of the run, sorted by id.
        size: slots of a step, all processes together.
        stages: in their order, the first from step 0.
    """

    tasks: tuple[Task, ...]
    size: int
    stages: tuple[Stage, ...] = (Stage(),)

    @functools.cached_property
    def slots(self) -> dict[str, int]:
        """Slots of each type in a step, in a batch's order.

        Raises:
            UserError: fewer slots than types, or a weight that is not above zero.
        """
        return slots_per_type(self.tasks, self.stages[0].weights, self.size)

    def of(self, step: int) -> Iterator[tuple[int, int]]:
        """For each slot of a step, its task's index and which slot of that task it is, from 0."""
        for deals in self._deals.values():
            yield from _at(deals, step).of(step)

    def dealt(self, steps: int) -> dict[str, int]:
        """Task id -> its slots in the first steps of a run."""
        counts = np.zeros(len(self.tasks), np.int64)
        for deals in self._deals.values():
            deal = _at(deals, steps)
            counts[list(deal.tasks)] = deal.until(steps)
        return dict(zip([task.id for task in self.tasks], counts.tolist(), strict=True))

    def shares(self, stage: Stage) -> dict[str, float]:
        """Task id -> its share of the slots of a stage's steps; a type's is of whole slots."""
        weights = task_weights(self.tasks, stage.weights)
        of_type = type_weights(self.tasks, weights)
        return {
            task.id: self.slots[task.type] / self.size * weights[task.id] / of_type[task.type]
            for task in self.tasks
        }

    @functools.cached_property
    def _deals(self) -> dict[str, list["_Deal"]]:
        """The stages of each type."""
        deals: dict[str, list[_Deal]] = {type_: [] for type_ in self.slots}
        for stage in self.stages:
            weights = task_weights(self.tasks, stage.weights)
            for type_, slots in self.slots.items():
                tasks = tuple(i for i, task in enumerate(self.tasks) if task.type == type_)
                before = deals[type_][-1].until(stage.start) if stage.start else [0] * len(tasks)
                shares = _hundredths([weights[self.tasks[i].id] for i in tasks])
                deals[type_].append(_Deal(stage.start, slots, tasks, shares, tuple(before)))
        return deals


@dataclasses.dataclass(frozen=True)
class _Deal:
    """The slots of one type in the steps of one stage.

    Attributes:
        start: the first step.
        slots: of a step.
        tasks: indices of the type's tasks.
        weights: of each of them.
        before: slots that each had before the stage.
    """

    start: int
    slots: int
    tasks: tuple[int, ...]
    weights: tuple[int, ...]
    before: tuple[int, ...]

    def of(self, step: int) -> Iterator[tuple[int, int]]:
        first = (step - self.start) * self.slots
        seen = self._counts(first)
        for end in range(first + 1, first + self.slots + 1):
            counts = self._counts(end)
            dealt = next(i for i, count in enumerate(counts) if count > seen[i])
            yield self.tasks[dealt], seen[dealt]
            seen = counts

    def until(self, step: int) -> list[int]:
        """Slots of each task in all steps before this one."""
        return self._counts((step - self.start) * self.slots)

    def _counts(self, slots: int) -> list[int]:
        """Slots of each task after so many slots of the stage.

        One task after the other takes its share, rounded up, of what those before it left. In
        whole numbers, which are exact at any step. One slot more is one more of one task.
        """
        counts, weight_left = [], sum(self.weights)
        for weight, had in zip(self.weights, self.before, strict=True):
            left = slots * (weight_left - weight) // weight_left
            counts.append(had + slots - left)
            slots, weight_left = left, weight_left - weight
        return counts


def _at(deals: Sequence[_Deal], step: int) -> _Deal:
    return deals[bisect.bisect_right(deals, step, key=lambda deal: deal.start) - 1]


def _hundredths(weights: Sequence[float]) -> tuple[int, ...]:
    """Weights in hundredths of the least."""
    least = min(weights)
    return tuple(round(100 * weight / least) for weight in weights)
