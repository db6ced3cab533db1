"""Where the lines of a run's log go: metrics.jsonl, TensorBoard, Weights & Biases."""

import importlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ml_collections import ConfigDict
from tensorboardX import SummaryWriter

from usfm import processes
from usfm.config import to_dict
from usfm.errors import UserError

Line = Mapping[str, Any]


class Writer(Protocol):
    """Takes lines of a log as logs.Log makes them."""

    def write(self, line: Line) -> None:
        """Takes one."""
        ...

    def close(self) -> None:
        """Ends it."""
        ...


def check(watch: ConfigDict) -> None:
    """Finds early what cannot be written to.

    Raises:
        UserError: Weights & Biases is asked for, and not installed.
    """
    if not watch.wandb:
        return
    try:
        importlib.import_module("wandb")
    except ImportError as error:
        raise UserError(
            f"watch.wandb={watch.wandb}: wandb is not installed; pip install wandb, or leave it "
            "empty (metrics.jsonl and TensorBoard events are written anyway)"
        ) from error


def writers_of(config: ConfigDict, workdir: pathlib.Path, start: int) -> list[Writer]:
    """What a run is written to that goes on from a step; nothing but in process 0."""
    if not processes.is_first():
        return []
    writers: list[Writer] = [JsonLines(workdir / "metrics.jsonl", start)]
    if config.watch.tensorboard:
        writers.append(TensorBoard(workdir / "tensorboard", start))
    if config.watch.wandb:
        writers.append(WandB(config, workdir))
    return writers


class JsonLines:
    """A file of one JSON object a line, cut back to the step that is gone on from."""

    def __init__(self, path: pathlib.Path, start: int):
        self._path = path
        self._cut_back(start)
        self._file = path.open("a")

    def write(self, line: Line) -> None:
        """Appends it."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

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


class TensorBoard:
    """TensorBoard events; what earlier starts wrote after the step gone on from is not shown."""

    def __init__(self, directory: pathlib.Path, start: int):
        purge = start + 1 if start else None
        self._writer = SummaryWriter(str(directory), purge_step=purge, flush_secs=10)

    def write(self, line: Line) -> None:
        """Writes its numbers; of lists (routing/TASK) each item is a curve."""
        for name, value in scalars(line).items():
            self._writer.add_scalar(name, value, line["step"])

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases, gone on with by each start of the workdir."""

    def __init__(self, config: ConfigDict, workdir: pathlib.Path):
        wandb = importlib.import_module("wandb")  # not among the dependencies
        id_file = workdir / "wandb_id.txt"
        known = id_file.read_text().strip() if id_file.exists() else None
        self._run = wandb.init(
            project=config.watch.wandb,
            name=workdir.name,
            dir=str(workdir),
            id=known,
            resume="allow",
            config=to_dict(config),
        )
        id_file.write_text(f"{self._run.id}\n")

    def write(self, line: Line) -> None:
        """Sends its numbers."""
        self._run.log(scalars(line), step=line["step"])

    def close(self) -> None:
        """Says that this start has ended."""
        self._run.finish()


def scalars(line: Line) -> dict[str, float]:
    """The numbers of a line by name; lists as NAME/0, NAME/1 and so on."""
    numbers: dict[str, float] = {}
    for name, value in line.items():
        if name == "step":
            continue
        if isinstance(value, Sequence):
            numbers |= {f"{name}/{place}": item for place, item in enumerate(value)}
        else:
            numbers[name] = value
    return numbers
