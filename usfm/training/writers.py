"""Where the lines of a run's log go: metrics.jsonl, TensorBoard, Weights & Biases."""

import importlib
import json
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import tqdm
from ml_collections import ConfigDict
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2, summary_pb2

from usfm import processes
from usfm.config import to_dict
from usfm.errors import UserError

Line = Mapping[str, Any]
EVENT: Any = event_pb2  # classes made at run time, which type checkers do not know
SUMMARY: Any = summary_pb2


class Writer(Protocol):
    """Takes lines of a log as logs.Log makes them."""

    def write(self, line: Line) -> None:
        """Takes one."""
        ...

    def close(self) -> None:
        """Ends it."""
        ...

    def unsaved(self) -> str:
        """What was not written for good, in words; "" where all was."""
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
    """A file of one JSON object a line, cut back to the step that is gone on from.

    What the disk does not take is kept, and tried again with the next line.
    """

    def __init__(self, path: pathlib.Path, start: int):
        self._path = path
        self._cut_back(start)
        self._unwritten = b""  # lines that the disk has not taken
        self._written = start  # the step up to which it has
        self._flush()  # whoever looks finds the file

    def write(self, line: Line) -> None:
        """Appends it, and what was not taken before."""
        held = bool(self._unwritten)
        self._unwritten += json.dumps(line).encode() + b"\n"
        if error := self._flush():
            if not held:
                _warn(f"{self._path} cannot be written ({error}); training goes on, and tries "
                      "again at the next line")  # fmt: skip
        else:
            self._written = line["step"]

    def close(self) -> None:
        """Tries once more."""
        self._flush()

    def unsaved(self) -> str:
        """What the disk has not taken, in words; "" where it has all."""
        if self._flush():
            return f"{self._path} lacks what came after step {self._written}"
        return ""

    def _flush(self) -> str:
        """Writes what is held, to the byte; returns what is wrong with the disk."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab", buffering=0) as file:
                while self._unwritten:
                    self._unwritten = self._unwritten[file.write(self._unwritten) :]
        except OSError as error:
            return error.strerror or str(error)
        return ""

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
    """TensorBoard events; what earlier starts wrote after the step gone on from is not shown.

    tensorboardX's SummaryWriter writes in a thread. Where the disk is full that thread dies, and
    training would wait for it for ever: so events are written here, a line at a time.
    """

    def __init__(self, directory: pathlib.Path, start: int):
        self._directory = directory
        self._begin = EVENT.Event(
            session_log=EVENT.SessionLog(status=EVENT.SessionLog.START), step=start + 1
        )
        self._file: EventsWriter | None = None
        self._lost = False

    def write(self, line: Line) -> None:
        """Writes its numbers; of lists (routing/TASK) each item is a curve."""
        values = [SUMMARY.Summary.Value(tag=n, simple_value=v) for n, v in scalars(line).items()]
        summary = SUMMARY.Summary(value=values)
        event = EVENT.Event(wall_time=time.time(), step=line["step"], summary=summary)
        try:
            if self._file is None:
                self._directory.mkdir(parents=True, exist_ok=True)
                self._file = EventsWriter(str(self._directory / "events"), f".{time.time_ns()}")
                self._file.write_event(self._begin)
            self._file.write_event(event)
            self._file.flush()
        except OSError as error:
            # A file that ends in half an event is read up to there: the next line begins another.
            self._file = None
            if not self._lost:
                _warn(f"{self._directory} cannot be written ({error.strerror}); metrics.jsonl has "
                      "what it lacks")  # fmt: skip
            self._lost = True

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def unsaved(self) -> str:
        """Nothing that metrics.jsonl does not have."""
        return ""


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

    def unsaved(self) -> str:
        """Nothing: it keeps what it could not send yet."""
        return ""


def _warn(text: str) -> None:
    tqdm.tqdm.write(text, file=sys.stderr)  # above the bar, where there is one


def scalars(line: Line) -> dict[str, float]:
    """The numbers of a line by name; lists as NAME/0, NAME/1 and so on, nothing for null."""
    numbers: dict[str, float] = {}
    for name, value in line.items():
        if name == "step" or value is None:
            continue
        if isinstance(value, Sequence):
            numbers |= {f"{name}/{place}": item for place, item in enumerate(value)}
        else:
            numbers[name] = value
    return numbers
