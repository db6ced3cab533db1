import csv
import dataclasses
import json
import os
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from usfm.evaluation.cases import Case
from usfm.evaluation.evaluate import evaluate
from usfm.evaluation.overlay import Example
from usfm.evaluation.prediction import truth
from usfm.evaluation.report import write_report

DOCS = pathlib.Path(__file__).parents[2] / "docs"


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
        if row.index < 3
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


def test_every_task_is_in_every_section(workdir, report, examples, folder, parse):
    write_report(workdir, report, examples)
    page = parse((workdir / "report.html").read_text())
    assert list(page.sections)[-6:] == [
        "Results",
        "Loss by type",
        "Loss by task",
        "Examples",
        "Data",
        "Configuration",
    ]
    for section in ("Results", "Loss by task", "Examples", "Data"):
        for task_id in folder.rows:
            assert task_id in page.sections[section].split()
    # A curve a task, and again under its type, over which the type's mean is drawn.
    assert page.curves == 3 * 4
    assert len(page.images["Examples"]) == 3 * 4


def test_page_needs_no_network(workdir, report, examples, parse):
    write_report(workdir, report, examples)
    text = (workdir / "report.html").read_text()
    assert "://" not in text
    assert re.findall(r"url\(|@import|<script|<link", text) == []
    assert all(source.startswith("data:image/") for source in parse(text).images["Examples"])


def test_text_is_escaped(workdir, report, examples, parse):
    names = {"classes": "<b>&x"}
    report = report | {"tasks": {names.get(k, k): v for k, v in report["tasks"].items()}}
    task = dataclasses.replace(examples[0].task, id="<b>&x")
    write_report(workdir, report, [dataclasses.replace(examples[0], task=task, row_key="<i>")])
    text = (workdir / "report.html").read_text()
    assert "<b>&x" not in text
    assert "<i>" not in text
    assert "<script>" not in text
    page = parse(text)
    assert "<b>&x" in page.sections["Results"]
    assert "<b>&x" in page.sections["Examples"]
    assert '"<script>x</script>"' in page.sections["Configuration"]
    assert "a <run>" in page.sections[""]


def test_other_evaluations_are_shown_and_explained_where_they_are_known(workdir, report, parse):
    write_report(workdir, report, [], beside={"before": report, "previous": report})
    shown = parse((workdir / "report.html").read_text()).sections["Results"].split()
    assert {"before", "Before:", "previous", "Previous:"} <= set(shown)
    write_report(workdir, report, [])
    shown = parse((workdir / "report.html").read_text()).sections["Results"].split()
    assert {"before", "Before:", "previous", "Previous:"}.isdisjoint(shown)


def test_an_interval_stands_beside_the_models_value(workdir, report, parse):
    known = report["tasks"]["where"] | {"iou": 0.5, "intervals": {"iou": [0.25, 0.75]}}
    report = report | {"tasks": report["tasks"] | {"where": known}}
    write_report(workdir, report, [])
    shown = parse((workdir / "report.html").read_text()).sections["Results"]
    assert "0.500 [0.250, 0.750]" in shown
    assert "95 % interval" in shown


def test_cases_are_named_with_their_score(workdir, report, examples, parse):
    case = Case("worst", "k", "mre", 12.34)
    write_report(workdir, report, [dataclasses.replace(examples[0], case=case)])
    shown = parse((workdir / "report.html").read_text()).sections["Examples"]
    assert "worst: mre px 12.3" in shown


def test_config_is_listed_by_dotted_name(workdir, report, parse):
    write_report(workdir, report, [])
    shown = parse((workdir / "report.html").read_text()).sections["Configuration"].split()
    assert "data.image_size" in shown
    assert "3 fields" in " ".join(shown)


def test_rows_are_counted_by_part(workdir, report, parse):
    write_report(workdir, report, [])
    shown = parse((workdir / "report.html").read_text()).sections["Data"].split()
    assert shown[shown.index("classes") :][:3] == ["classes", "1", "5"]


def test_missing_rows_are_said(workdir, report, parse):
    missing = [{"task_id": "where", "row_key": "9.png"}]
    write_report(workdir, report | {"missing": missing}, [])
    text = parse((workdir / "report.html").read_text()).sections["Results"]
    assert "1 rows have no prediction: where 9.png" in text


def test_workdir_with_nothing_else_has_a_report(tmp_path, report, parse):
    write_report(tmp_path, report, [])
    assert list(parse((tmp_path / "report.html").read_text()).sections)[-1] == "Results"


def test_page_is_drawn_by_a_browser(workdir, report, examples, check_drawn):
    write_report(workdir, report, examples)
    text = (workdir / "report.html").read_text()
    check_drawn(workdir / "report.html", text.count("<svg") + text.count("<img"))


# The part of the page, the size of the window and whether it is dark.
LOOKS = {
    "desktop": ("", (1200, 1500), False),
    "phone": ("", (390, 1500), False),
    "dark": ("examples", (1200, 1500), True),
}


def test_page_looks_as_in_the_docs(workdir, report, examples, browse, tmp_path):
    """Takes the pictures that docs/ shows.

    REPORT=RUN/report.html pytest -k looks_as_in_the_docs takes them of that page, into docs/.
    """
    shown = os.environ.get("REPORT")
    write_report(workdir, report, examples)
    for name, (section, size, dark) in LOOKS.items():
        page = pathlib.Path(shown) if shown else workdir / "report.html"
        picture = browse(page, size, dark=dark, section=section)["picture"]
        assert picture.size == size
        grey = np.asarray(picture.convert("L"))
        assert (grey[1, 1] < 64) == dark
        assert grey.std() > 5  # something is drawn on the ground
        file = (DOCS if shown else tmp_path) / f"report-{name}.png"
        few = picture.quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        few.save(file, optimize=True)
        assert file.stat().st_size < 400_000
