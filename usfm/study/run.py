"""`--mode=study`: plan, train cell by cell, find the advised plan, analyse, report."""

import dataclasses
import pathlib

from ml_collections import ConfigDict

from usfm import config as usfm_config
from usfm.data.builder import open_store
from usfm.data.source import cache_dir, open_folder, open_splits, say
from usfm.errors import UserError
from usfm.study import cells
from usfm.study.advise import advised_plan
from usfm.study.cells import ADVISED, Study
from usfm.study.execute import LOG, execute, executor, probe
from usfm.study.plan import describe, is_open, plan, records
from usfm.study.transfer import analyse, write_gains
from usfm.study.worker import done
from usfm.training import record


def run_study(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Runs a study, or goes on with it: study.json, cells/, cells.jsonl, gains.csv, study.html."""
    study = prepare(config, workdir)
    say(describe(study, probe(config, workdir), config.train.steps))
    start = executor(config, workdir)
    missing = execute(study, workdir, study.cells(), start, config.study.processes)
    if is_open(config, study):
        study = with_advised(config, study, workdir)
        cells.write(study, workdir)
        missing = execute(study, workdir, study.cells(), start, config.study.processes)
    analysis = analyse(study, workdir)
    write_gains(analysis, workdir / "gains.csv")
    say(f"gains: {workdir / 'gains.csv'}")
    if missing:
        say(f"{len(missing)} cells failed: {', '.join(cell.name for cell in missing)}")


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


def with_advised(config: ConfigDict, study: Study, workdir: pathlib.Path) -> Study:
    """The study with the plan that is found, at each fraction, from what the runs recorded."""
    found = {}
    for fraction in study.fractions:
        recorded = {
            cell.seed: record.read(own / "gramians")
            for cell, own in cells.workdirs(study, workdir)
            if cell.fraction == fraction and records(config, study, cell) and done(own)
        }
        if not recorded:
            raise UserError(
                f"no run of all tasks at fraction {fraction:g} ended well, and '{ADVISED}' is "
                f"found from these: see {workdir / LOG}, or leave '{ADVISED}' out of study.plans"
            )
        found[fraction] = advised_plan(recorded, study.tasks)
    return dataclasses.replace(study, partitions={**study.partitions, ADVISED: found})
