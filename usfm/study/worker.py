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
from ml_collections import ConfigDict

from usfm import checks
from usfm import config as usfm_config
from usfm.data.folder import Folder
from usfm.data.slots import slots_per_type
from usfm.data.source import open_folder, open_splits, open_store, rows_in, say
from usfm.data.splits import Splits
from usfm.data.store import Store
from usfm.evaluation import evaluate
from usfm.evaluation.files import write_atomically
from usfm.evaluation.predict import make_predictor, programs_of
from usfm.models.functional import Params
from usfm.study import cells
from usfm.study.cells import Cell, Study, place
from usfm.study.plan import config_of
from usfm.training import sharding
from usfm.training.inputs import inputs_of
from usfm.training.program import Program, make_program
from usfm.training.together import train_together
from usfm.training.train import train

STATUS = "cell.json"  # of a cell that is done, or failed
PROBED = 5  # steps


@dataclasses.dataclass(frozen=True)
class _Opened:
    """A planned study, and the data that all of its cells share."""

    workdir: pathlib.Path
    config: ConfigDict
    study: Study
    folder: Folder
    splits: Splits
    store: Store

    def run_of(self, cell: Cell) -> tuple[ConfigDict, pathlib.Path, Folder]:
        """The config, the workdir and the folder of a cell's run."""
        config = config_of(self.config, self.study, cell, self.workdir / "splits.csv")
        folder = dataclasses.replace(
            self.folder,
            tasks=tuple(task for task in self.folder.tasks if task.id in cell.tasks),
            rows={id: self.folder.rows[id] for id in cell.tasks},
        )
        return config, place(self.workdir, cell), folder


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
    opened = _open(workdir)
    by_name = {cell.name: cell for cell in opened.study.cells()}
    left = [by_name[name] for name in names if not done(place(workdir, by_name[name]))]
    for _, of_shape in itertools.groupby(left, key=opened.study.shape):
        shared: list[_Programs] = []
        for together in _in_packs(list(of_shape), opened.config.study.pack):
            _train_together(opened, together, shared)
            for cell in together:
                _leave_status(opened, cell, shared)
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
    opened = _open(workdir)
    study, seconds = opened.study, {}
    for task in study.tasks:
        if task.type in seconds:
            continue
        cell = Cell((task.id,), study.fractions[-1], study.seeds[0], "sum", study.models[0])
        config, _, folder = opened.run_of(cell)
        inputs = inputs_of(config, folder, opened.splits, opened.store)
        mesh = _on_mesh(config)
        program = make_program(config, folder.tasks, inputs.mix.slots, mesh)
        batch = inputs.batches[0]
        assert batch is not None  # grain allows for filters, and there is none
        state, times = program.start(inputs.own.seed), []
        for _ in range(PROBED):
            began = time.perf_counter()
            state, _ = program.step(state, sharding.place_batch(batch, mesh), inputs.own)
            jax.block_until_ready(state)
            times.append(time.perf_counter() - began)
        seconds[task.type] = min(times)
    return seconds


def _open(workdir: pathlib.Path) -> _Opened:
    config, study = usfm_config.read(workdir / "config.json"), cells.read(workdir)
    config.data.splits_file = str(workdir / "splits.csv")
    folder = open_folder(config, workdir)
    splits, store = open_splits(config, folder), open_store(config, folder)
    return _Opened(workdir, config, study, folder, splits, store)


def _on_mesh(config: ConfigDict) -> jax.sharding.Mesh:
    mesh = sharding.make_mesh(config.mesh)
    jax.set_mesh(mesh)
    return mesh


def _in_packs(cells: list[Cell], size: int) -> list[list[Cell]]:
    return [cells[start : start + size] for start in range(0, len(cells), size)]


def _train_together(opened: _Opened, together: Sequence[Cell], shared: list[_Programs]) -> None:
    """Trains those of a pack that have not begun, stacked; who fails so is trained alone later."""
    runs = [opened.run_of(cell) for cell in together]
    new = [run for run in runs if not (run[1] / "checkpoints").exists()]
    if len(new) < 2:
        return
    configs, workdirs, folders = zip(*new, strict=True)
    try:
        for config, workdir in zip(configs, workdirs, strict=True):
            checks.begin(config, workdir)
        slots = slots_per_type(folders[0].tasks, None, configs[0].train.slots)
        mesh = _on_mesh(configs[0])
        program = _programs(shared, configs[0], folders[0].tasks, slots, mesh).train
        train_together(
            configs, workdirs, folders, opened.splits, store=opened.store, program=program
        )
    except Exception:
        say(traceback.format_exc() + f"{len(new)} cells fail together: they are trained alone")


def _programs(shared: list[_Programs], *arguments: Any) -> _Programs:
    """The programs of cells of one shape, made for the first of them."""
    if not shared:
        program = make_program(*arguments)
        shared.append(_Programs(program, programs_of(program.model, arguments[-1])))
    return shared[0]


def _leave_status(opened: _Opened, cell: Cell, shared: list[_Programs]) -> None:
    began, workdir = time.perf_counter(), place(opened.workdir, cell)
    workdir.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"status": "done"}
    try:
        _run(opened, cell, shared)
    except Exception:  # whatever it was, it is told, and the other cells go on
        result = {"status": "failed", "error": traceback.format_exc()}
        say(result["error"])
    result["seconds"] = round(time.perf_counter() - began, 1)
    write_atomically(workdir / STATUS, json.dumps(result, indent=2).encode() + b"\n")


def _run(opened: _Opened, cell: Cell, shared: list[_Programs]) -> None:
    """Trains a cell, going on where it was, and scores it."""
    config, workdir, folder = opened.run_of(cell)
    checks.begin(config, workdir)
    params = train(
        config,
        workdir,
        folder,
        opened.splits,
        store=opened.store,
        program_of=lambda *arguments: _programs(shared, *arguments).train,
    )
    _score(config, workdir, folder, opened.splits, shared, params)


def _score(
    config: ConfigDict,
    workdir: pathlib.Path,
    folder: Folder,
    splits: Splits,
    shared: Sequence[_Programs],
    params: Params,
) -> None:
    """Scores a cell on its tasks' rows: evaluation.json, evaluation_rows.csv."""
    predictor = make_predictor(
        config, shared[0].answer, folder.tasks, params, jax.sharding.get_mesh()
    )
    rows = rows_in(folder, splits, config.evaluate.part)
    rows = {task_id: of_task for task_id, of_task in rows.items() if of_task}
    result = evaluate.evaluate(
        predictor(folder, rows),
        folder,
        rows,
        trivial={},
        part_of=splits.part,
        group_of=splits.group,
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
