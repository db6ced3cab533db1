import dataclasses

import numpy as np
import pytest
from PIL import Image

from tools import contact_sheet
from usfm.evaluation.overlay import Example
from usfm.evaluation.prediction import Answer
from usfm.evaluation.report import write_report
from usfm.tasks import Task

EMPTY = {"tasks": {}, "trivial": {}, "missing": [], "parts": {}, "skipped_rows": 0}


def example(task: Task, answer: Answer) -> Example:
    return Example(task, "../a.png", np.zeros((40, 60), np.uint8), answer, answer)


BOX = example(Task("a & b", "detection", 1), Answer(box=np.array([0.2, 0.2, 0.8, 0.8], np.float32)))
CLASS = example(Task("c", "classification", 2), Answer(probs=np.array([0.0, 1.0], np.float32)))


def test_a_report_becomes_a_sheet_of_the_middle_case_of_each_task(tmp_path):
    pale = dataclasses.replace(BOX, image=np.full((40, 60), 200, np.uint8))
    others = [dataclasses.replace(BOX, task=Task(f"d{k}", "detection", 1)) for k in range(4)]
    write_report(tmp_path, EMPTY, [BOX, pale, BOX, CLASS, *others])
    pictures = contact_sheet.examples((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert [title for title, _ in pictures] == ["a & b", "d0", "d1", "d2", "d3"]
    brightness = [np.asarray(picture).mean() for _, picture in pictures]
    assert brightness[0] > 150 > max(brightness[1:])
    contact_sheet.main([str(tmp_path / "report.html"), str(tmp_path / "sheet.png")])
    with Image.open(tmp_path / "sheet.png") as sheet:
        width, height = sheet.size
        colours = np.asarray(sheet.convert("RGB")).astype(int)
    assert width > 4 * contact_sheet.SIDE
    assert height > 2 * contact_sheet.SIDE
    # The predicted box is orange, and stays so.
    assert (colours[..., 0] - colours[..., 2] > 100).any()


def test_a_report_without_drawn_examples_is_refused(tmp_path):
    write_report(tmp_path, EMPTY, [CLASS])
    with pytest.raises(SystemExit, match="shows no example with something drawn on it"):
        contact_sheet.main([str(tmp_path / "report.html"), str(tmp_path / "sheet.png")])
    assert not (tmp_path / "sheet.png").exists()
