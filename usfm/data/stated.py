"""The tasks of a data folder, as its lines state them."""

from collections.abc import Mapping, Sequence

from usfm.data.faults import Fault
from usfm.data.labels import whole_number
from usfm.data.lines import Line
from usfm.tasks import TYPES, Task
from usfm.tasks.fm_uia import describe

# The class ids of a mask are bytes, and 255 marks what is to be ignored.
SIZES = range(1, 256)


def stated(line: Line) -> tuple[str, int] | None:
    """The type and size (num_classes) that a line gives its task; None if one is unusable."""
    type = line.fields.get("task_name", "").strip().lower()
    size = whole_number(line.fields.get("num_classes", ""))
    return (type, size) if type in TYPES and size is not None and size in SIZES else None


def find_tasks(
    lines: Sequence[Line], groups: Mapping[str, str] | None, flip_ok: Mapping[str, bool] | None
) -> tuple[dict[str, Task], dict[str, list[Fault]]]:
    """Finds out which tasks there are: the first line that says so gives type and size.

    Returns:
        The tasks by id, in the order of the ids, with type "" where no line gives a usable one;
        and for each the faults of lines that contradict its first.
    """
    first: dict[str, tuple[str, int, Line]] = {}
    contradictions: dict[str, dict[tuple[str, int], Fault]] = {}
    for line in lines:
        if line.excess or not line.task_id:
            continue
        seen = contradictions.setdefault(line.task_id, {})
        given = stated(line)
        if given is None:
            continue
        type, size, where = first.setdefault(line.task_id, (*given, line))
        if given != (type, size) and given not in seen:
            # A fault of the task, not of the line: which of the two is right cannot be told.
            fault = (
                f"task {line.task_id!r} is {given[0]} with num_classes {given[1]} in line "
                f"{line.number}, but {type} with {size} in {where.csv} line {where.number}"
            )
            remedy = "give a task_id one type and one num_classes"
            seen[given] = Fault(line.csv, None, "task_id", fault, remedy)
    tasks = {
        id: describe(id, *first[id][:2] if id in first else ("", 0), groups, flip_ok)
        for id in sorted(contradictions)
    }
    return tasks, {id: list(seen.values()) for id, seen in contradictions.items()}
