"""`--mode=study`: plan, train cell by cell, find the advised plan, analyse, report."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from usfm import checks
from usfm import config as usfm_config
from usfm.data.source import open_folder, open_splits, open_store, say
from usfm.errors import UserError
from usfm.evaluation.experts import read_routing
from usfm.study import cells
from usfm.study.advise import Advice, advise, recommended
from usfm.study.agreement import agreement
from usfm.study.calibration import Measured
from usfm.study.cells import ADVISED, Study
from usfm.study.execute import LOG, execute, executor, probe
from usfm.study.gains import Gain, gains
from usfm.study.plan import ALL_TASK, describe, plan
from usfm.study.report import write_report
from usfm.study.scores import read_scores
from usfm.study.stability import Record
from usfm.study.transfer import analyse, write_gains
from usfm.study.worker import done
from usfm.training import record

BOUND = 1.0  # of a gain: twice as good, or nothing left


def run_study(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Runs a study, or goes on with it: study.json, cells/, cells.jsonl, gains.csv, study.html."""
    study = prepare(config, workdir)
    say(describe(study, probe(config, workdir), config.train.steps))
    start = executor(config, workdir)
    missing = execute(study, workdir, study.cells(), start, config.study.processes)
    advice = advise_study(study, workdir)
    if study.is_open:
        found = {fraction: recommended(of_fraction) for fraction, of_fraction in advice.items()}
        study = dataclasses.replace(study, partitions={**study.partitions, ADVISED: found})
        cells.write(study, workdir)
        missing = execute(study, workdir, study.cells(), start, config.study.processes)
    if missing:
        say(f"{len(missing)} cells failed: {', '.join(cell.name for cell in missing)}")

    scores = read_scores(study, workdir)
    analysis = analyse(study, scores)
    write_gains(analysis, workdir / "gains.csv")
    affinities = {fraction: of_fraction.affinity for fraction, of_fraction in advice.items()}
    write_report(
        workdir,
        study,
        analysis,
        affinities=affinities,
        agreement=agreement(study, scores, affinities),
        advice=advice,
        routing=routing_of(study, workdir),
    )
    say(f"gains: {workdir / 'gains.csv'}, report: {workdir / 'study.html'}")


def prepare(config: ConfigDict, workdir: pathlib.Path) -> Study:
    """Plans a study: config.json, splits.csv, study.json and the store."""
    if config.checkpoint.directory:
        raise UserError(
            f"checkpoint.directory={config.checkpoint.directory}: the runs of a study keep their "
            "checkpoints in workdirs of their own; leave it out"
        )
    checks.begin(config, workdir)
    folder = open_folder(config, workdir)
    splits = open_splits(config, folder, workdir)
    study = plan(config, folder, splits)
    _check_recorded(study, workdir)
    open_store(config, folder)
    usfm_config.write(config, workdir / "config.json")
    cells.write(study, workdir)
    return study


def advise_study(study: Study, workdir: pathlib.Path) -> dict[float, Advice]:
    """Fraction -> what is advised there, from what its runs recorded and its given plans gained.

    Raises:
        UserError: at a fraction no run of all tasks ended well.
    """
    measured, _ = gains(study, read_scores(study, workdir))
    return {
        fraction: advise(
            list(runs.values()),
            study.tasks,
            study.training_rows[fraction],
            measured=_measured(study, measured, fraction),
        )
        for fraction, runs in recorded_runs(study, workdir).items()
    }


def _check_recorded(study: Study, workdir: pathlib.Path) -> None:
    """Refuses to look for a plan in runs that were trained before it was asked for."""
    unrecorded = [
        str(own)
        for cell, own in cells.workdirs(study, workdir)
        if study.records(cell) and done(own) and not (own / "gramians").exists()
    ]
    if unrecorded:
        raise UserError(
            f"study.plans: '{ADVISED}' is found from what '{ALL_TASK}' records, and these runs "
            f"were trained without recording: {', '.join(unrecorded)}; delete them to train them "
            f"again, or leave '{ADVISED}' out"
        )


def recorded_runs(study: Study, workdir: pathlib.Path) -> dict[float, dict[int, Record]]:
    """Fraction -> seed -> what the run of all tasks recorded; empty where no plan is found from it.

    Raises:
        UserError: at a fraction no such run ended well.
    """
    found: dict[float, dict[int, Record]] = {}
    for cell, own in cells.workdirs(study, workdir):
        if study.records(cell):
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


def _measured(study: Study, found: Sequence[Gain], fraction: float) -> list[Measured]:
    """What the plans that were given gained at a fraction, for the fit of predicted gains.

    A task whose own model learned next to nothing can gain many times its metric: BOUND is all
    that is made of it.
    """
    plans = {
        study.label(arm): arm
        for arm in study.arms
        if arm.plan != ADVISED and (arm.method, arm.model) == (study.methods[0], study.models[0])
    }
    return [
        Measured(
            gain.task,
            study.cell(plans[gain.arm], fraction, study.seeds[0], gain.task).tasks,
            float(np.clip(gain.gain, -BOUND, BOUND)),
        )
        for gain in found
        if gain.fraction == fraction and gain.arm in plans and gain.together
    ]


def routing_of(study: Study, workdir: pathlib.Path) -> np.ndarray | None:
    """Float [T, E], what share of each task every expert serves at the end of an all-task run."""
    for cell, own in cells.workdirs(study, workdir):
        if study.of_all(cell) and cell.fraction == study.fractions[-1] and done(own):
            shares = read_routing(own / "metrics.jsonl")
            if all(task.id in shares for task in study.tasks):
                return np.array([shares[task.id] for task in study.tasks])
    return None
