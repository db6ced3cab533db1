"""A study from the command line: whole, and killed at ten random moments."""

import csv
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import pytest

from usfm.study.execute import LOG

ROOT = pathlib.Path(__file__).parents[2]
CELLS = 3 * 2 * 3  # two tasks alone and both together, by two fractions and three seeds
KILLS = 10
CELL_SECONDS = 2.0  # about as long as one takes


def start(phantoms, shared, workdir):
    config = {
        "tasks": "breast_2cls,lung_2cls",
        "data.root": phantoms,
        "data.cache_dir": shared / "stores",
        "data.image_size": 32,
        "data.val_fraction": 0.5,
        "model.decoder_width.classification": 8,
        "train.steps": 3,
        "train.examples_per_slot": 2,
        "study.plans": "('all_task',)",
        "study.fractions": "(0.5, 1.0)",
        "study.seeds": "(0, 1, 2)",
    }
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "usfm.main", "--config=configs/study.py", "--mode=study"),
            *(f"--config.{field}={value}" for field, value in config.items()),
            f"--workdir={workdir}",
        ],
        cwd=ROOT,
        env=os.environ
        | {"JAX_NUM_CPU_DEVICES": "1", "JAX_COMPILATION_CACHE_DIR": f"{shared}/programs"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output = process.communicate(timeout=900)[0]
    assert process.returncode == 0, output
    return output


def lines_of(workdir):
    path = workdir / LOG
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.long
def test_a_study_that_is_killed_says_what_an_undisturbed_one_says(phantoms, session_dir, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    output = finish(start(phantoms, session_dir, whole))
    assert f"{CELLS} different runs of 3 steps: about" in output
    assert len(lines_of(whole)) == CELLS
    assert {line["status"] for line in lines_of(whole)} == {"done"}
    with (whole / "gains.csv").open(newline="") as file:
        gains = list(csv.DictReader(file))
    assert {(gain["arm"], gain["task"]) for gain in gains} == {
        ("all_task", "breast_2cls"), ("all_task", "lung_2cls")}  # fmt: skip
    assert {(gain["seeds"], gain["verdict"]) for gain in gains} == {("3", "no call")}
    assert (whole / "study.html").exists()

    killed.mkdir()
    shutil.copy(whole / "step_seconds.json", killed)  # timing them again would show nothing
    moments = [random.uniform(0, CELL_SECONDS) for _ in range(KILLS)]
    print(f"killed {', '.join(f'{moment:.2f}' for moment in moments)} s after a cell was done")
    for number, moment in enumerate(moments):
        process = start(phantoms, session_dir, killed)
        while len(lines_of(killed)) <= number:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        time.sleep(moment)
        assert process.poll() is None, process.communicate()[0]
        process.kill()
        process.communicate(timeout=120)
    finish(start(phantoms, session_dir, killed))
    assert (killed / "gains.csv").read_bytes() == (whole / "gains.csv").read_bytes()
    done = [line["cell"] for line in lines_of(killed) if line["status"] == "done"]
    assert sorted({*done}) == sorted(line["cell"] for line in lines_of(whole))
