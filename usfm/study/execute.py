"""Trains the cells of a study that are not done, by processes of this machine or by Slurm."""

import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

import tqdm
from ml_collections import ConfigDict

from usfm.data.source import cache_dir, say
from usfm.errors import UserError
from usfm.evaluation.files import write_atomically
from usfm.study import worker
from usfm.study.cells import Cell, Study, place

LOG = "cells.jsonl"
ATTEMPTS = 2
POLL = 0.5  # seconds
COMPILING = 3  # takes about as long as training so many tasks for some hundred steps

# (number, names of cells) -> whether the process that trains them is still at work.
Executor = Callable[[int, Sequence[str]], Callable[[], bool]]


def execute(
    study: Study, workdir: pathlib.Path, wanted: Sequence[Cell], start: Executor, processes: int
) -> list[Cell]:
    """Trains and scores cells, each in at most two attempts.

    Args:
        study: planned in the workdir.
        workdir: of the study; cells.jsonl gets a line an attempt.
        wanted: those to be done; who is done already is passed over.
        start: starts a process.
        processes: at once.

    Returns:
        The cells that failed twice.
    """
    done = sum(worker.done(place(workdir, cell)) for cell in wanted)
    terminal = sys.stderr.isatty()
    bar = tqdm.tqdm(total=len(wanted), initial=done, unit="cell", disable=not terminal)
    with bar, (workdir / LOG).open("a+") as log:
        _make_up(log, workdir, wanted)
        for attempt in range(1, ATTEMPTS + 1):
            left = [cell for cell in wanted if not worker.done(place(workdir, cell))]
            for cell in left:
                (place(workdir, cell) / worker.STATUS).unlink(missing_ok=True)
            for cell in _ended(study, workdir, left, start, processes):
                died = {"status": "failed", "error": "its process died"}
                result = worker.status(place(workdir, cell)) or died
                log.write(json.dumps({"cell": cell.name, "attempt": attempt} | result) + "\n")
                log.flush()
                if result["status"] == "done":
                    done += 1
                    bar.update()
                    if not terminal:
                        say(f"{done} of {len(wanted)} cells: {cell.name}")
                elif attempt < ATTEMPTS:
                    say(f"{cell.name} failed and is tried again later: see {workdir / LOG}")
                else:
                    say(f"{cell.name} failed again and is left out: see {workdir / LOG}")
    return [cell for cell in wanted if not worker.done(place(workdir, cell))]


def _make_up(log: TextIO, workdir: pathlib.Path, wanted: Sequence[Cell]) -> None:
    """Writes the lines of cells that were done when nobody was left to write them."""
    log.seek(0)
    lines = [json.loads(line) for line in log]
    done = {line["cell"] for line in lines if line["status"] == "done"}
    for cell in wanted:
        status = worker.status(place(workdir, cell))
        if status.get("status") == "done" and cell.name not in done:
            attempt = 1 + sum(line["cell"] == cell.name for line in lines)
            log.write(json.dumps({"cell": cell.name, "attempt": attempt} | status) + "\n")
    log.flush()


def _ended(
    study: Study, workdir: pathlib.Path, cells: Sequence[Cell], start: Executor, processes: int
) -> Iterator[Cell]:
    """Cells as they end, well or not, each once; processes are started until none is left."""
    left = list(cells)
    while left:
        shares = _shares(study, left, processes)
        running = [
            start(number, [cell.name for cell in share]) for number, share in enumerate(shares)
        ]
        at_work = True
        while at_work:
            at_work = any(is_running() for is_running in running)
            for cell in [cell for cell in left if worker.status(place(workdir, cell))]:
                left.remove(cell)
                yield cell
            time.sleep(POLL if at_work else 0)
        for share in shares:  # a process that died did so at the first that it left
            for cell in [cell for cell in share if cell in left][:1]:
                left.remove(cell)
                yield cell


def _shares(study: Study, cells: Sequence[Cell], processes: int) -> list[list[Cell]]:
    """Deals cells to processes, those of one shape to one; each has about the same to do."""
    by_shape: dict[str, list[Cell]] = {}
    for cell in cells:
        by_shape.setdefault(study.shape(cell), []).append(cell)
    shares: list[list[Cell]] = [[] for _ in range(min(processes, len(by_shape)))]
    load = [0] * len(shares)
    cost = {
        shape: COMPILING + sum(len(cell.tasks) for cell in of_shape)
        for shape, of_shape in by_shape.items()
    }
    for shape in sorted(cost, key=cost.__getitem__, reverse=True):
        least = load.index(min(load))
        shares[least] += by_shape[shape]
        load[least] += cost[shape]
    return shares


def executor(config: ConfigDict, workdir: pathlib.Path) -> Executor:
    """The executor that study.executor names.

    Raises:
        UserError: there is none of that name, or it is not installed.
    """
    (workdir / "logs").mkdir(exist_ok=True)
    if config.study.executor == "local":
        return local(config, workdir)
    if config.study.executor == "slurm":
        return by_submitit(workdir, "slurm", config.study.slurm.to_dict())
    raise UserError(f"study.executor={config.study.executor!r} is not one of local, slurm")


def local(config: ConfigDict, workdir: pathlib.Path) -> Executor:
    """Processes of this machine, which end with this one."""

    def start(number: int, names: Sequence[str]) -> Callable[[], bool]:
        with (workdir / "logs" / f"worker_{number}.txt").open("a") as log:
            process = subprocess.Popen(
                worker_command(workdir, *names),
                env=environment(config),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        return lambda: process.poll() is None

    return start


def by_submitit(workdir: pathlib.Path, cluster: str, parameters: dict) -> Executor:
    """Jobs of submitit: of Slurm, or for a trial of this machine (cluster 'local')."""
    try:
        import submitit
    except ImportError:
        raise UserError("study.executor=slurm needs submitit: pip install 'usfm[slurm]'") from None
    jobs = submitit.AutoExecutor(workdir / "logs" / "%j", cluster=cluster)
    jobs.update_parameters(**parameters)

    def start(number: int, names: Sequence[str]) -> Callable[[], bool]:
        del number
        job = jobs.submit(worker.run_cells, workdir.absolute(), list(names))
        return lambda: not job.done()

    return start


def probe(config: ConfigDict, workdir: pathlib.Path) -> dict[str, float]:
    """Seconds of a step of one task, by its type: timed once, in a process of its own."""
    path = workdir / "step_seconds.json"
    if path.exists():
        return json.loads(path.read_text())
    probed = subprocess.run(
        worker_command(workdir, "--probe"),
        env=environment(config),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if probed.returncode:
        raise UserError("a step of this study could not be made: see the error above")
    seconds = json.loads(probed.stdout.splitlines()[-1])
    write_atomically(path, json.dumps(seconds, indent=2).encode() + b"\n")
    return seconds


def worker_command(workdir: pathlib.Path, *arguments: str) -> list[str]:
    """The command line of a worker."""
    return [sys.executable, "-m", "usfm.study.worker", str(workdir), *arguments]


def environment(config: ConfigDict) -> dict[str, str]:
    """Of workers: what one has compiled, another need not."""
    programs = str(cache_dir(config) / "programs")
    return {"JAX_COMPILATION_CACHE_DIR": programs} | dict(os.environ)
