"""goodput.jsonl: where the time of a run goes, over all its starts.

One JSON object a line, {"time": seconds since 1970, "event": ...}, only ever appended to:

    begin                     a start of the run
    loop, step                all is ready; steps after `step` follow
    compiled, step            the first of them is under way
    steps, step, data_wait    steps up to `step` are done; seconds since the line before that their
        and others            batches were waited for, and that went by for checkpoints, ...
    evaluated                 the model was scored

Goodput is the share of the time of all starts in which steps were made that did not have to be made
again (as ML Goodput Measurement by Google Cloud has it, without the time between starts, which
here may be a night).
"""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from usfm import processes

FILE = "goodput.jsonl"
STEPS, REPEATED = "steps", "repeated steps"


def note(workdir: pathlib.Path, event: str, **values: Any) -> None:
    """Appends an event that ends now; only process 0 does."""
    if not processes.is_first():
        return
    line = {"time": round(time.time(), 3), "event": event, **values}
    # A disk that takes nothing is told of by the log, and is no reason to end.
    with contextlib.suppress(OSError), (workdir / FILE).open("a") as file:
        file.write(json.dumps(line) + "\n")


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The events of a run, but for a line that was cut short by a kill."""
    events = []
    path = workdir / FILE
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events


@dataclasses.dataclass(frozen=True)
class Goodput:
    """Where the time of a run went.

    Attributes:
        seconds: by what they went to; "steps" are those that count.
        starts: how often the run was started.
    """

    seconds: Mapping[str, float]
    starts: int

    @property
    def share(self) -> float:
        """The goodput, from 0 to 1."""
        return self.seconds.get(STEPS, 0.0) / (sum(self.seconds.values()) or 1.0)

    def __str__(self) -> str:
        total = sum(self.seconds.values())
        starts = f"{self.starts} start" + ("s" if self.starts != 1 else "")
        rest = sorted((s, what) for what, s in self.seconds.items() if what != STEPS)
        parts = [f"{what} {s / total:.1%}" for s, what in reversed(rest) if s >= 0.0005 * total]
        return (
            f"goodput {self.share:.1%} of {total:,.0f} s in {starts}"
            + (": else " if parts else "")
            + ", ".join(parts)
        )


def goodput(events: Iterable[Mapping[str, Any]]) -> Goodput:
    """Shares out the time of a run.

    The time between two events of a start belongs to the later one. What a killed process did after
    its last line is not known, and counts for nothing.

    Args:
        events: as `read` returns them.
    """
    seconds: dict[str, float] = {}
    made: list[tuple[int, int, float]] = []  # steps after, up to, and their seconds
    starts, step, before = 0, 0, None
    for event in events:
        what = event["event"]
        if what == "begin" or before is None or (what == "loop" and before["event"] != "begin"):
            starts, elapsed = starts + 1, 0.0
        else:
            elapsed = event["time"] - before["time"]
        if what == "loop":
            step = event["step"]
            made, lost = _cut_back(made, step)
            _add(seconds, "start", elapsed)
            _add(seconds, REPEATED, lost)
        elif what == "compiled":
            step = event["step"]
            _add(seconds, "compilation", elapsed)
        elif what == "steps":
            for name in event.keys() - {"time", "event", "step"}:
                _add(seconds, name.replace("_", " "), event[name])
                elapsed -= event[name]
            made.append((step, event["step"], elapsed))
            step = event["step"]
        elif what == "evaluated":
            _add(seconds, "evaluation", elapsed)
        before = event
    _add(seconds, STEPS, sum(of_steps for *_, of_steps in made))
    return Goodput(seconds, starts)


def _add(seconds: dict[str, float], what: str, more: float) -> None:
    if more > 0:
        seconds[what] = seconds.get(what, 0.0) + more


def _cut_back(
    made: Sequence[tuple[int, int, float]], step: int
) -> tuple[list[tuple[int, int, float]], float]:
    """What is left of the steps made when the run goes on after `step`, and the seconds lost."""
    kept, lost = [], 0.0
    for first, last, seconds in made:
        count = max(0, min(last, step) - first)
        share = count / (last - first) if last > first else 1.0
        if count:
            kept.append((first, first + count, seconds * share))
        lost += seconds * (1 - share)
    return kept, lost
