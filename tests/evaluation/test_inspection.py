import dataclasses
import re

import numpy as np
import pytest
from PIL import Image

from usfm.data.folder import Fault, Folder
from usfm.data.splits import Splits, make_splits
from usfm.evaluation.balance import shares
from usfm.evaluation.inspection import EXAMPLES, write_inspection
from usfm.evaluation.leaks import check_leaks
from usfm.tasks import Task


def splits_of(folder: Folder, val: set[tuple[str, int]]) -> Splits:
    """A split with these (task, index) in val; every image is a group."""
    rows = [row for of_task in folder.rows.values() for row in of_task]
    keys = [(row.task_id, row.key) for row in rows]
    parts = ["val" if (row.task_id, row.index) in val else "train" for row in rows]
    groups = [row.content for row in rows]
    return Splits(dict(zip(keys, parts, strict=True)), dict(zip(keys, groups, strict=True)))


def with_row(folder: Folder, task_id: str, index: int, **changes) -> Folder:
    """The folder with one row changed."""
    rows = list(folder.rows[task_id])
    rows[index] = dataclasses.replace(rows[index], **changes)
    return dataclasses.replace(folder, rows=folder.rows | {task_id: tuple(rows)})


def task(folder: Folder, task_id: str) -> Task:
    return next(task for task in folder.tasks if task.id == task_id)


@pytest.fixture
def page(tmp_path, parse):
    """Writes the page of a folder and its splits, and reads it."""

    def page(folder: Folder, splits: Splits):
        write_inspection(tmp_path / "data.html", folder, splits)
        text = (tmp_path / "data.html").read_text()
        assert "://" not in text  # it needs no network
        assert re.findall(r"url\(|@import|<script|<link", text) == []
        return parse(text)

    return page


def test_classes_are_counted_in_rows(small_folder):
    told = shares(small_folder, task(small_folder, "organ"))
    # Labels 0, 1, 2, 3, 0, 1, 2.
    assert [each.name for each in told] == ["class 0", "class 1", "class 2", "class 3"]
    assert [each.share for each in told] == [2 / 7, 2 / 7, 2 / 7, 1 / 7]
    assert told[3].count == "1 (14.3%)"


def test_classes_of_masks_are_counted_in_images_and_area(small_folder):
    rows = small_folder.rows["seg"][:2]
    for row, columns in zip(rows, (0, 10), strict=True):
        mask = np.zeros((row.height, row.width), np.uint8)
        mask[:, :columns] = 1
        Image.fromarray(mask).save(small_folder.mask_file(row))
    small = dataclasses.replace(small_folder, rows=small_folder.rows | {"seg": rows})
    none, one, two = shares(small, task(small, "seg"))
    assert (none.share, one.share, two.share) == (1.0, 0.5, 0.0)
    # 10 of 31 columns of one of two images.
    assert one.count == "1 (50.0%) of images, 16.1% of area"


def test_boxes_are_counted_by_area_and_points_where_they_are(small_folder):
    boxed = small_folder.rows["det"][0]
    whole = (0.0, 0.0, float(boxed.width), float(boxed.height))
    small = with_row(small_folder, "det", 0, box=whole)
    told = shares(small, task(small, "det"))
    assert sum(each.share for each in told) == pytest.approx(1)
    assert told[-1].share >= 1 / 7
    missing = with_row(small_folder, "pts2", 3, points=(None, (1.0, 2.0)))
    assert [each.share for each in shares(missing, task(missing, "pts2"))] == [6 / 7, 1.0]


def test_rows_without_labels_have_no_shares(small_folder):
    rows = [dataclasses.replace(row, label=None) for row in small_folder.rows["organ"]]
    blank = dataclasses.replace(small_folder, rows=small_folder.rows | {"organ": tuple(rows)})
    assert shares(blank, task(blank, "organ")) == []


def test_a_split_by_groups_does_not_leak(small_folder):
    checks = check_leaks(small_folder, make_splits(small_folder, val_fraction=0.5))
    assert [check.count for check in checks] == [0, 0, 0]


def test_an_image_on_two_sides_is_named_with_them(small_folder):
    content = small_folder.rows["organ"][0].content
    twice = with_row(small_folder, "plane", 1, content=content)
    groups, images, labels = check_leaks(twice, splits_of(twice, {("plane", 1)}))
    assert groups.found == (content,)
    assert images.found == ("../organ/0.png (train), ../plane/1.png (val)",)
    assert labels.count == 0  # another task may ask another thing


def test_a_group_on_two_sides_is_named(small_folder):
    splits = splits_of(small_folder, {("organ", 1)})
    groups = splits.groups | {("organ", f"../organ/{k}.png"): "Patient7" for k in (0, 1)}
    found, images, _ = check_leaks(small_folder, Splits(splits.parts, groups))
    assert found.found == ("Patient7",)
    assert images.count == 0


def test_one_image_with_two_labels_in_a_task_is_named(small_folder):
    content = small_folder.rows["organ"][0].content
    twice = with_row(small_folder, "organ", 1, content=content)
    twice = with_row(twice, "det", 1, content=twice.rows["det"][0].content)  # two boxes are none
    *_, labels = check_leaks(twice, splits_of(twice, set()))
    assert labels.found == (
        "organ: ../organ/0.png (line 2 of organ.csv), ../organ/1.png (line 3 of organ.csv)",
    )


def test_every_task_is_in_every_section(small_folder, page):
    shown = page(small_folder, splits_of(small_folder, {("organ", 0), ("organ", 3)}))
    for section in ("Tasks", "Labels", "Image sizes", "Examples"):
        for each in small_folder.tasks:
            assert each.id in shown.sections[section].split()
    assert "organ classification 4 classes 7 7 7 0 5 2 0" in " ".join(
        shown.sections["Tasks"].split()
    )
    assert "type regression 2 14 14 0 0" in " ".join(
        shown.sections["Types and clinical groups"].split()
    )
    assert len(shown.images["Examples"]) == 7 * len(small_folder.tasks)
    assert shown.sections["Leaks"].count("✓") == 3
    assert "Rows left out" not in shown.sections


def test_examples_have_all_classes_and_no_more_than_fit(small_folder, page):
    # 40 rows of class 0 and one of class 3, the last.
    rows = [
        dataclasses.replace(
            small_folder.rows["organ"][0], index=k, key=f"row{k}", label=3 if k == 40 else 0
        )
        for k in range(41)
    ]
    many = dataclasses.replace(
        small_folder, tasks=(task(small_folder, "organ"),), rows={"organ": tuple(rows)}
    )
    shown = page(many, splits_of(many, set()))
    assert len(shown.images["Examples"]) <= EXAMPLES
    assert "class 3 row40" in " ".join(shown.sections["Examples"].split())


def test_leaks_unlabelled_and_skipped_rows_are_said_and_text_escaped(small_folder, page):
    content = small_folder.rows["organ"][0].content
    folder = with_row(small_folder, "plane", 1, content=content, key="<i>&", label=None)
    fault = Fault("a.csv", 3, "mask", "'<b>' is not a whole number", "give one")
    folder = dataclasses.replace(folder, skipped=(fault,))
    shown = page(folder, splits_of(folder, {("plane", 1)}))
    assert shown.sections["Leaks"].count("✗") == 2
    assert "no label" in shown.sections["Examples"]
    assert "<i>&" in shown.sections["Examples"]
    assert "a.csv line 3, mask: '<b>' is not a whole number" in shown.sections["Rows left out"]


def test_sizes_are_those_of_the_originals(small_folder, page):
    shown = " ".join(
        page(small_folder, splits_of(small_folder, set())).sections["Image sizes"].split()
    )
    # Images of 30 + k wide, 20 + 3 k high: the longer sides are 30 to 35, then 38 high.
    assert "0 to 31 px 12 32 to 63 px 30" in shown
    assert "organ 30 x 20 30 x 20 (14%) 36 x 38 7" in shown


def test_page_is_drawn_by_a_browser(small_folder, tmp_path, check_drawn):
    page = tmp_path / "data.html"
    write_inspection(page, small_folder, make_splits(small_folder))
    text = page.read_text()
    check_drawn(page, text.count("<svg") + text.count("<img"))
