"""A study's cells are ordinary runs that share a program."""

import csv
import json
import shutil

import numpy as np
import pytest

from usfm import config as usfm_config
from usfm.data.source import open_folder, open_splits
from usfm.study import cells, worker
from usfm.study.plan import config_of, plan
from usfm.training import program
from usfm.training.checkpoint import Checkpoints
from usfm.training.train import train

STEPS = 3
# Two tasks of equal shape.
TASKS = "breast_2cls,lung_2cls"


pytestmark = pytest.mark.usefixtures("one_device_mesh")


@pytest.fixture
def planned(make_config, tmp_path):
    """(config, study, workdir) of both tasks alone, two seeds, at half of the data."""
    config = usfm_config.study(make_config(tasks=TASKS))
    config.train.update(steps=STEPS, examples_per_slot=2)
    config.study.update(plans=("task_specific",), fractions=(0.5,), seeds=(0, 1))
    workdir = tmp_path / "study"
    workdir.mkdir()
    folder = open_folder(config, workdir)
    study = plan(config, folder, open_splits(config, folder, workdir))
    usfm_config.write(config, workdir / "config.json")
    cells.write(study, workdir)
    return config, study, workdir


def params_of(workdir):
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [STEPS]
        return checkpoints.arrays(STEPS)


def scores_of(workdir):
    with (workdir / "evaluation_rows.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_cells_of_a_shape_share_a_program_and_are_trained_as_if_alone(planned, monkeypatch):
    config, study, workdir = planned
    made = []

    def counted(*arguments):
        made.append(arguments)
        return program.make_program(*arguments)

    monkeypatch.setattr(worker, "make_program", counted)
    names = [cell.name for cell in study.cells()]
    assert len(names) == 4
    worker.run_cells(workdir, names)
    assert len(made) == 1
    for name in names:
        assert worker.status(workdir / "cells" / name)["status"] == "done", worker.status(
            workdir / "cells" / name
        )

    # One that came later in the shared program, by itself.
    cell = study.cells()[-1]
    alone = workdir.parent / "alone"
    alone.mkdir()
    of_cell = config_of(config, study, cell, workdir / "splits.csv")
    folder = open_folder(of_cell, alone)
    train(of_cell, alone, folder, open_splits(of_cell, folder))
    ours, theirs = params_of(workdir / "cells" / cell.name), params_of(alone)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)

    # Seeds and tasks differ in what they learn, and all are scored on the task's rows.
    assert len({params_of(workdir / "cells" / n)["params/encoder/cls_token"].tobytes()
                for n in names}) == 4  # fmt: skip
    keys = {name: [row["row_key"] for row in scores_of(workdir / "cells" / name)] for name in names}
    assert keys[names[0]] == keys[names[1]]
    report = json.loads((workdir / "cells" / names[0] / "evaluation.json").read_text())
    assert list(report["tasks"]) == list(study.cells()[0].tasks)

    # Who is done is passed over; who is not goes on from its checkpoint and is scored.
    made.clear()
    again = workdir / "cells" / names[1]
    before = (again / "evaluation_rows.csv").read_bytes()
    (again / worker.STATUS).unlink()
    (again / "evaluation_rows.csv").unlink()
    worker.run_cells(workdir, names)
    assert len(made) == 1
    assert (again / "evaluation_rows.csv").read_bytes() == before


def test_cells_in_a_pack_learn_what_they_learn_alone(planned, capsys):
    config, study, workdir = planned
    names = [cell.name for cell in study.cells()]
    worker.run_cells(workdir, names[:2])
    alone = [params_of(workdir / "cells" / name) for name in names[:2]]
    (workdir / "cells").rename(workdir / "cells_alone")
    config.study.pack = 2
    usfm_config.write(config, workdir / "config.json")
    worker.run_cells(workdir, names[:2])
    assert "fail together" not in capsys.readouterr().err
    for name, expected in zip(names, alone, strict=False):
        own = workdir / "cells" / name
        assert worker.done(own)
        packed = params_of(own)
        for path, array in expected.items():
            if path.startswith("params/"):
                # Adam turns rounding of gradients next to nothing into a share of its step.
                rate = config.optimizer.learning_rate
                np.testing.assert_allclose(packed[path], array, rtol=0, atol=0.02 * rate)
        lines = [(at / "metrics.jsonl").read_text().splitlines()
                 for at in (own, workdir / "cells_alone" / name)]  # fmt: skip
        for ours, theirs in zip(*(map(json.loads, of) for of in lines), strict=True):
            assert ours["step"] == theirs["step"]
            (loss,) = (name for name in theirs if name.startswith("loss/"))
            assert ours[loss] == pytest.approx(theirs[loss], rel=1e-5)


def test_a_cell_that_fails_says_why_and_the_others_go_on(planned, monkeypatch):
    _, study, workdir = planned
    names = [cell.name for cell in study.cells()][:2]

    def fail(config, workdir, *_, **__):
        if workdir.name == names[0]:
            raise RuntimeError("so it was planned")
        shutil.copy(__file__, workdir)

    monkeypatch.setattr(worker, "train", fail)
    monkeypatch.setattr(worker, "_score", lambda *_: None)
    worker.run_cells(workdir, names)
    first, second = (worker.status(workdir / "cells" / name) for name in names)
    assert first["status"] == "failed"
    assert "RuntimeError: so it was planned" in first["error"]
    assert second["status"] == "done"
