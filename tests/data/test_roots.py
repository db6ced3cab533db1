import csv
import dataclasses
import json
import pathlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from usfm import config as usfm_config
from usfm.data.builder import open_store
from usfm.data.folder import FolderError, Row, read_folder
from usfm.data.roots import identities, places
from usfm.data.source import open_folder
from usfm.data.splits import leaks, make_splits
from usfm.data.splits_file import read_splits, write_splits
from usfm.errors import UserError
from usfm.evaluation.prediction import Answer
from usfm.evaluation.submission import write_submission

HEADER = "image_path,mask,task_id,task_name,num_classes"


def make(root: pathlib.Path, seeds: list[int], task: str = "t", size: int = 3) -> pathlib.Path:
    """A folder of one classification task; equal seeds give equal images."""
    (root / "csv_files").mkdir(parents=True)
    lines = [HEADER]
    for number, seed in enumerate(seeds):
        pixels = np.random.default_rng(seed).integers(0, 256, (12, 16), np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        lines.append(f"../{number}.png,{number % 2},{task},classification,{size}")
    (root / f"csv_files/{task}.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def a(tmp_path) -> pathlib.Path:
    return make(tmp_path / "a", [0, 1, 2])


@pytest.fixture
def b(tmp_path) -> pathlib.Path:
    """As a: the same paths and task, but only its last image is the same, under another path."""
    return make(tmp_path / "b", [2, 11, 12])


def test_places_are_separated_by_commas_unless_the_whole_is_a_folder(tmp_path):
    assert places("A") == ("A",)
    assert places("A, B/c,") == ("A", "B/c")
    assert places("A,tfds:name/config:1.0.0") == ("A", "tfds:name/config:1.0.0")
    (tmp_path / "x,y").mkdir()
    assert places(str(tmp_path / "x,y")) == (str(tmp_path / "x,y"),)
    with pytest.raises(UserError, match="names no folder"):
        places(" ,")
    with pytest.raises(UserError, match="give one TFDS data set"):
        places("tfds:a,tfds:b")


def test_rows_of_two_folders_are_one_folder(a, b):
    folder = read_folder(a, b)
    rows = folder.rows["t"]
    assert [row.index for row in rows] == list(range(6))
    assert [row.root for row in rows] == [0, 0, 0, 1, 1, 1]
    assert len({row.key for row in rows}) == 6
    assert [row.image_path for row in rows[:3]] == [row.image_path for row in rows[3:]]
    assert folder.image_file(rows[4]) == b / "1.png"
    assert rows[4].csv == str(b / "csv_files/t.csv")
    assert folder.place == f"{a}, {b}"


def test_a_folder_alone_is_read_as_ever(a, b):
    alone, beside = read_folder(a).rows["t"], read_folder(a, b).rows["t"][:3]
    assert [row.csv for row in alone] == ["t.csv"] * 3
    assert tuple(dataclasses.replace(row, csv="t.csv") for row in beside) == alone


def test_tasks_may_lie_in_one_of_the_folders_only(a, tmp_path):
    femur = make(tmp_path / "femur", [5, 6], task="other")
    folder = read_folder(a, femur, tasks="other")
    assert [task.id for task in folder.tasks] == ["other"]
    assert [folder.image_file(row) for row in folder.rows["other"]] == [
        femur / "0.png",
        femur / "1.png",
    ]


def test_every_fault_names_its_folder(a, b, tmp_path):
    (a / "0.png").unlink()
    (b / "0.png").unlink()
    with pytest.raises(FolderError) as caught:
        read_folder(a, b, tmp_path / "none", faults_file=tmp_path / "bad.csv")
    message = str(caught.value)
    assert message.startswith(f"3 faults in {a}, {b}, {tmp_path / 'none'}\n")
    for root in (a, b):
        assert f"{root / 'csv_files/t.csv'} line 2, image_path: there is no file 0.png" in message
    assert f"{tmp_path / 'none/csv_files'}: there is no such folder" in message
    with (tmp_path / "bad.csv").open() as file:
        assert str(b / "csv_files/t.csv") in [line["file"] for line in csv.DictReader(file)]


def test_folders_that_contradict_each_other_are_told(a, tmp_path):
    other = make(tmp_path / "other", [5], size=4)
    with pytest.raises(FolderError, match="with num_classes 4") as caught:
        read_folder(a, other)
    assert f"in {a / 'csv_files/t.csv'} line 2" in str(caught.value)


def test_skipped_rows_are_those_of_their_folder(a, b, tmp_path):
    (a / "1.png").unlink()
    folder = read_folder(a, b, on_bad_row="skip")
    assert [(row.root, row.image_path) for row in folder.rows["t"]] == [
        (0, "../0.png"),
        (0, "../2.png"),
        (1, "../0.png"),
        (1, "../1.png"),
        (1, "../2.png"),
    ]
    assert folder.skipped_images == {("t", "../1.png", 0)}
    # A split of all rows is as good for those that are left.
    lines = ["task_id,image_path,part,root"]
    lines += [
        f"t,../{k}.png,{'train' if root == a else 'val'},{root}"
        for root in (a, b)
        for k in range(3)
    ]
    path = tmp_path / "given.csv"
    path.write_text("\n".join(lines) + "\n")
    splits = read_splits(path, folder)
    assert [splits.part(row) for row in folder.rows["t"]] == ["train"] * 2 + ["val"] * 3


@pytest.mark.parametrize("again", ["a", "a/../a", "link"])
def test_a_folder_named_twice_is_refused(a, tmp_path, again):
    (tmp_path / "link").symlink_to(a)
    with pytest.raises(UserError, match=r"data\.root names the folder .* twice"):
        read_folder(a, tmp_path / again)


def test_equal_images_of_two_folders_are_one_group(a, b):
    folder = read_folder(a, b)
    rows = folder.rows["t"]
    for fraction in (0.2, 0.5, 0.8):
        splits = make_splits(folder, val_fraction=fraction)
        assert splits.group(rows[2]) == splits.group(rows[3])
        assert splits.part(rows[2]) == splits.part(rows[3])
        assert leaks(splits) == []


def test_a_split_of_two_folders_comes_back(a, b, tmp_path):
    folder = read_folder(a, b)
    splits = make_splits(folder, val_fraction=0.5)
    assert {splits.part(row) for row in folder.rows["t"]} == {"train", "val"}
    write_splits(tmp_path / "splits.csv", splits, folder)
    assert read_splits(tmp_path / "splits.csv", folder) == splits
    # Folders in another order are the same folders.
    turned = read_folder(b, a)
    read = read_splits(tmp_path / "splits.csv", turned)
    told = {(turned.image_file(row), read.part(row)) for row in turned.rows["t"]}
    assert told == {(folder.image_file(row), splits.part(row)) for row in folder.rows["t"]}


def test_a_split_of_one_folder_has_no_root(a, tmp_path):
    folder = read_folder(a)
    write_splits(tmp_path / "splits.csv", make_splits(folder), folder)
    header = (tmp_path / "splits.csv").read_text().splitlines()[0]
    assert header == "task_id,image_path,part,group"


def test_a_split_need_not_name_folders_where_paths_differ(a, tmp_path):
    folder = read_folder(a, make(tmp_path / "femur", [5], task="other"))
    path = tmp_path / "given.csv"
    lines = [f"t,../{k}.png,train" for k in range(3)] + ["other,../0.png,val"]
    path.write_text("\n".join(["task_id,image_path,part", *lines]) + "\n")
    splits = read_splits(path, folder)
    assert splits.part(folder.rows["other"][0]) == "val"


def test_a_split_that_leaves_the_folder_open_is_refused(a, b, tmp_path):
    path = tmp_path / "given.csv"
    path.write_text(f"task_id,image_path,part,root\nt,../0.png,train,\nt,../1.png,val,{tmp_path}\n")
    with pytest.raises(FolderError) as caught:
        read_splits(path, read_folder(a, b))
    told = [str(fault) for fault in caught.value.faults]
    assert told[0].startswith("given.csv line 2, root: '../0.png' is in several folders; add a")
    assert told[1].startswith(
        f"given.csv line 3, root: '{tmp_path}' is none of the folders {a}, {b}"
    )
    assert f"given.csv: task 't', image '../2.png' is missing (of {b}); add a line for it" in told


def answers(rows: list[Row]) -> list[tuple[Row, Answer]]:
    return [(row, Answer(probs=np.array([0.2, 0.3, 0.5], np.float32))) for row in rows]


def test_predictions_that_cannot_be_told_apart_are_refused_before_any_is_made(a, b, tmp_path):
    folder = read_folder(a, b)

    def answering() -> Iterator[tuple[Row, Answer]]:
        raise AssertionError("answers before it checks")
        yield from ()

    with pytest.raises(UserError, match=r"\.\./0\.png is also the name of .* predict one folder"):
        write_submission(answering(), folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_predictions_of_two_folders_stand_side_by_side_where_names_differ(a, tmp_path):
    folder = read_folder(a, make(tmp_path / "femur", [5], task="other"))
    rows = [row for of_task in folder.rows.values() for row in of_task]
    write_submission(answers(rows), folder, tmp_path / "out")
    entries = json.loads((tmp_path / "out/classification_predictions.json").read_text())
    assert [(entry["task_id"], entry["image_path"]) for entry in entries] == [
        ("other", "../0.png"),
        *(("t", f"../{k}.png") for k in range(3)),
    ]


def test_where_a_folder_lies_does_not_change_its_store(a, b, tmp_path):
    one = open_store(read_folder(a, b), (16, 16), 1, tmp_path / "cache")
    images = one.read("t", range(6))["image"]
    np.testing.assert_array_equal(images[2], images[3])  # of equal pixels
    assert not np.array_equal(images[1], images[4])
    alone = open_store(read_folder(a), (16, 16), 1, tmp_path / "cache")
    a.rename(tmp_path / "moved")
    assert open_store(read_folder(tmp_path / "moved"), (16, 16), 1, tmp_path / "cache") == alone


def test_a_column_of_groups_keeps_rows_together(a, tmp_path):
    lines = (a / "csv_files/t.csv").read_text().splitlines()
    groups = ["split_group", "p1", "p2", "p1"]
    text = "\n".join(f"{line},{group}" for line, group in zip(lines, groups, strict=True))
    (a / "csv_files/t.csv").write_text(text + "\n")
    folder = read_folder(a)
    splits = make_splits(folder)
    assert [splits.group(row) for row in folder.rows["t"]] == ["p1", "p2", "p1"]


def test_a_config_names_several_folders(a, b, tmp_path):
    config = usfm_config.base()
    config.data.update(root=f"{a},{b}", cache_dir=str(tmp_path / "cache"))
    assert len(open_folder(config, tmp_path).rows["t"]) == 6
    turned = usfm_config.base()
    turned.data.root = f"{b}, {a}/../a"
    assert identities(turned.data) == identities(config.data)
    turned.data.root = str(a)
    assert identities(turned.data) < identities(config.data)
