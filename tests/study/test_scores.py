"""What is read from the files of cells."""

import csv

import numpy as np
import pytest

from usfm.evaluation.evaluate import ROW_FIELDS
from usfm.evaluation.metrics import metric_value
from usfm.study.cells import Study, workdirs
from usfm.study.scores import model_of, read_scores, row_values
from usfm.tasks import Task
from usfm.tasks.plans import all_task, task_specific

TASKS = (Task("a", "segmentation", num_classes=2), Task("b", "detection", num_classes=1))
STUDY = Study(
    tasks=TASKS,
    fractions=(1.0,),
    seeds=(0, 1),
    methods=("sum",),
    models=("vits16",),
    partitions={"task_specific": {1.0: task_specific(TASKS)}, "all_task": {1.0: all_task(TASKS)}},
    training_rows={1.0: {"a": 10, "b": 20}},
)
METRIC = {"a": "dsc", "b": "iou"}


def write_all(workdir, value=lambda cell, task_id, row: 0.5):
    """Files of all cells: 4 rows in 2 groups for each task."""
    for cell, folder in workdirs(STUDY, workdir):
        folder.mkdir(parents=True)
        with (folder / "evaluation_rows.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(ROW_FIELDS)
            for task_id in cell.tasks:
                for row in range(4):
                    names = (task_id, f"row{row}", f"patient{row // 2}", "test")
                    writer.writerow([*names, METRIC[task_id], value(cell, task_id, row)])
                    writer.writerow([*names, "hd", 7])


@pytest.mark.parametrize("classes", [2, 3])
def test_rows_average_to_the_auc_and_foretell_its_resamples(classes):
    rng = np.random.default_rng(0)
    task = Task("c", "classification", num_classes=classes)
    labels = rng.integers(classes, size=300)
    probs = rng.dirichlet(np.ones(classes), 300) + 0.5 * np.eye(classes)[labels]
    probs = np.round(probs / probs.sum(1, keepdims=True), 1)  # with many ties
    scores = {"label": labels.astype(float)} | {f"prob_{c}": probs[:, c] for c in range(classes)}
    values = row_values(task, scores)
    assert values.mean() == pytest.approx(metric_value(task, "auc", scores))
    resamples = rng.integers(300, size=(300, 300))
    exact = [
        metric_value(task, "auc", {name: v[index] for name, v in scores.items()})
        for index in resamples
    ]
    linear = values[resamples].mean(1)
    assert np.corrcoef(exact, linear)[0, 1] > 0.98
    assert linear.std() == pytest.approx(np.std(exact), rel=0.1)


def test_tables_hold_seeds_by_rows(tmp_path):
    write_all(tmp_path, lambda cell, task_id, row: cell.seed + row / 10)
    scores = read_scores(STUDY, tmp_path)
    assert scores.missing == ()
    assert len(scores.tables) == 4
    together = model_of(STUDY.cell(STUDY.arms[1], 1.0, 0, "a"))
    table = scores.tables[together, "b"]
    assert table.values == pytest.approx(np.array([[0, 0.1, 0.2, 0.3], [1, 1.1, 1.2, 1.3]]))
    assert table.seeds == (0, 1)
    assert table.groups.tolist() == [0, 0, 1, 1]


def test_what_is_missing_is_left_out_and_named(tmp_path):
    failed, shorter, wild = STUDY.cells()[0], STUDY.cells()[1], STUDY.cells()[-1]

    def value(cell, task_id, row):
        return "" if (cell, task_id, row) == (wild, "b", 1) else 0.5

    write_all(tmp_path, value)
    cells = tmp_path / "cells"
    (cells / failed.name / "evaluation_rows.csv").unlink()
    path = cells / shorter.name / "evaluation_rows.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
    scores = read_scores(STUDY, tmp_path)
    assert scores.missing == (
        f"{failed.name}: has no evaluation_rows.csv",
        f"{shorter.name}: {shorter.tasks[0]}: 1 of 4 test rows have no answer",
        f"{wild.name}: b: 1 of 4 predictions are not finite numbers",
    )
    assert (model_of(failed), failed.tasks[0]) not in scores.tables  # both seeds are out
    assert scores.tables[model_of(wild), "b"].seeds == (1 - wild.seed,)
    assert scores.tables[model_of(wild), "a"].seeds == (0, 1)
