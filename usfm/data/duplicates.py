"""Lines that say the same thing twice, or two things of one image."""

import dataclasses
from collections.abc import Sequence

from usfm.data.faults import Fault
from usfm.data.files import Facts
from usfm.data.labels import Label
from usfm.data.lines import Line
from usfm.tasks import Task


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line with nothing wrong, and what is known of its files."""

    line: Line
    task: Task
    label: Label
    image_file: str
    image: Facts
    mask: Facts | None


def find_duplicates(entries: Sequence[Entry]) -> dict[int, Fault]:
    """Finds lines on one image of one task that cannot stand beside each other.

    Equal lines are duplicates of the first. Lines that differ contradict each other, so all are
    faulty; only in detection are they several boxes of one image.

    Returns:
        Position among the entries -> what is wrong there.
    """
    on_image: dict[tuple[str, str], dict[Label, list[int]]] = {}
    for position, entry in enumerate(entries):
        by_label = on_image.setdefault((entry.task.id, entry.image_file), {})
        by_label.setdefault(entry.label, []).append(position)
    faults = {}
    for by_label in on_image.values():
        firsts = [positions[0] for positions in by_label.values()]
        task = entries[firsts[0]].task
        for positions in by_label.values():
            first = entries[positions[0]].line
            if len(firsts) > 1 and task.type != "detection":
                other = entries[firsts[1] if positions[0] == firsts[0] else firsts[0]].line
                fault = f"has another label in {other.csv} line {other.number}"
                contradicting = positions, fault, "keep the row that is right"
            else:
                fault = f"repeats {first.csv} line {first.number}"
                contradicting = positions[1:], fault, "remove one of the two rows"
            for position in contradicting[0]:
                faults[position] = entries[position].line.fault("image_path", *contradicting[1:])
    return faults
