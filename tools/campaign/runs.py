"""Small runs of the command line, seen from outside: what they say, what they log and save."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from usfm.data.phantoms import write_folder
from usfm.tasks import TYPES
from usfm.training.checkpoint import MARK, Checkpoints

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 24
EVERY = 6  # steps between checkpoints
PATIENCE = 300  # seconds, for whatever is waited for
TASKS = ("FUGC", "breast_2cls", "breast_lesion", "fetal_femur")
_PEER = """
import sys, jax
jax.distributed.initialize(sys.argv.pop(1), 2, int(sys.argv.pop(1)))
from usfm import main
main.run()
"""


class Missed(Exception):
    """A fault that did not strike, or a run that did not do what it should: why."""


@dataclasses.dataclass(frozen=True)
class Process:
    """A process of a run. What it says goes to a file, so that it can be read while it runs."""

    popen: subprocess.Popen[bytes]
    said: pathlib.Path

    def text(self) -> str:
        """All that it said so far."""
        return self.said.read_text(errors="replace")

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        """Waits until something is so while the process runs."""
        until = time.monotonic() + PATIENCE
        while not condition():
            if self.popen.poll() is not None:
                raise Missed(f"it ended ({self.popen.returncode}) before {what}: {self.end()}")
            if time.monotonic() > until:
                raise Missed(f"{what} did not come in {PATIENCE} s")
            time.sleep(0.002)

    def kill(self) -> None:
        """SIGKILL, to this process alone."""
        self.popen.send_signal(signal.SIGKILL)
        if self.ended() != -signal.SIGKILL:
            raise Missed(f"it had ended before it was killed ({self.popen.returncode})")

    def ended(self, patience: float = PATIENCE) -> int:
        """Waits for its end; its exit code."""
        try:
            return self.popen.wait(patience)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            raise Missed(f"it did not end in {patience:.0f} s") from None

    def end(self) -> str:
        """The last line it said."""
        return next((line for line in reversed(self.text().splitlines()) if line), "nothing")


@dataclasses.dataclass(frozen=True)
class Runs:
    """Where a campaign keeps its data, its workdirs and the programs that all runs share."""

    out: pathlib.Path

    def prepare(self) -> None:
        """Makes the images of the runs."""
        if not (self.out / "data").exists():
            write_folder(self.out / "data", tasks=TASKS, rows=12)

    def flags(self, workdir: pathlib.Path) -> list[str]:
        """Of a run of STEPS steps, by absl."""
        config = {
            "data.root": self.out / "data",
            "data.cache_dir": self.out / "stores",
            "data.image_size": 32,
            "data.val_fraction": 0.5,
            "train.steps": STEPS,
            "train.slots": 4,
            "train.examples_per_slot": 2,
            "train.log_every": 1,
            "checkpoint.every_steps": EVERY,
            "evaluate.after_training": False,
        } | {f"model.decoder_width.{kind}": 8 for kind in TYPES}
        fields = [f"--config.{name}={value}" for name, value in config.items()]
        return ["--config=configs/fm_uia.py:debug", *fields, f"--workdir={workdir}"]

    def start(
        self,
        workdir: pathlib.Path,
        *flags: str,
        program: Sequence[str] = ("-m", "usfm.main"),
        environment: Mapping[str, str] | None = None,
    ) -> Process:
        """Starts a process of a run."""
        number = len(list(workdir.parent.glob(f"{workdir.name}.*.txt")))
        said = workdir.with_name(f"{workdir.name}.{number}.txt")
        command = [sys.executable, *program, *self.flags(workdir), *flags]
        shared = {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_COMPILATION_CACHE_DIR": str(self.out / "programs"),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "PYTHONPATH": str(ROOT),
        }
        with said.open("wb") as file:
            popen = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | shared | dict(environment or {}),
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        return Process(popen, said)

    def start_two(self, workdir: pathlib.Path, *flags: str) -> list[Process]:
        """Starts one run of two processes."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        return [
            self.start(workdir, *flags, program=("-c", _PEER, address, str(index)))
            for index in (0, 1)
        ]

    def finish(self, workdir: pathlib.Path, *, processes: int = 1) -> str:
        """Runs to the end; what its first process said."""
        started = self.start_two(workdir) if processes == 2 else [self.start(workdir)]
        with ending(started):
            for process in started:
                if process.ended():
                    code = process.popen.returncode
                    raise Missed(f"run again, it ended with {code}: {process.end()}")
        return started[0].text()


@contextlib.contextmanager
def ending(processes: Sequence[Process]) -> Iterator[None]:
    """Whatever happens, the processes and those that they started are ended."""
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.popen.pid, signal.SIGKILL)
            process.popen.wait()


def logged(workdir: pathlib.Path) -> int:
    """The last step in metrics.jsonl; 0 without any."""
    path = workdir / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    return json.loads(whole[-1])["step"] if whole else 0


def saved(workdir: pathlib.Path) -> list[int]:
    """The steps of which there is a checkpoint, rising."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.glob("*") if (path / MARK).exists()]
    return sorted(int(name) for name in names if name.isdigit())


def saving(workdir: pathlib.Path) -> bool:
    """Whether a checkpoint is half written."""
    return any("tmp" in path.name for path in (workdir / "checkpoints").glob("*"))


def outcome(workdir: pathlib.Path) -> tuple[str, str, str]:
    """Digests of the parameters, of the whole state, and of the losses of all steps, at the end."""
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        arrays = checkpoints.arrays(STEPS)
    digests = []
    for prefix in ("params/", ""):
        digest = hashlib.sha256()
        for name, array in sorted(arrays.items()):
            if name.startswith(prefix):
                digest.update(f"{name} {array.shape} {array.dtype}".encode() + array.tobytes())
        digests.append(digest.hexdigest())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: {k: v for k, v in line.items() if "loss/" in k} for line in lines}
    return digests[0], digests[1], json.dumps(losses, sort_keys=True)


def clean(workdir: pathlib.Path) -> None:
    """Removes what a run left, but for what it said."""
    shutil.rmtree(workdir, ignore_errors=True)
