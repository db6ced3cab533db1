"""`--mode=study`: plan, train cell by cell, find the advised plan, analyse, report."""

import dataclasses
import pathlib

import numpy as np
from ml_collections import ConfigDict

from usfm import config as usfm_config
from usfm.data.builder import open_store
from usfm.data.source import cache_dir, open_folder, open_splits, say
from usfm.errors import UserError
from usfm.evaluation.experts import read_routing
from usfm.study import cells
from usfm.study.advise import advise, recommended
from usfm.study.affinity import affinity
from usfm.study.cells import ADVISED, Study
from usfm.study.execute import LOG, execute, executor, probe
from usfm.study.level import level
from usfm.study.plan import describe, is_open, plan, records
from usfm.study.report import write_report
from usfm.study.stability import Record, join
from usfm.study.transfer import analyse, write_gains
from usfm.study.worker import done
from usfm.training import record


def run_study(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Runs a study, or goes on with it: study.json, cells/, cells.jsonl, gains.csv, study.html."""
    study = prepare(config, workdir)
    say(describe(study, probe(config, workdir), config.train.steps))
    start = executor(config, workdir)
    missing = execute(study, workdir, study.cells(), start, config.study.processes)
    recorded = recorded_runs(config, study, workdir)
    advice = {
        fraction: advise(list(runs.values()), study.tasks, study.training_rows[fraction])
        for fraction, runs in recorded.items()
    }
    if is_open(config, study):
        found = {fraction: recommended(of_fraction) for fraction, of_fraction in advice.items()}
        study = dataclasses.replace(study, partitions={**study.partitions, ADVISED: found})
        cells.write(study, workdir)
        missing = execute(study, workdir, study.cells(), start, config.study.processes)
    if missing:
        say(f"{len(missing)} cells failed: {', '.join(cell.name for cell in missing)}")

    analysis = analyse(study, workdir)
    write_gains(analysis, workdir / "gains.csv")
    affinities = {
        fraction: affinity(join([level(run) for run in runs.values()]), preconditioned=True)
        for fraction, runs in recorded.items()
    }
    routing = routing_of(study, workdir)
    write_report(workdir, study, analysis, affinities=affinities, advice=advice, routing=routing)
    say(f"gains: {workdir / 'gains.csv'}, report: {workdir / 'study.html'}")


def prepare(config: ConfigDict, workdir: pathlib.Path) -> Study:
    """Plans a study: config.json, splits.csv, study.json and the store."""
    usfm_config.check(config)
    usfm_config.check_resumable(config, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    folder = open_folder(config, workdir)
    splits = open_splits(config, folder, workdir)
    study = plan(config, folder, splits)
    size = (config.data.image_size, config.data.image_size)
    open_store(folder, size, config.data.channels, cache_dir(config))
    usfm_config.write(config, workdir / "config.json")
    cells.write(study, workdir)
    return study


def recorded_runs(
    config: ConfigDict, study: Study, workdir: pathlib.Path
) -> dict[float, dict[int, Record]]:
    """Fraction -> seed -> what the run of all tasks recorded; empty where no plan is found from it.

    Raises:
        UserError: at a fraction no such run ended well.
    """
    found: dict[float, dict[int, Record]] = {}
    for cell, own in cells.workdirs(study, workdir):
        if records(config, study, cell):
            of_fraction = found.setdefault(cell.fraction, {})
            if done(own):
                of_fraction[cell.seed] = record.read(own / "gramians")
    for fraction, runs in found.items():
        if not runs:
            raise UserError(
                f"no run of all tasks at fraction {fraction:g} ended well, and '{ADVISED}' is "
                f"found from these: see {workdir / LOG}, or leave '{ADVISED}' out of study.plans"
            )
    return {fraction: dict(sorted(runs.items())) for fraction, runs in sorted(found.items())}


def routing_of(study: Study, workdir: pathlib.Path) -> np.ndarray | None:
    """Float [T, E], what share of each task every expert serves at the end of an all-task run."""
    for cell, own in cells.workdirs(study, workdir):
        of_all = len(cell.tasks) == len(study.tasks) and cell.fraction == study.fractions[-1]
        if of_all and done(own):
            shares = read_routing(own / "metrics.jsonl")
            if all(task.id in shares for task in study.tasks):
                return np.array([shares[task.id] for task in study.tasks])
    return None
