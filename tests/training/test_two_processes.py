"""Two processes of one device each do what one process does on two devices."""

import csv
import json
import subprocess

import jax
import numpy as np
import pytest

from usfm import config as usfm_config
from usfm import modes
from usfm.data.folder import read_folder
from usfm.evaluation.metrics import METRICS
from usfm.training import goodput, sharding
from usfm.training.checkpoint import Checkpoints

STEPS = 24
# Rows to score: neither is a multiple of the processes, nor their shares of the batch.
SCORED = {"breast_2cls": 7, "lung_2cls": 5}
# One process makes what these tests share.
pytestmark = pytest.mark.xdist_group("two_processes")


@pytest.fixture(scope="module")
def two(run, session_dir, free_address):
    """The workdir of a run of two processes, what each printed, and where they built the store."""
    workdir = session_dir / "two"
    splits = session_dir / "two_splits.csv"
    folder = read_folder(run.data, tasks=",".join(SCORED))
    with splits.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("task_id", "image_path", "part"))
        for task, count in SCORED.items():
            for place, row in enumerate(folder.rows[task]):
                writer.writerow((task, row.image_path, "val" if place < count else "train"))
    flags = [
        f"--config.tasks={','.join(SCORED)}",
        f"--config.data.splits_file={splits}",
        f"--config.data.cache_dir={session_dir / 'two_stores'}",
        "--config.evaluate.batch_size=4",
        "--config.checkpoint.every_steps=12",
        "--config.watch.profile=3:4",
        # What compiles fast.
        "--config.multitask.method=sum",
        "--config.multitask.engine=auto",
        "--config.multitask.gramian_ema=0.0",
        "--config.multitask.record=False",
        f"--coordinator={free_address()}",
        "--processes=2",
    ]
    both: list[subprocess.Popen[str]] = [
        run.start(workdir, *flags, f"--process={number}") for number in (1, 0)
    ]
    second, first = (process.communicate(timeout=600) for process in both)
    assert [process.returncode for process in both] == [0, 0], first[1] + second[1]
    return workdir, first, second


@pytest.fixture(scope="module")
def one(two, session_dir):
    """The workdir of the same run of this process, on two of its devices."""
    workdir = session_dir / "one"
    config = usfm_config.read(two[0] / "config.json")
    config.data.cache_dir = str(session_dir / "stores")
    config.watch.profile = ""
    mesh = sharding.make_mesh({"data": 2, "fsdp": 1, "expert": 1}, jax.devices()[:2])
    with pytest.MonkeyPatch.context() as patch, jax.set_mesh(mesh):
        patch.setattr(sharding, "make_mesh", lambda sizes: mesh)
        modes.run_train(config, workdir)
    return workdir


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_they_learn_the_same(two, one):
    states = []
    for workdir in (two[0], one):
        with Checkpoints(workdir / "checkpoints") as checkpoints:
            assert checkpoints.steps() == [STEPS // 2, STEPS]
            states.append(checkpoints.arrays(STEPS))
    ours, theirs = states
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        # Equal to the last bit here; sums over devices may be made in another order elsewhere.
        apart = np.linalg.norm((ours[name] - array).astype(np.float64).ravel())
        assert apart <= 1e-5 * np.linalg.norm(array.astype(np.float64).ravel()), name


def test_process_0_alone_writes_and_speaks(two, one):
    workdir, (output, errors), (silent_output, silent_errors) = two
    ours, theirs = lines_of(workdir), lines_of(one)
    assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
    for our, their in zip(ours, theirs, strict=True):
        for name in our.keys() - {"seconds", "images_per_second", "data_wait", "compilations"}:
            assert our[name] == pytest.approx(their[name], rel=1e-4, abs=1e-4), name
    events = [event["event"] for event in goodput.read(workdir)]
    assert [events.count(what) for what in ("begin", "loop", "compiled", "evaluated")] == [1] * 4
    assert f"step {STEPS} of {STEPS}: loss " in errors
    assert "goodput " in errors
    assert output.count("breast_2cls") == 1  # in the table
    assert "Gloo" in silent_output
    assert len(silent_output.splitlines()) == 1  # which JAX's CPU backend prints
    assert silent_errors == ""


def test_every_row_is_scored_once_and_the_scores_are_the_same(two, one):
    ours, theirs = (json.loads((of / "evaluation.json").read_text()) for of in (two[0], one))
    assert {task: of["n"] for task, of in ours["tasks"].items()} == SCORED
    assert ours["missing"] == []
    for task, of_task in theirs["tasks"].items():
        of_two = ours["tasks"][task]
        assert of_two["undefined"] == of_task["undefined"]
        for metric in METRICS["classification"]:
            assert of_two[metric] == pytest.approx(of_task[metric], rel=1e-6, abs=1e-6), task
    assert ours == {**theirs, "tasks": ours["tasks"]}
    texts = ((of / "evaluation_rows.csv").read_text() for of in (two[0], one))
    rows = [list(csv.reader(text.splitlines())) for text in texts]
    assert [row[:-1] for row in rows[0]] == [row[:-1] for row in rows[1]]
    our_values, their_values = ([float(row[-1]) for row in of[1:]] for of in rows)
    assert our_values == pytest.approx(their_values, abs=1e-5)  # batches are of other sizes


def test_one_store_is_built(two, session_dir):
    assert len([path for path in (session_dir / "two_stores").iterdir() if path.is_dir()]) == 1


def test_the_chosen_step_is_traced(two):
    assert list((two[0] / "profile").rglob("*.xplane.pb"))
