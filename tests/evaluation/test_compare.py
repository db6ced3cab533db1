"""Runs side by side: their differences, and what is said where there can be none."""

import dataclasses
import json
import re

import numpy as np
import pytest

from usfm import modes
from usfm.errors import UserError
from usfm.evaluation import bootstrap
from usfm.evaluation.compare import compare, short_names, text_comparison
from usfm.evaluation.compare_page import differing, write_comparison
from usfm.evaluation.evaluate import evaluate, write
from usfm.evaluation.prediction import truth
from usfm.evaluation.runs import read_run


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 100)


@pytest.fixture
def make_run(folder, guesses, tmp_path):
    """Writes the workdir of a run that gave the first rows of each task the truth, else a guess."""
    tasks = {task.id: task for task in folder.tasks}

    def make(name, right=0, rows=range(6), only=tuple(tasks), learning_rate=1e-3):
        answers = [
            (row, truth(folder, tasks[row.task_id], row) if row.index < right else answer)
            for row, answer in guesses
            if row.index in rows and row.task_id in only
        ]
        for place, (row, answer) in enumerate(answers):
            if answer.points is not None:  # the truth of one is missing
                whole = dataclasses.replace(answer, points=np.nan_to_num(answer.points))
                answers[place] = row, whole
        asked = {id: [row for row, _ in answers if row.task_id == id] for id in only}
        same = {"part_of": lambda row: "val", "group_of": lambda row: row.key}
        workdir = tmp_path / name
        workdir.mkdir(parents=True)
        write(evaluate(answers, folder, asked, trivial={}, **same), workdir)
        config = {"tasks": "all", "optimizer": {"learning_rate": learning_rate}}
        (workdir / "config.json").write_text(json.dumps(config))
        losses = {f"loss/{task_id}": learning_rate for task_id in only}
        lines = [json.dumps({"step": step} | losses) + "\n" for step in (1, 2, 3)]
        (workdir / "metrics.jsonl").write_text("".join(lines))
        return read_run(workdir)

    return make


def of_task(comparison, task_id):
    return next(task for task in comparison.tasks if task.task_id == task_id)


def edit(path, change):
    path.write_text(change(path.read_text()))


def test_a_run_differs_from_a_copy_of_itself_by_nothing(make_run):
    comparison = compare([make_run("a"), make_run("b")])
    assert [task.task_id for task in comparison.tasks] == ["classes", "mask", "spots", "where"]
    for task in comparison.tasks:
        (found,) = task.differences
        assert (found.value, found.interval) == (0, (0, 0))
        assert found.verdict("dsc") == ""
    assert comparison.notes == ()


def test_differences_are_those_of_the_metrics_and_say_which_way_is_better(make_run):
    first, second = make_run("a"), make_run("b", right=6)
    for runs, verdict in (((first, second), "better"), ((second, first), "worse")):
        comparison = compare(runs)
        for task_id, metric in (("mask", "dsc"), ("spots", "mre"), ("where", "iou")):
            (found,) = of_task(comparison, task_id).differences
            a, b = (run.evaluation["tasks"][task_id][metric] for run in runs)
            assert found.value == pytest.approx(b - a)
            assert found.interval[0] <= found.value <= found.interval[1]
            assert found.verdict(metric) == verdict
    # Rows of two classes that are one's own: an AUC moves as others do.
    (found,) = of_task(compare([first, second]), "classes").differences
    assert found.value == pytest.approx(1 - first.evaluation["tasks"]["classes"]["auc"])


def test_a_difference_is_over_the_rows_that_both_scored_and_says_so(make_run):
    first, second = make_run("a", right=2), make_run("b", right=4, rows=range(1, 6))
    comparison = compare([first, second])
    told = "where, b and a: 5 and 6 rows were scored, 5 by both; the difference is over these"
    assert told in comparison.notes
    scores = [
        [run.rows["where", f"../Images/where/{k}.png"].scores["iou"] for k in range(1, 6)]
        for run in (first, second)
    ]
    (found,) = of_task(comparison, "where").differences
    assert found.value == pytest.approx(np.mean(scores[1]) - np.mean(scores[0]))


def test_where_there_is_no_difference_a_note_says_why(make_run, tmp_path):
    first = make_run("a")
    make_run("b", rows=range(3))
    make_run("c")
    one_group = re.compile(r"(?m)^(where,[^,]*),[^,]*")
    edit(tmp_path / "a/evaluation_rows.csv", lambda text: one_group.sub(r"\1,alike", text))
    edit(
        tmp_path / "b/evaluation_rows.csv",
        lambda text: re.sub(r"(?m)^(classes,.*,label),.*", r"\1,1.0", text),
    )
    edit(tmp_path / "c/evaluation_rows.csv", lambda text: re.sub(r"iou,.*", "iou,", text, count=1))
    runs = [read_run(tmp_path / name) for name in "abc"]
    comparison = compare(runs)
    assert of_task(comparison, "classes").differences[0].value is None
    assert "classes, b and a: the truth of 2 rows differs, so there is no difference" in (
        comparison.notes
    )
    told = next(note for note in comparison.notes if note.startswith("where, b"))
    assert told.endswith("no interval: all rows are of one group")
    (told,) = (note for note in comparison.notes if note.startswith("where, c"))
    assert told.endswith("no difference: 1 of 6 predictions are not finite numbers")
    assert first.evaluation["tasks"]["where"]["n"] == 6


def test_tasks_that_one_run_scored_are_left_out_and_named(make_run):
    runs = [make_run("a", only=("mask", "where")), make_run("b", only=("mask", "spots"))]
    comparison = compare(runs)
    assert [task.task_id for task in comparison.tasks] == ["mask"]
    assert comparison.notes == ("left out, for only one of the runs scored them: where, spots",)


def test_the_table_of_the_terminal_has_every_task_and_run(make_run):
    runs = [make_run("a"), make_run("b", right=6), make_run("c", only=("mask", "where"))]
    head, rule, *lines = text_comparison(compare(runs)).splitlines()
    assert head.split() == ["task", "metric", "a", "b", "c", "b", "−", "a", "c", "−", "a"]
    assert {len(line) for line in lines[:4]} == {len(head)} == {len(rule)}
    assert [line.split()[0] for line in lines[:4]] == ["classes", "mask", "spots", "where"]
    assert "better" in lines[1]
    assert "b beside a: better on 4 tasks, worse on 0, undecided on 0." in lines


def test_fields_that_differ_are_those_of_other_values_or_in_one_alone():
    assert differing([{"a": 1, "b": [1], "c": 2}, {"a": 1, "b": [2]}]) == ["b", "c"]


def test_the_page_shows_all_of_it_and_is_drawn_by_a_browser(make_run, tmp_path, parse, check_drawn):
    runs = [make_run("a"), make_run("<b>", right=6, learning_rate=2e-3)]
    path = tmp_path / "out/compare.html"
    write_comparison(path, compare(runs))
    text = path.read_text()
    assert re.findall(r"://|url\(|@import|<script|<link|<b>/|<b>:", text) == []
    page = parse(text)
    assert "<b> beside a: better on 4 tasks" in page.sections[""]
    for section in ("Results", "Loss by task"):
        assert all(id in page.sections[section].split() for id in ("classes", "mask", "where"))
    assert page.curves == 2 * 4
    shown = " ".join(page.sections["Configuration"].split())
    assert "Fields that differ: 1. field a <b> optimizer.learning_rate 0.001 0.002" in shown
    check_drawn(path, text.count("<svg"))


def test_the_mode_writes_the_page_and_prints_the_table(make_run, tmp_path, capsys):
    runs = [make_run("a").workdir, make_run("b").workdir]
    modes.run_compare(runs, tmp_path / "out")
    assert "b − a" in capsys.readouterr().out
    assert (tmp_path / "out/compare.html").exists()


def test_names_are_as_short_as_tells_runs_apart(tmp_path):
    paths = [tmp_path / name for name in ("x/seed0", "y/seed0", "y/seed1")]
    assert short_names(paths) == ("x/seed0", "y/seed0", "y/seed1")
    assert short_names(paths[1:]) == ("seed0", "seed1")
    with pytest.raises(UserError, match="is given twice: give different workdirs"):
        short_names([tmp_path / "x", tmp_path / "y/../x"])


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("evaluation.json", None, r"b was not scored \(no evaluation.json\): run --workdir="),
        ("evaluation.json", "{", r"evaluation.json is not JSON: .*; remove it and run --mode"),
        ("evaluation.json", "[]", r"evaluation.json holds no JSON object; remove it"),
        ("evaluation.json", '{"tasks": {}}', r"evaluation.json lacks parts, trivial; remove it"),
        ("evaluation_rows.csv", None, r"evaluation_rows.csv is missing; run --mode=evaluate"),
        ("evaluation_rows.csv", "a,b\n", r"evaluation_rows.csv has columns a, b, not task_id, "),
        ("metrics.jsonl", "x\n{}\n", r"metrics.jsonl line 1 is not JSON"),
        ("config.json", "x", r"config.json is not JSON"),
    ],
)
def test_a_workdir_that_is_none_is_named_with_what_to_do(make_run, file, text, told):
    path = make_run("b").workdir / file
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=f"^[^\n]*{told}[^\n]*$"):
        read_run(path.parent)


def test_a_folder_that_holds_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no run \(no evaluation.json\): correct its name$"):
        read_run(tmp_path)
    with pytest.raises(UserError, match=r"there is no workdir .*no: correct its name$"):
        read_run(tmp_path / "no")


def test_a_damaged_row_is_named_by_its_line(make_run):
    path = make_run("b").workdir / "evaluation_rows.csv"
    edit(path, lambda text: text + "where,0.png,g,val,iou,much\n")
    line = len(path.read_text().splitlines())
    with pytest.raises(UserError, match=f"line {line}: could not convert string to float: 'much'"):
        read_run(path.parent)


def test_runs_without_a_common_task_or_of_other_types_are_refused(make_run, tmp_path):
    with pytest.raises(UserError, match=r"no task in common: a has mask; b has where, spots$"):
        compare([make_run("a", only=("mask",)), make_run("b", only=("where", "spots"))])
    edit(tmp_path / "a/evaluation.json", lambda text: text.replace('"mask"', '"where"'))
    runs = [read_run(tmp_path / name) for name in "ab"]
    with pytest.raises(UserError, match="'where' is segmentation in a, detection in b: not the"):
        compare(runs)
