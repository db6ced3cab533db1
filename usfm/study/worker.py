"""Trains and scores cells of a study, one after another; those of equal shapes share a program.

python -m usfm.study.worker STUDY CELL...     trains and scores these
python -m usfm.study.worker STUDY --probe     prints the seconds of a step of each type of task
"""

import dataclasses
import itertools
import json
import os
import pathlib
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from usfm import config as usfm_config
from usfm.data.builder import open_store
from usfm.data.folder import Folder
from usfm.data.pipeline import slot_batches
from usfm.data.slots import slots_per_type
from usfm.data.source import cache_dir, open_folder, open_splits, rows_in, say, training_rows
from usfm.data.splits import Splits
from usfm.data.store import Store
from usfm.evaluation import evaluate
from usfm.evaluation.files import write_atomically
from usfm.evaluation.predict import Predictor, programs_of
from usfm.models.functional import Params
from usfm.study import cells
from usfm.study.cells import Cell, Study
from usfm.study.plan import config_of
from usfm.training import sharding
from usfm.training.program import Program, make_program
from usfm.training.step import Own
from usfm.training.together import train_together
from usfm.training.train import train

STATUS = "cell.json"  # of a cell that is done, or failed
PROBED = 5  # steps


@dataclasses.dataclass(frozen=True)
class _Data:
    """What all cells share."""

    folder: Folder
    splits: Splits
    store: Store

    def of(self, tasks: Sequence[str]) -> Folder:
        """The folder with these tasks alone."""
        folder = self.folder
        return dataclasses.replace(
            folder,
            tasks=tuple(task for task in folder.tasks if task.id in tasks),
            rows={id: folder.rows[id] for id in tasks},
        )


@dataclasses.dataclass(frozen=True)
class _Programs:
    """What cells of equal shapes share: how they train, and how they answer."""

    train: Program
    answer: Mapping[str, Any]


def run_cells(workdir: pathlib.Path, names: Sequence[str]) -> None:
    """Trains and scores cells; each leaves cell.json, also where it failed.

    Args:
        workdir: of the study, planned.
        names: of cells; those that are done are passed over.
    """
    config, study, data = _opened(workdir)
    by_name = {cell.name: cell for cell in study.cells()}
    left = [by_name[name] for name in names if not done(workdir / "cells" / name)]
    for _, of_shape in itertools.groupby(left, key=study.shape):
        shared: list[_Programs] = []
        for together in _in_packs(list(of_shape), config.study.pack):
            _train_together(config, study, together, data, workdir, shared)
            for cell in together:
                _leave_status(config, study, cell, data, workdir, shared)
        jax.clear_caches()


def done(workdir: pathlib.Path) -> bool:
    """Whether the cell of a workdir is trained and scored."""
    return status(workdir).get("status") == "done"


def status(workdir: pathlib.Path) -> dict[str, Any]:
    """What cell.json says: status, seconds and, of a failed one, error; {} before that."""
    path = workdir / STATUS
    return json.loads(path.read_text()) if path.exists() else {}


def probe(workdir: pathlib.Path) -> dict[str, float]:
    """Seconds of a step of one task, by type, at the config's examples a slot."""
    config, study, data = _opened(workdir)
    seconds = {}
    for task in study.tasks:
        if task.type in seconds:
            continue
        cell = Cell((task.id,), study.fractions[-1], study.seeds[0], "sum", study.models[0])
        of_cell = config_of(config, study, cell, workdir / "splits.csv")
        folder = data.of(cell.tasks)
        mesh = sharding.make_mesh(of_cell.mesh)
        jax.set_mesh(mesh)
        program = make_program(
            of_cell, folder.tasks, slots_per_type(folder.tasks, None, of_cell.train.slots), mesh
        )
        batch = slot_batches(
            data.store,
            folder.tasks,
            training_rows(folder, data.splits, of_cell.data),
            slots=of_cell.train.slots,
            examples_per_slot=of_cell.train.examples_per_slot,
            seed=0,
        )[0]
        assert batch is not None
        own = Own(np.uint32(0), np.ones((1, max(task.num_classes, 1)), np.float32))
        state, times = program.start(own.seed), []
        for _ in range(PROBED):
            began = time.perf_counter()
            state, _ = program.step(state, sharding.place_batch(batch, mesh), own)
            jax.block_until_ready(state)
            times.append(time.perf_counter() - began)
        seconds[task.type] = min(times)
    return seconds


def _opened(workdir: pathlib.Path) -> tuple[ConfigDict, Study, _Data]:
    config, study = usfm_config.read(workdir / "config.json"), cells.read(workdir)
    config.data.splits_file = str(workdir / "splits.csv")
    folder = open_folder(config, workdir)
    size = (config.data.image_size, config.data.image_size)
    store = open_store(folder, size, config.data.channels, cache_dir(config))
    return config, study, _Data(folder, open_splits(config, folder), store)


def _in_packs(cells: list[Cell], size: int) -> list[list[Cell]]:
    return [cells[start : start + size] for start in range(0, len(cells), size)]


def _train_together(
    config: ConfigDict,
    study: Study,
    together: Sequence[Cell],
    data: _Data,
    workdir: pathlib.Path,
    shared: list[_Programs],
) -> None:
    """Trains those of a pack that have not begun, stacked; who fails so is trained alone later."""
    new = [
        cell for cell in together if not (workdir / "cells" / cell.name / "checkpoints").exists()
    ]
    if len(new) < 2:
        return
    configs = [config_of(config, study, cell, workdir / "splits.csv") for cell in new]
    folders = [data.of(cell.tasks) for cell in new]
    places = [workdir / "cells" / cell.name for cell in new]
    try:
        for of_cell, place in zip(configs, places, strict=True):
            place.mkdir(parents=True, exist_ok=True)
            usfm_config.check(of_cell)
            usfm_config.check_resumable(of_cell, place)
        mesh = sharding.make_mesh(configs[0].mesh)
        jax.set_mesh(mesh)
        slots = slots_per_type(folders[0].tasks, None, configs[0].train.slots)
        program = _programs(shared, configs[0], folders[0].tasks, slots, mesh).train
        train_together(configs, places, folders, data.splits, store=data.store, program=program)
    except Exception:
        say(traceback.format_exc() + f"{len(new)} cells fail together: they are trained alone")


def _programs(shared: list[_Programs], *arguments: Any) -> _Programs:
    """The programs of cells of one shape, made for the first of them."""
    if not shared:
        program = make_program(*arguments)
        shared.append(_Programs(program, programs_of(program.model, arguments[-1])))
    return shared[0]


def _leave_status(
    config: ConfigDict,
    study: Study,
    cell: Cell,
    data: _Data,
    workdir: pathlib.Path,
    shared: list[_Programs],
) -> None:
    began, own = time.perf_counter(), workdir / "cells" / cell.name
    own.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"status": "done"}
    try:
        _run(config_of(config, study, cell, workdir / "splits.csv"), cell, data, own, shared)
    except Exception:  # whatever it was, it is told, and the other cells go on
        result = {"status": "failed", "error": traceback.format_exc()}
        say(result["error"])
    result["seconds"] = round(time.perf_counter() - began, 1)
    write_atomically(own / STATUS, json.dumps(result, indent=2).encode() + b"\n")


def _run(
    config: ConfigDict, cell: Cell, data: _Data, workdir: pathlib.Path, shared: list[_Programs]
) -> None:
    """Trains a cell, going on where it was, and scores it."""
    usfm_config.check(config)
    usfm_config.check_resumable(config, workdir)
    folder = data.of(cell.tasks)
    params = train(
        config,
        workdir,
        folder,
        data.splits,
        store=data.store,
        program_of=lambda *arguments: _programs(shared, *arguments).train,
    )
    _score(config, folder, data, workdir, shared, params)


def _score(
    config: ConfigDict,
    folder: Folder,
    data: _Data,
    workdir: pathlib.Path,
    shared: Sequence[_Programs],
    params: Params,
) -> None:
    """Scores a cell on its tasks' rows: evaluation.json, evaluation_rows.csv."""
    predictor = Predictor(
        shared[0].answer,
        folder.tasks,
        params,
        jax.sharding.get_mesh(),
        (config.data.image_size, config.data.image_size),
        config.data.channels,
        config.evaluate.batch_size,
    )
    rows = rows_in(folder, data.splits, config.evaluate.part)
    rows = {task_id: of_task for task_id, of_task in rows.items() if of_task}
    result = evaluate.evaluate(
        predictor(folder, rows),
        folder,
        rows,
        trivial={},
        part_of=data.splits.part,
        group_of=data.splits.group,
    )
    evaluate.write(result, workdir)


def _end_with_parent() -> None:
    """Ends this process when the one that holds its stdin is gone: nobody else would."""

    def wait() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    study_dir, *arguments = sys.argv[1:]
    if arguments == ["--probe"]:
        print(json.dumps(probe(pathlib.Path(study_dir))))
    else:
        _end_with_parent()
        run_cells(pathlib.Path(study_dir), arguments)
