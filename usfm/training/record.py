"""gramians/STEP.npz: the inner products of task gradients, step by step.

Each file holds the k steps that led to the checkpoint of its name: step [k], learning_rate [k],
losses [k, T], present [k, T], tasks [T] and groups [G] (names), and

    gramian, preconditioned_gramian            float32 [k, G, T, T]
    square_norm, preconditioned_square_norm    float32 [k, G, T], unbiased; NaN where unknown

The preconditioned ones are <g_i, P g_j>, P being what the optimizer multiplies gradients by
after the step (`optimizer.preconditioner`). Groups of layers add up.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from usfm import processes
from usfm.data.source import say


class Record:
    """Collects what `step` records, and writes it with each checkpoint.

    Args:
        directory: `gramians` of the workdir.
        tasks: ids of the run's tasks.
        groups: names of the groups of layers.
        start: the step that training goes on from; files after it are removed.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        tasks: Sequence[str],
        groups: Sequence[str],
        start: int,
    ):
        self._directory = directory
        self._names = {"tasks": np.array(tasks), "groups": np.array(groups)}
        self._steps: list[tuple[int, Any]] = []
        for path in directory.glob("*.npz"):
            if int(path.stem) > start:
                path.unlink(missing_ok=True)  # another process of the run may be faster

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes the metrics of a step (its number counts itself), finished or not.

        Where nothing is recorded, does nothing.
        """
        if "record" in metrics:
            kept = {name: metrics[name] for name in ("losses", "present")}
            self._steps.append((step, {**kept, **metrics["record"]}))

    def write(self, step: int) -> None:
        """Writes the steps since the last file, the present one included, whole or not at all.

        Where the disk does not take them this is said, and the next file holds them.
        """
        if not self._steps:
            return
        numbers, values = zip(*self._steps, strict=True)
        arrays = {
            name: np.stack([np.asarray(value[name]) for value in values]) for name in values[0]
        }
        arrays["step"] = np.array(numbers)
        if processes.is_first():
            path = self._directory / f"{step}.npz"
            temporary = path.with_name(path.name + ".tmp")
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                with temporary.open("wb") as file:
                    np.savez(file, allow_pickle=False, **arrays, **self._names)
                temporary.replace(path)
            except OSError as error:
                say(f"{path} could not be written ({error.strerror}); the next one will hold it")
                return
        self._steps = []

    def unsaved(self) -> str:
        """What could not be written, in words; "" where all is there."""
        if not self._steps:
            return ""
        return f"{self._directory} lacks what was recorded from step {self._steps[0][0]} on"


def read(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """All recorded steps of a run, as one dict of arrays with a leading axis of steps."""
    paths = sorted(directory.glob("*.npz"), key=lambda path: int(path.stem))
    if not paths:
        raise FileNotFoundError(
            f"{directory} holds no record: train with --config.multitask.record=True"
        )
    files = [dict(np.load(path)) for path in paths]
    names = {name: files[0].pop(name) for name in ("tasks", "groups")}
    return {
        **{name: np.concatenate([file[name] for file in files]) for name in files[0]},
        **names,
    }
