"""metrics.jsonl and the status line, without making the training loop wait for the device."""

import collections
import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from usfm.errors import UserError

# Steps whose metrics may still be on their way when the loop goes on.
LAG = 2

_compilations = 0


def _count_compilations(event: str, duration_secs: float, **_: Any) -> None:
    global _compilations
    del duration_secs
    _compilations += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_count_compilations)


class NonFiniteError(UserError):
    """A step whose update would not have been finite, and was not made."""

    def __init__(self, step: int, tasks: Sequence[str]):
        self.step, self.tasks = step, tuple(tasks)
        super().__init__(f"step {step}: not finite in {', '.join(tasks) or 'the gradient'}")


@dataclasses.dataclass(frozen=True)
class _Step:
    """A step as the loop gave it: its metrics, of step.make_step, may not be there yet."""

    number: int
    metrics: Mapping[str, Any]
    images: int
    waited: float
    compilations: int


class Log:
    """Collects the metrics of steps, and writes their means every so often.

    A line of metrics.jsonl holds step, seconds (of this start of the run), loss/TASK (the mean
    over the steps in which the task was present), images/TASK (how many it had), grad_norm,
    images_per_second, data_wait (share of the time spent waiting for batches), compilations (of the
    process, up to this step); where a task was left out of steps, left_out/TASK (their number);
    weight/TASK (the mean weight of its gradient) where tasks do not all weigh the same, and
    conflicts (the share of pairs of tasks whose mean inner product is negative) where these are at
    hand; and of mixtures of experts routing/TASK (a list: the share of the task's choices by
    expert) and dropped (the share of choices that found no expert with room). Means and numbers are
    of the steps since the line before. What `note` writes has lines of its own.
    """

    def __init__(
        self, path: pathlib.Path, tasks: Sequence[str], *, start: int, steps: int, every: int
    ):
        self._tasks, self._every, self._steps = tasks, every, steps
        self._path = path
        self._cut_back(start)
        self._unwritten = b""  # lines that the disk has not taken
        self._written = start  # the step up to which it has
        self._append({})  # whoever looks finds the file
        self._pending: collections.deque[_Step] = collections.deque()
        self._window: list[_Step] = []
        self._began = self._window_began = time.perf_counter()
        self._first = True
        on_terminal = sys.stderr.isatty()
        self._bar = tqdm.tqdm(total=steps, initial=start, disable=not on_terminal, unit="step")

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def note(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a line of its own: step and these named values, null where NaN."""
        finite = {name: value if np.isfinite(value) else None for name, value in values.items()}
        self._append({"step": step, **finite})

    def unsaved(self) -> str:
        """What could not be written, in words; "" where all is there."""
        self._append({})
        if self._unwritten:
            return f"{self._path} lacks what came after step {self._written}"
        return ""

    def _append(self, line: Mapping[str, Any]) -> None:
        """Adds a line to the file, and what it did not take before, to the byte."""
        held = bool(self._unwritten)
        if line:
            self._unwritten += json.dumps(line).encode() + b"\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab", buffering=0) as file:
                while self._unwritten:
                    self._unwritten = self._unwritten[file.write(self._unwritten) :]
        except OSError as error:
            if not held:
                self._say(
                    f"{self._path} cannot be written ({error.strerror}); training goes on, and "
                    "tries again at the next line"
                )
            return
        self._written = line.get("step", self._written)

    def add(self, step: int, metrics: Mapping[str, jax.Array], images: int, waited: float) -> None:
        """Takes the metrics of a step, finished or not.

        Args:
            step: steps done, this one included.
            metrics: of step.make_step.
            images: of the step's batch.
            waited: seconds that its batch was waited for.

        Raises:
            NonFiniteError: a step, at most LAG steps ago, could not be made.
        """
        self._pending.append(_Step(step, metrics, images, waited, _compilations))
        self._bar.update()
        while len(self._pending) > LAG:
            self._take()

    def flush(self) -> None:
        """Waits for all steps so far, and raises as `add` does."""
        while self._pending:
            self._take()

    def _take(self) -> None:
        step = self._pending.popleft()
        step = dataclasses.replace(
            step,
            metrics={
                name: np.asarray(value) for name, value in step.metrics.items() if name != "record"
            },
        )
        if not step.metrics["ok"]:
            finite = np.isfinite(step.metrics["losses"])
            tasks = [task for task, fine in zip(self._tasks, finite, strict=True) if not fine]
            raise NonFiniteError(step.number, tasks)
        self._window.append(step)
        # The first step is written at once, so that all that follow can be compared with it.
        if self._first or step.number % self._every == 0 or step.number == self._steps:
            self._write()
        self._first = False

    def _write(self) -> None:
        window, self._window = self._window, []
        now = time.perf_counter()
        elapsed, self._window_began = now - self._window_began, now
        losses = np.array([step.metrics["losses"] for step in window])
        present = np.array([step.metrics["present"] for step in window])
        sums, counts = np.where(present, losses, 0).sum(0), present.sum(0)
        left_out = np.array([step.metrics["left_out"] for step in window])
        images_per_second = sum(step.images for step in window) / elapsed
        last = window[-1]

        line: dict[str, Any] = {"step": last.number, "seconds": round(now - self._began, 3)}
        for task, total, count in zip(self._tasks, sums, counts, strict=True):
            if count:
                line[f"loss/{task}"] = float(total / count)
        images = np.sum([step.metrics["images"] for step in window], axis=0).tolist()
        line |= {f"images/{task}": n for task, n in zip(self._tasks, images, strict=True)}
        line["grad_norm"] = float(np.mean([step.metrics["grad_norm"] for step in window]))
        line["images_per_second"] = round(images_per_second, 1)
        line["data_wait"] = round(sum(step.waited for step in window) / elapsed, 4)
        line["compilations"] = last.compilations
        line |= self._surgery(window, present)
        line |= self._routing(window)
        numbers = left_out.sum(0).tolist()
        line |= {f"left_out/{t}": n for t, n in zip(self._tasks, numbers, strict=True) if n}
        self._append(line)

        status = f"loss {sums.sum() / max(counts.sum(), 1):.3f}, {images_per_second:.0f} images/s"
        self._bar.set_postfix_str(status, refresh=False)
        if self._bar.disable:
            if not self._first:  # the time of the first is that of compiling
                status += f", {(self._steps - last.number) * elapsed / len(window):.0f} s left"
            self._say(f"step {last.number} of {self._steps}: {status}")
        broken = ~np.isfinite(losses)
        for why, which in (
            ("not finite", left_out & broken),
            ("of a gradient that is zero", left_out & ~broken),
        ):
            counts = zip(self._tasks, which.sum(0).tolist(), strict=True)
            if named := ", ".join(f"{task} of {count}" for task, count in counts if count):
                self._say(f"left out in the last {len(window)} steps, {why}: {named}")

    def _surgery(self, window: Sequence[_Step], present: np.ndarray) -> dict[str, Any]:
        """What the multi-task method saw and did, from presence [steps, T]."""
        line: dict[str, Any] = {}
        if "weights" in window[0].metrics:
            weights = np.array([step.metrics["weights"] for step in window])  # 0 where absent
            means = weights.sum(0) / np.maximum(present.sum(0), 1)
            line |= {
                f"weight/{task}": round(float(mean), 4)
                for task, mean, seen in zip(
                    self._tasks, means, np.asarray(present.any(0)), strict=True
                )
                if seen
            }
        # A method that has no use for it makes it only in the steps that are recorded.
        seen = np.array(["gramian" in step.metrics for step in window])
        if seen.any():
            both = present[seen, :, None] & present[seen, None, :]
            gramians = [step.metrics["gramian"] for step in window if "gramian" in step.metrics]
            total = np.where(both, gramians, 0).sum(0)
            pairs = np.triu(both.any(0), 1)
            line["conflicts"] = round(float((total < 0)[pairs].mean()), 4) if pairs.any() else 0.0
        return line

    def _routing(self, window: Sequence[_Step]) -> dict[str, Any]:
        if "routing" not in window[0].metrics:
            return {}
        shares = np.array([step.metrics["routing"] for step in window])  # [steps, T, E]
        seen = np.array([step.metrics["present"] for step in window])[..., None]
        counts = seen.sum(0)
        means = np.where(seen, shares, 0).sum(0) / np.maximum(counts, 1)
        routing: dict[str, Any] = {
            f"routing/{task}": [round(float(share), 4) for share in row]
            for task, row, count in zip(self._tasks, means, counts, strict=True)
            if count
        }
        dropped = np.mean([step.metrics["dropped"] for step in window])
        return {**routing, "dropped": float(dropped)}

    def _say(self, text: str) -> None:
        tqdm.tqdm.write(text, file=sys.stderr)  # above the bar, where there is one
        sys.stderr.flush()

    def _cut_back(self, start: int) -> None:
        """Drops the lines after the step that training goes on from, and a torn last one."""
        if not self._path.exists():
            return
        kept = []
        for text in self._path.read_text().splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                break  # the process was killed while it wrote this line
            if line["step"] <= start:
                kept.append(text + "\n")
        temporary = self._path.with_name(self._path.name + ".tmp")
        temporary.write_text("".join(kept))
        temporary.replace(self._path)
