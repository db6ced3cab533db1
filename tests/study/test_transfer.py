"""A study from the files of its cells to gains.csv."""

import csv

import numpy as np
import pytest

from usfm.evaluation.evaluate import ROW_FIELDS
from usfm.study.affinity import Affinity
from usfm.study.agreement import agreement
from usfm.study.cells import Study, workdirs
from usfm.study.gains import GAIN, HARM, NO_CALL
from usfm.study.scores import read_scores
from usfm.study.transfer import COLUMNS, analyse, write_gains
from usfm.tasks import Task
from usfm.tasks.plans import all_task, clinically_grouped, task_specific

TASKS = (
    Task("breast_cls", "classification", num_classes=2, group="breast"),
    Task("breast_seg", "segmentation", num_classes=2, group="breast"),
    Task("heart_points", "regression", num_points=2, group="heart"),
    Task("heart_seg", "segmentation", num_classes=2, group="heart"),
    Task("thyroid_det", "detection", num_classes=1, group="thyroid"),
)
PLANS = (task_specific(TASKS), clinically_grouped(TASKS), all_task(TASKS))
FRACTIONS = (0.25, 1.0)
STUDY = Study(
    tasks=TASKS,
    fractions=FRACTIONS,
    seeds=(0, 1, 2),
    methods=("sum",),
    models=("vits16",),
    partitions={plan.name: dict.fromkeys(FRACTIONS, plan) for plan in PLANS},
    training_rows={
        f: {task.id: int(f * 400 * (i + 1)) for i, task in enumerate(TASKS)} for f in FRACTIONS
    },
)
ROWS = 60


def lines_of(cell, task, rng):
    """(row key, group, metric, value) of a cell whose heart is harmed and breast is helped."""
    hard = np.random.default_rng(len(task.id)).standard_normal(ROWS)  # for every model
    together = len(cell.tasks) > 1
    help_ = {"breast": 1, "heart": -1, "thyroid": 0}[task.group] if together else 0
    noise = 0.3 * rng.standard_normal(ROWS) + 0.1 * rng.standard_normal()
    for row, (difficulty, luck) in enumerate(zip(hard, noise, strict=True)):
        names = (f"row{row}", f"patient{row // 2}")
        better = help_ - difficulty + luck
        if task.type == "classification":
            label = row % 2
            prob = 1 / (1 + np.exp(-(2 * label - 1) - (2 * label - 1) * (0.8 * better)))
            scores = {"label": label, "prob_0": 1 - prob, "prob_1": prob}
        elif task.type == "regression":
            scores = {"mre": 20 - 4 * better}
        else:
            scores = {"dsc" if task.type == "segmentation" else "iou": 0.6 + 0.1 * better}
        yield from ((*names, metric, value) for metric, value in scores.items())


@pytest.fixture
def workdir(tmp_path):
    tasks = {task.id: task for task in TASKS}
    for number, (cell, folder) in enumerate(workdirs(STUDY, tmp_path)):
        folder.mkdir(parents=True)
        rng = np.random.default_rng(number)
        with (folder / "evaluation_rows.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(ROW_FIELDS)
            for task_id in cell.tasks:
                for key, group, metric, value in lines_of(cell, tasks[task_id], rng):
                    writer.writerow((task_id, key, group, "test", metric, value))
    return tmp_path


def test_a_study_is_read_through(workdir):
    found = analyse(STUDY, read_scores(STUDY, workdir), resamples=200)
    assert found.missing == ()
    assert len(found.gains) == 2 * 2 * 5
    verdicts = {(g.arm, g.fraction, g.task): g.verdict for g in found.gains}
    for arm in ("clinically_grouped", "all_task"):
        assert verdicts[arm, 1.0, "breast_seg"] == GAIN
        assert verdicts[arm, 1.0, "heart_seg"] == HARM
        assert verdicts[arm, 1.0, "heart_points"] == HARM  # the error rises
        assert verdicts[arm, 1.0, "thyroid_det"] == NO_CALL
    means = {(m.arm, m.fraction, m.of): m for m in found.group_means}
    assert means["all_task", 0.25, "breast"].low > 0
    assert means["all_task", 0.25, "heart"].high < 0
    assert {m.of for m in found.type_means} == {task.type for task in TASKS}
    assert [m.tasks for m in found.overall] == [5] * 4
    assert all(c.groups == 3 and c.low > 0 for c in found.consistency)
    assert len(found.break_evens) == 2 * 4
    assert len(found.claims) == 4


def test_a_failed_cell_costs_its_own_figures(workdir):
    lost = STUDY.cell(STUDY.arms[0], 1.0, 0, "heart_seg")
    (workdir / "cells" / lost.name / "evaluation_rows.csv").unlink()
    found = analyse(STUDY, read_scores(STUDY, workdir), resamples=50)
    assert found.missing == (f"{lost.name}: has no evaluation_rows.csv",)
    undecided = {(g.fraction, g.task, g.seeds) for g in found.gains if g.verdict == "undecided"}
    assert undecided == {(1.0, "heart_seg", 2)}


def test_a_task_may_lose_a_seed_that_its_model_keeps_for_others(workdir):
    together = STUDY.cell(STUDY.arms[2], 1.0, 1, "heart_seg")
    path = workdir / "cells" / together.name / "evaluation_rows.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("heart_seg")))
    found = analyse(STUDY, read_scores(STUDY, workdir), resamples=50)
    assert found.missing == (f"{together.name}: heart_seg: 60 of 60 test rows have no answer",)
    seeds = {(g.arm, g.task): g.seeds for g in found.gains if g.fraction == 1}
    assert seeds["all_task", "heart_seg"] == 2
    assert seeds["all_task", "heart_points"] == 3
    assert all(mean.low < mean.gain < mean.high for mean in found.overall)


def test_a_baseline_of_zero_is_named(workdir):
    for seed in STUDY.seeds:
        cell = STUDY.cell(STUDY.arms[0], 1.0, seed, "thyroid_det")
        path = workdir / "cells" / cell.name / "evaluation_rows.csv"
        with path.open(newline="") as file:
            lines = [
                [*line[:-1], "0" if i else line[-1]] for i, line in enumerate(csv.reader(file))
            ]
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(lines)
    found = analyse(STUDY, read_scores(STUDY, workdir), resamples=50)
    (said,) = found.missing
    assert said.endswith("thyroid_det: iou is 0")
    assert {g.fraction for g in found.gains if g.task == "thyroid_det"} == {0.25}


def test_the_same_study_gives_the_same_bytes(workdir):
    written = []
    for name in ("first.csv", "second.csv"):
        write_gains(analyse(STUDY, read_scores(STUDY, workdir), resamples=50), workdir / name)
        written.append((workdir / name).read_bytes())
    assert written[0] == written[1]
    header, *lines = csv.reader(written[0].decode().splitlines())
    assert tuple(header) == COLUMNS
    assert header[:4] == ["arm", "fraction", "task", "type"]
    assert [line[:3] for line in lines] == sorted(line[:3] for line in lines)
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    (alone, _) = (r for r in rows if r["arm"] != "all_task" and r["task"] == "thyroid_det")
    assert (alone["gain"], alone["p"], alone["p_holm"]) == ("0", "1", "")


def affinity_of(helps):
    """Affinities of a run in which every partner does for a task what `helps` says."""
    square = np.ones((len(TASKS), len(TASKS)))
    ahead = square * [helps[task.group] for task in TASKS]
    ids = tuple(task.id for task in TASKS)
    return Affinity(ids, 100 * square, ahead, square, np.ones(len(TASKS)), square, ahead, square)


def test_predicted_gains_are_held_against_measured_ones_and_these_against_themselves(workdir):
    scores = read_scores(STUDY, workdir)
    right = dict.fromkeys(FRACTIONS, affinity_of({"breast": 1, "heart": -1, "thyroid": 0}))
    wrong = dict.fromkeys(FRACTIONS, affinity_of({"breast": -1, "heart": 1, "thyroid": 0}))
    found, opposite = agreement(STUDY, scores, right), agreement(STUDY, scores, wrong)
    # At two fractions, two tasks each of the breast and the heart in two plans, thyroid in one.
    assert found.pairs == 2 * (2 * 4 + 1)
    # Three levels are told right; within a level measured gains differ and predicted ones do not.
    assert 0.8 < found.spearman < 1
    assert opposite.spearman == pytest.approx(-found.spearman)
    assert 0.8 < found.ceiling <= 1
    assert np.isnan(agreement(STUDY, scores, {}).spearman)
