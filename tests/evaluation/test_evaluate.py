import csv
import itertools
import json

import numpy as np
import pytest

from usfm.evaluation import trivial
from usfm.evaluation.bootstrap import intervals
from usfm.evaluation.classes import OF_CLASS, by_class
from usfm.evaluation.evaluate import Evaluation, evaluate, write
from usfm.evaluation.metrics import METRICS, score_row, summarise
from usfm.evaluation.prediction import Answer, truth


def run(answers, folder, trivial_of=None, rows=None):
    return evaluate(
        answers,
        folder,
        folder.rows if rows is None else rows,
        trivial=trivial_of or {},
        part_of=lambda row: "val" if row.index < 4 else "test",
        group_of=lambda row: f"patient {row.index // 2}",
    )


def test_metrics_are_those_of_the_rows(folder, guesses):
    report = run(guesses, folder).report
    for task in folder.tasks:
        scored = [
            score_row(task, (row.height, row.width), answer, truth(folder, task, row))
            for row, answer in guesses
            if row.task_id == task.id
        ]
        groups = [f"patient {i // 2}" for i in range(6)]
        expected = summarise(task, scored) | intervals(task, scored, groups, seed=0)
        if task.type in OF_CLASS:
            expected["classes"] = by_class(task, scored)
        assert report["tasks"][task.id] == expected
        assert (expected["n"], expected["groups"]) == (6, 3)
    assert report["missing"] == []


def test_order_of_the_answers_does_not_matter(folder, guesses):
    assert run(reversed(guesses), folder) == run(guesses, folder)


def test_answers_are_taken_as_a_stream(folder, guesses, monkeypatch):
    """No more answers wait than WAITING: those before are scored before another is asked for."""
    monkeypatch.setattr("usfm.evaluation.evaluate.WAITING", 1)
    scored, started = [], []

    def stream():
        for number, pair in enumerate(guesses):
            started.append(number)
            assert len(scored) >= number - 1
            yield pair

    def part_score(*args):
        result = score_row(*args)
        scored.append(result)
        return result

    monkeypatch.setattr("usfm.evaluation.evaluate.score_row", part_score)
    run(stream(), folder)
    assert len(scored) == len(started) == len(guesses)


def test_missing_answers_are_named(folder, guesses):
    left = [pair for pair in guesses if pair[0].key not in ("../Images/where/2.png",)]
    report = run(left, folder).report
    assert report["missing"] == [{"task_id": "where", "row_key": "../Images/where/2.png"}]
    assert report["tasks"]["where"]["n"] == 5


def test_task_without_any_answer_is_null(folder, guesses):
    report = run([p for p in guesses if p[0].task_id != "spots"], folder).report
    assert report["tasks"]["spots"]["mre"] is None
    assert len(report["missing"]) == 6


def test_second_answer_is_an_error(folder, guesses):
    with pytest.raises(ValueError, match=r"classes: a second answer to \.\./Images/classes/0.png"):
        run([*guesses, guesses[0]], folder)


def test_answer_to_a_row_that_was_not_asked_for_is_an_error(folder, guesses):
    rows = folder.rows | {"where": folder.rows["where"][:5]}
    with pytest.raises(ValueError, match=r"where: .*where/5.png, which was not asked for"):
        run(guesses, folder, rows=rows)


def test_answer_of_the_wrong_form_is_an_error(folder, guesses):
    row = folder.rows["mask"][0]
    others = [pair for pair in guesses if pair[0] is not row]
    with pytest.raises(ValueError, match="mask: an answer of shape"):
        run([(row, Answer(mask=np.zeros((2, 2), np.uint8))), *others], folder)


def test_trivial_predictor_is_scored_on_the_rows_that_were_answered(folder, guesses):
    predictors = {t.id: trivial.fit(folder, t, folder.rows[t.id]) for t in folder.tasks[:2]}
    answered = [pair for pair in guesses if pair[0].index]
    report = run(answered, folder, predictors).report
    own = run([(row, predictors[row.task_id](row)) for row, _ in answered[:10]], folder).report
    for task in folder.tasks[:2]:
        names = [*METRICS[task.type], "n", "undefined"]
        expected = {name: own["tasks"][task.id][name] for name in names}
        assert report["trivial"][task.id] == expected
    assert report["trivial"]["classes"]["n"] == 5


def test_parts_and_skipped_rows_are_counted(damaged, guesses):
    report = run(guesses, damaged).report
    assert report["parts"] == {"test": 8, "val": 16}
    assert report["skipped_rows"] == 2


def test_files_hold_the_evaluation(folder, guesses, tmp_path):
    evaluation = run(guesses, folder)
    write(evaluation, tmp_path / "new")
    assert json.loads((tmp_path / "new/evaluation.json").read_text()) == evaluation.report
    official = json.loads((tmp_path / "new/evaluation_official.json").read_text())
    assert official == evaluation.official
    assert official["detection"]["where"]["IoU"] == evaluation.report["tasks"]["where"]["iou"]
    with (tmp_path / "new/evaluation_rows.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["task_id", "row_key", "group", "part", "metric", "value"]
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "evaluation.json",
        "evaluation_official.json",
        "evaluation_rows.csv",
    }
    assert lines[-1] | {"value": ""} == {
        "task_id": "where",
        "row_key": "../Images/where/5.png",
        "group": "patient 2",
        "part": "test",
        "metric": "iou",
        "value": "",
    }


def test_every_metric_follows_from_the_rows_file(folder, guesses, tmp_path):
    evaluation = run(guesses, folder)
    write(evaluation, tmp_path)
    with (tmp_path / "evaluation_rows.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    for task in folder.tasks:
        of_task = [line for line in lines if line["task_id"] == task.id]
        scored = [
            {line["metric"]: float(line["value"]) for line in of_row}
            for _, of_row in itertools.groupby(of_task, key=lambda line: line["row_key"])
        ]
        report = evaluation.report["tasks"][task.id]
        assert summarise(task, scored).items() <= report.items()
        if task.type in OF_CLASS:
            assert by_class(task, scored) == report["classes"]


def test_scores_that_are_not_finite_are_empty(folder, guesses, tmp_path):
    lost = Answer(box=np.full(4, np.nan, np.float32))
    answers = [(row, lost if row.task_id == "where" else answer) for row, answer in guesses]
    evaluation = run(answers, folder)
    write(evaluation, tmp_path)
    assert "NaN" not in (tmp_path / "evaluation.json").read_text()
    with (tmp_path / "evaluation_rows.csv").open(newline="") as file:
        values = [line["value"] for line in csv.DictReader(file) if line["task_id"] == "where"]
    assert values == [""] * 6
    assert evaluation.report["tasks"]["where"]["iou"] is None


def test_failed_write_leaves_the_old_file(folder, guesses, tmp_path):
    write(run(guesses, folder), tmp_path)
    old = (tmp_path / "evaluation.json").read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        write(Evaluation({"tasks": float("nan")}, {}, ()), tmp_path)
    assert (tmp_path / "evaluation.json").read_bytes() == old
