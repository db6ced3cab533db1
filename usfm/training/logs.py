"""metrics.jsonl and the status line, without making the training loop wait for the device."""

import collections
import json
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

# Steps whose metrics may still be on their way when the loop goes on.
LAG = 2

_compilations = 0


def _count_compilations(event: str, duration_secs: float, **_: Any) -> None:
    global _compilations
    del duration_secs
    _compilations += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_count_compilations)


class NonFiniteError(RuntimeError):
    """A step whose update would not have been finite, and was not made."""

    def __init__(self, step: int, tasks: Sequence[str]):
        self.step, self.tasks = step, tuple(tasks)
        super().__init__(f"step {step}: not finite in {', '.join(tasks) or 'the gradient'}")


class Log:
    """Collects the metrics of steps, and writes their means every so often.

    A line of metrics.jsonl holds step, seconds (of this start of the run), loss/TASK (the mean
    over the steps in which the task was present), grad_norm, images_per_second, data_wait (share
    of the time spent waiting for batches), compilations (since the process began) and, once a task
    was left out of a step, left_out/TASK (number of such steps).
    """

    def __init__(
        self, path: pathlib.Path, tasks: Sequence[str], *, start: int, steps: int, every: int
    ):
        self._tasks, self._every, self._steps = tasks, every, steps
        self._path = path
        self._cut_back(start)
        self._file = path.open("a")
        self._pending: collections.deque[tuple[int, Mapping[str, jax.Array]]] = collections.deque()
        self._window: list[Mapping[str, np.ndarray]] = []
        self._left_out = np.zeros(len(tasks), int)
        self._began = self._window_began = time.perf_counter()
        self._waited, self._images = 0.0, 0
        self._first = True
        on_terminal = sys.stderr.isatty()
        self._bar = tqdm.tqdm(total=steps, initial=start, disable=not on_terminal, unit="step")

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._file.close()

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
        self._pending.append((step, metrics))
        self._images += images
        self._waited += waited
        self._bar.update()
        while len(self._pending) > LAG:
            self._take()

    def flush(self) -> None:
        """Waits for all steps so far, and raises as `add` does."""
        while self._pending:
            self._take()

    def _take(self) -> None:
        step, metrics = self._pending.popleft()
        values = {name: np.asarray(value) for name, value in metrics.items()}
        broken = ~np.isfinite(values["losses"])
        if not values["ok"]:
            raise NonFiniteError(step, [t for t, b in zip(self._tasks, broken, strict=True) if b])
        self._left_out += broken
        self._window.append(values)
        # The first step is written at once, so that all that follow can be compared with it.
        if self._first or step % self._every == 0 or step == self._steps:
            self._write(step)
        self._first = False

    def _write(self, step: int) -> None:
        now = time.perf_counter()
        losses = np.array([w["losses"] for w in self._window])
        present = np.array([w["present"] for w in self._window])
        sums = np.where(present, losses, 0).sum(0)
        counts = present.sum(0)
        elapsed = now - self._window_began
        line: dict[str, float | int] = {"step": step, "seconds": round(now - self._began, 3)}
        for task, total, count in zip(self._tasks, sums, counts, strict=True):
            if count:
                line[f"loss/{task}"] = float(total / count)
        line["grad_norm"] = float(np.mean([w["grad_norm"] for w in self._window]))
        line["images_per_second"] = round(self._images / elapsed, 1)
        line["data_wait"] = round(self._waited / elapsed, 4)
        line["compilations"] = _compilations
        for task, count in zip(self._tasks, self._left_out, strict=True):
            if count:
                line[f"left_out/{task}"] = int(count)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        mean = float(sums.sum() / max(counts.sum(), 1))
        status = f"loss {mean:.3f}, {line['images_per_second']:.0f} images/s"
        self._bar.set_postfix_str(status, refresh=False)
        if self._bar.disable:
            left = (self._steps - step) * elapsed / len(self._window)
            print(
                f"step {step} of {self._steps}: {status}, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
        self._window, self._images, self._waited = [], 0, 0.0
        self._window_began = now

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
