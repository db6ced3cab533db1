"""What disturbs a run. Each strikes once, proves that it did, and leaves a run to go on with."""

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator

from tools.campaign.runs import (
    EVERY,
    STEPS,
    Missed,
    Process,
    Runs,
    clean,
    ending,
    logged,
    saved,
    saving,
)
from usfm.training.checkpoint import MARK
from usfm.training.stop import EXIT_TERMINATED

# The loss of one task is not a number in one step: its class weights are not.
_NAN = """
import dataclasses, sys
from usfm.training import train
from usfm.training.program import Program
target, step_at, compile_steps = int(sys.argv.pop(1)), Program.step_at, train.compile_steps
def noted(self, number):
    global at
    at = number
    return step_at(self, number)
class Steps(dict):
    def __getitem__(self, step):
        run = super().__getitem__(step)
        def broken(state, batch, own):
            weights = own.class_weights.at[1].set(float("nan"))  # of breast_2cls
            return run(state, batch, dataclasses.replace(own, class_weights=weights))
        return broken if at == target else run
Program.step_at = noted
train.compile_steps = lambda *given: Steps(compile_steps(*given))
from usfm import main
main.run()
"""
TMPFS = 160 * 2**20  # bytes: room for three checkpoints and more

Strike = Callable[[Runs, pathlib.Path, random.Random], str]


@dataclasses.dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        name: for the table.
        strike: (runs, workdir, rng) -> how the run bore it, in words. Raises Missed.
        processes: of its runs.
        own_disk: the workdir is a small file system of its own.
    """

    name: str
    strike: Strike
    processes: int = 1
    own_disk: bool = False


def _after_step(process: Process, workdir: pathlib.Path, step: int) -> None:
    process.wait_for(f"step {step}", lambda: logged(workdir) >= step)


def _expect(process: Process, code: int, text: str) -> None:
    found = process.ended()
    if found != code or text not in process.text():
        raise Missed(f"it ended with {found}, not with {code} and '{text}': {process.end()}")


def _kill(runs: Runs, workdir: pathlib.Path, rng: random.Random) -> str:
    process = runs.start(workdir)
    with ending([process]):
        if rng.random() < 0.25:  # before the first step too
            time.sleep(rng.uniform(0.2, 8))
        else:
            _after_step(process, workdir, rng.randrange(1, STEPS))
            time.sleep(rng.uniform(0, 0.1))
        process.kill()
    return "killed"


def _kill_while_saving(runs: Runs, workdir: pathlib.Path, rng: random.Random) -> str:
    process = runs.start(workdir)
    with ending([process]):
        _after_step(process, workdir, EVERY * rng.randrange(1, STEPS // EVERY) - 1)
        process.wait_for("a save", lambda: saving(workdir))
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
    if not saving(workdir):
        raise Missed("the save was over")
    return "killed, half a checkpoint left"


def _kill_while_building(runs: Runs, workdir: pathlib.Path, rng: random.Random) -> str:
    stores = workdir.with_name(workdir.name + ".stores")
    process = runs.start(workdir, f"--config.data.cache_dir={stores}")

    def building() -> list[pathlib.Path]:
        return list(stores.rglob("*.building"))

    with ending([process]):
        process.wait_for("a store", lambda: bool(building()))
        time.sleep(rng.uniform(0, 0.02))
        process.kill()
    if not building():
        raise Missed("the store was done")
    process = runs.start(workdir, f"--config.data.cache_dir={stores}")
    with ending([process]):
        _expect(process, 0, "")
    if building():
        raise Missed("half a store is left")
    shutil.rmtree(stores)
    return "killed, the store was gone on with"


def _terminate(runs: Runs, workdir: pathlib.Path, rng: random.Random) -> str:
    process = runs.start(workdir)
    with ending([process]):
        _after_step(process, workdir, rng.randrange(1, STEPS - 3))
        process.popen.terminate()
        _expect(process, EXIT_TERMINATED, "SIGTERM: step")
    if saved(workdir)[-1] != logged(workdir):
        raise Missed("its last step is not saved")
    return f"exit {EXIT_TERMINATED}, saved"


def _terminate_one_of_two(runs: Runs, workdir: pathlib.Path, rng: random.Random) -> str:
    both = runs.start_two(workdir)
    with ending(both):
        _after_step(both[0], workdir, rng.randrange(1, STEPS - 6))
        rng.choice(both).popen.terminate()
        _expect(both[0], EXIT_TERMINATED, "SIGTERM: step")  # which alone speaks
        _expect(both[1], EXIT_TERMINATED, "")
    # A checkpoint is whole only when both have written their share of that step.
    if saved(workdir)[-1] != logged(workdir):
        raise Missed("they did not save the step that they stopped after")
    return f"both exit {EXIT_TERMINATED} after the same step, saved once"


def _kill_one_of_two(runs: Runs, workdir: pathlib.Path, rng: random.Random) -> str:
    both = runs.start_two(workdir)
    with ending(both):
        _after_step(both[0], workdir, rng.randrange(1, STEPS))
        victim = rng.randrange(2)
        both[victim].kill()
        began = time.monotonic()
        code = both[1 - victim].ended()
        if code == 0:
            raise Missed("the other process went on to the end")
        waited = time.monotonic() - began
    return f"the other ended by itself ({code}) after {waited:.0f} s"


def _kill_worker(runs: Runs, workdir: pathlib.Path, rng: random.Random) -> str:
    process = runs.start(workdir, "--config.data.workers=2")
    with ending([process]):
        _after_step(process, workdir, rng.randrange(1, STEPS - 8))
        os.kill(rng.choice(_workers(process.popen.pid)), signal.SIGKILL)
        code = process.ended()
    return f"exit {code}" if code else "went on without it"


def _workers(pid: int) -> list[int]:
    """The processes that read batches for a process."""
    found = [
        int(child)
        for thread in pathlib.Path(f"/proc/{pid}/task").iterdir()
        for child in (thread / "children").read_text().split()
        if b"spawn_main" in pathlib.Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    if not found:
        raise Missed("it has no workers")
    return found


def _nan(runs: Runs, workdir: pathlib.Path, rng: random.Random) -> str:
    step = rng.randrange(2, STEPS)
    process = runs.start(workdir, program=("-c", _NAN, str(step)))
    with ending([process]):
        _expect(process, 1, f"step {step}: not finite in breast_2cls")
    return "stopped, step and task named"


def _truncate(runs: Runs, workdir: pathlib.Path, rng: random.Random) -> str:
    process = runs.start(workdir)
    with ending([process]):
        process.wait_for("two checkpoints", lambda: len(saved(workdir)) > 1)
        process.kill()
    newest = workdir / "checkpoints" / str(saved(workdir)[-1])
    files = [path for path in newest.rglob("*") if path.is_file() and path.stat().st_size]
    file = rng.choice([path for path in files if path.name != MARK])
    size = file.stat().st_size
    os.truncate(file, rng.randrange(size))
    if file.stat().st_size >= size:
        raise Missed("nothing was cut off")
    process = runs.start(workdir)
    with ending([process]):
        code = process.ended()
    if code == 0:
        return f"{file.name} cut, and not needed"
    if f"checkpoint {newest} cannot be read" not in process.text():
        raise Missed(f"the checkpoint is not named: {process.end()}")
    shutil.rmtree(newest)
    return "refused and named; it was removed by hand"


def _delete(runs: Runs, workdir: pathlib.Path, rng: random.Random) -> str:
    process = runs.start(workdir)
    with ending([process]):
        process.wait_for("a checkpoint", lambda: bool(saved(workdir)))
        _after_step(process, workdir, rng.randrange(EVERY, STEPS - EVERY))
        shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
        _expect(process, 0, "")
    return "went on, saved again"


def _fill(runs: Runs, workdir: pathlib.Path, rng: random.Random) -> str:
    with _disturbed_disk(runs, workdir, rng) as process:
        filler = workdir / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 2**16)
        process.wait_for("full disk", lambda: "no space left on the disk" in process.text())
        if rng.random() < 0.5:
            filler.unlink()
            _expect(process, 0, "all is saved again")
            return "went on, saved when there was room"
        _expect(process, 1, "are not saved")
        filler.unlink()
        return "went on, exit 1 with what is not saved"


def _make_read_only(runs: Runs, workdir: pathlib.Path, rng: random.Random) -> str:
    # TensorBoard's file stays open, and what is written to cannot be made read-only.
    closed = "--config.watch.tensorboard=False"
    with _disturbed_disk(runs, workdir, rng, closed) as process:
        process.wait_for("a time between two saves", lambda: _remounted(workdir, "ro"))
        process.wait_for("read-only disk", lambda: "could not be written" in process.text())
        if rng.random() < 0.5:
            _remounted(workdir, "rw")
            _expect(process, 0, "")
            return "went on, saved when it could"
        _expect(process, 1, "are not saved")
        _remounted(workdir, "rw")
        return "went on, exit 1 with what is not saved"


def _remounted(workdir: pathlib.Path, how: str) -> bool:
    """False while a file there is open for writing."""
    command = ["mount", "-o", f"remount,{how}", str(workdir)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def _disturbed_disk(
    runs: Runs, workdir: pathlib.Path, rng: random.Random, *flags: str
) -> Iterator[Process]:
    process = runs.start(workdir, *flags)
    with ending([process]):
        process.wait_for("a checkpoint", lambda: bool(saved(workdir)))
        _after_step(process, workdir, rng.randrange(EVERY, STEPS - EVERY))
        yield process


def _move_clock(runs: Runs, workdir: pathlib.Path, rng: random.Random) -> str:
    library = runs.out / "clock.so"
    if not library.exists():
        source = pathlib.Path(__file__).with_name("clock.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, source], check=True)
    offset = workdir.with_name(workdir.name + ".offset")
    offset.write_bytes(struct.pack("q", 0))
    process = runs.start(
        workdir, environment={"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(offset)}
    )
    seconds = rng.choice([-1, 1]) * rng.randrange(3600, 40 * 86400)
    with ending([process]):
        _after_step(process, workdir, rng.randrange(1, STEPS - EVERY))
        with offset.open("r+b") as file:
            file.write(struct.pack("q", seconds))
        _expect(process, 0, "")
    mark = json.loads((workdir / "checkpoints" / str(STEPS) / MARK).read_text())
    off = mark["commit_timestamp_nsecs"] / 1e9 - time.time()
    if abs(off - seconds) > 600:
        raise Missed(f"its clock is {off:.0f} s off, not {seconds}")
    return "went on"


FAULTS = (
    Fault("SIGKILL at any moment", _kill),
    Fault("SIGKILL during a save", _kill_while_saving),
    Fault("SIGKILL during a store build", _kill_while_building),
    Fault("SIGTERM", _terminate),
    Fault("SIGTERM to one of two processes", _terminate_one_of_two, processes=2),
    Fault("SIGKILL of one of two processes", _kill_one_of_two, processes=2),
    Fault("SIGKILL of a data worker", _kill_worker),
    Fault("NaN in one task", _nan),
    Fault("truncated checkpoint file", _truncate),
    Fault("deleted checkpoints", _delete),
    Fault("full disk", _fill, own_disk=True),
    Fault("read-only disk", _make_read_only, own_disk=True),
    Fault("clock jump", _move_clock),
)


@contextlib.contextmanager
def disk(fault: Fault, workdir: pathlib.Path) -> Iterator[None]:
    """The workdir's own small file system, where a fault needs one."""
    if not fault.own_disk:
        yield
        return
    workdir.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS}", "tmpfs", str(workdir)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missed(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(workdir)], check=True)
        clean(workdir)
