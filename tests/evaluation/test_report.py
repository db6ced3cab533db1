import csv
import dataclasses
import html.parser
import json
import re

import numpy as np
import pytest

from usfm.evaluation.evaluate import evaluate
from usfm.evaluation.overlay import Example
from usfm.evaluation.prediction import truth
from usfm.evaluation.report import write_report

VOID = {"meta", "br", "img", "path", "polyline", "circle"}


class Page(html.parser.HTMLParser):
    """Text by section, images, and a check that every element is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.sections, self.curves = [], [], {}, 0
        self.section = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID
        self.curves += tag == "polyline"
        if tag == "img":
            self.images.append(dict(attrs)["src"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.section = data
        if "style" not in self.open:
            self.sections[self.section] = f"{self.sections.get(self.section, '')} {data}"


@pytest.fixture
def report(folder, guesses):
    same = {"part_of": lambda row: "val", "group_of": lambda row: row.key}
    return evaluate(guesses, folder, folder.rows, trivial={}, **same).report


@pytest.fixture
def examples(folder, guesses):
    tasks = {task.id: task for task in folder.tasks}
    return [
        Example(
            tasks[row.task_id],
            row.key,
            np.full((row.height, row.width), 50, np.uint8),
            truth(folder, tasks[row.task_id], row),
            answer,
        )
        for row, answer in guesses
        if row.index == 0
    ]


@pytest.fixture
def workdir(tmp_path, folder):
    path = tmp_path / "a <run>"
    path.mkdir()
    config = {"data": {"root": "<script>x</script>", "image_size": [64, 64]}, "tasks": "all"}
    (path / "config.json").write_text(json.dumps(config))
    with (path / "splits.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["task_id", "image_path", "part"])
        for task_id, rows in folder.rows.items():
            writer.writerows([task_id, r.image_path, "val" if r.index else "train"] for r in rows)
    with (path / "metrics.jsonl").open("w") as file:
        for step in range(1, 5):
            losses = {f"loss/{task_id}": 1 / step for task_id in folder.rows}
            file.write(json.dumps({"step": step, "seconds": 0.1} | losses) + "\n")
        file.write('{"step"')
    return path


def test_every_task_is_in_every_section(workdir, report, examples, folder):
    write_report(workdir, report, examples)
    page = Page((workdir / "report.html").read_text())
    assert list(page.sections)[-5:] == [
        "Results",
        "Loss by task",
        "Examples",
        "Data",
        "Configuration",
    ]
    for section in ("Results", "Loss by task", "Examples", "Data"):
        for task_id in folder.rows:
            assert task_id in page.sections[section].split()
    assert page.curves == len(page.images) == 4


def test_page_needs_no_network(workdir, report, examples):
    write_report(workdir, report, examples)
    text = (workdir / "report.html").read_text()
    assert "://" not in text
    assert re.findall(r"url\(|@import|<script|<link", text) == []
    assert all(source.startswith("data:image/") for source in Page(text).images)


def test_text_is_escaped(workdir, report, examples):
    names = {"classes": "<b>&x"}
    report = report | {"tasks": {names.get(k, k): v for k, v in report["tasks"].items()}}
    task = dataclasses.replace(examples[0].task, id="<b>&x")
    write_report(workdir, report, [dataclasses.replace(examples[0], task=task, row_key="<i>")])
    text = (workdir / "report.html").read_text()
    assert "<b>&x" not in text
    assert "<i>" not in text
    assert "<script>" not in text
    page = Page(text)
    assert "<b>&x" in page.sections["Results"]
    assert "<b>&x" in page.sections["Examples"]
    assert '"<script>x</script>"' in page.sections["Configuration"]
    assert "a <run>" in page.sections[""]


def test_before_training_is_shown_where_it_is_known(workdir, report):
    write_report(workdir, report, [], before=report)
    assert "before" in Page((workdir / "report.html").read_text()).sections["Results"].split()
    write_report(workdir, report, [])
    assert "before" not in Page((workdir / "report.html").read_text()).sections["Results"].split()


def test_config_is_listed_by_dotted_name(workdir, report):
    write_report(workdir, report, [])
    shown = Page((workdir / "report.html").read_text()).sections["Configuration"].split()
    assert "data.image_size" in shown
    assert "3 fields" in " ".join(shown)


def test_rows_are_counted_by_part(workdir, report):
    write_report(workdir, report, [])
    shown = Page((workdir / "report.html").read_text()).sections["Data"].split()
    assert shown[shown.index("classes") :][:3] == ["classes", "1", "5"]


def test_missing_rows_are_said(workdir, report):
    missing = [{"task_id": "where", "row_key": "9.png"}]
    write_report(workdir, report | {"missing": missing}, [])
    text = Page((workdir / "report.html").read_text()).sections["Results"]
    assert "1 rows have no prediction: where 9.png" in text


def test_workdir_with_nothing_else_has_a_report(tmp_path, report):
    write_report(tmp_path, report, [])
    assert list(Page((tmp_path / "report.html").read_text()).sections)[-1] == "Results"


def test_page_is_drawn_by_a_browser(workdir, report, examples, browse):
    write_report(workdir, report, examples)
    page = workdir / "report.html"
    wide, narrow, dark = browse(page, 1200), browse(page, 500), browse(page, 1200, dark=True)
    for seen in (wide, narrow, dark):
        assert (seen["faults"], seen["console"], seen["overflows"]) == ([], [], False)
        assert seen["drawn"] == page.read_text().count("<svg") + page.read_text().count("<img")
    assert wide["background"] != dark["background"]
