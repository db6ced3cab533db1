import csv
import dataclasses
import itertools

import numpy as np
import pytest

from usfm import config as usfm_config
from usfm.data.folder import Folder
from usfm.data.phantoms import write_folder
from usfm.data.source import cache_dir, open_folder, open_splits, rows_in, say, training_rows
from usfm.data.splits import Splits
from usfm.errors import UserError

TASKS = "breast_2cls,FUGC"


@pytest.fixture
def config(make_config, tmp_path):
    return make_config(tasks=TASKS, **{"data.cache_dir": str(tmp_path / "cache")})


def lines_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_lines(path, lines):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def test_the_folder_is_read_as_the_config_says(config, tmp_path):
    config.data.groups = {"FUGC": "pelvic"}
    config.data.flip_ok = {"breast_2cls": False}
    folder = open_folder(config, tmp_path)
    assert [task.id for task in folder.tasks] == ["FUGC", "breast_2cls"]
    assert folder.tasks[0].group == "pelvic"
    assert not folder.tasks[1].flip_ok
    assert any(cache_dir(config).iterdir())


def test_faults_that_are_passed_over_are_said_and_listed(make_config, tmp_path, capsys):
    root = tmp_path / "folder"
    write_folder(root, tasks=("breast_2cls", "FUGC"), rows=6)
    path = root / "csv_files/breast_2cls.csv"
    lines = lines_of(path)
    lines[2]["mask"] = "7"
    write_lines(path, lines)
    config = make_config(tasks="all", **{"data.root": str(root), "data.on_bad_row": "skip"})
    folder = open_folder(config, tmp_path)
    assert len(folder.rows["breast_2cls"]) == 5
    assert capsys.readouterr().err == (
        f"1 fault in {root}, rows left out: see {tmp_path}/bad_rows.csv\n"
    )
    (fault,) = lines_of(tmp_path / "bad_rows.csv")
    assert (fault["file"], fault["row"], fault["field"]) == ("breast_2cls.csv", "4", "mask")


def test_the_splits_are_written_for_who_trains_only(config, tmp_path):
    folder = open_folder(config, tmp_path)
    splits = open_splits(config, folder)
    assert not (tmp_path / "splits.csv").exists()
    assert open_splits(config, folder, tmp_path) == splits
    lines = lines_of(tmp_path / "splits.csv")
    rows = [row for task in folder.tasks for row in folder.rows[task.id]]
    assert [(line["task_id"], line["image_path"], line["part"]) for line in lines] == [
        (row.task_id, row.image_path, splits.part(row)) for row in rows
    ]
    assert {line["part"] for line in lines} == {"train", "val"}


def test_a_given_split_is_taken_instead(config, tmp_path):
    folder = open_folder(config, tmp_path)
    open_splits(config, folder, tmp_path)
    lines = lines_of(tmp_path / "splits.csv")
    for number, line in enumerate(lines):
        line["part"] = ("test", "train", "val")[number % 3]
    config.data.splits_file = str(tmp_path / "given.csv")
    write_lines(tmp_path / "given.csv", lines)
    splits = open_splits(config, folder, tmp_path)
    rows = [row for task in folder.tasks for row in folder.rows[task.id]]
    assert [splits.part(row) for row in rows] == [line["part"] for line in lines]
    assert lines_of(tmp_path / "splits.csv") == lines


def test_what_is_wrong_with_a_split_is_said(config, tmp_path, capsys):
    folder = open_folder(config, tmp_path)
    open_splits(config, folder, tmp_path)
    lines = lines_of(tmp_path / "splits.csv")
    for line in lines:
        line["part"] = "train" if line["task_id"] == "FUGC" else "val"
    config.data.splits_file = str(tmp_path / "given.csv")
    # Both tasks' first images are made one patient's.
    config.data.group_patterns = (r"/(0000)\.png$",)
    write_lines(tmp_path / "given.csv", lines)
    capsys.readouterr()
    open_splits(config, folder, tmp_path)
    assert capsys.readouterr().err.splitlines() == [
        f"warning: {tmp_path}/given.csv has 1 groups (images, videos or patients) on two sides, "
        "such as 0000: scores will flatter",
        "warning: task 'FUGC' has no val rows",
        "warning: task 'breast_2cls' has no train rows",
    ]


def test_rows_are_taken_by_part(config, tmp_path):
    folder = open_folder(config, tmp_path)
    splits = open_splits(config, folder)
    everything = rows_in(folder, splits, "all")
    assert everything == {id: list(rows) for id, rows in folder.rows.items()}
    for task_id in folder.rows:
        parts = [rows_in(folder, splits, part)[task_id] for part in ("train", "val", "test")]
        joined = sorted(itertools.chain(*parts), key=lambda row: row.index)
        assert joined == everything[task_id]
        assert {splits.part(row) for row in parts[1]} <= {"val"}


def test_rows_without_a_label_are_neither_trained_on_nor_scored(make_config, tmp_path):
    root = tmp_path / "folder"
    write_folder(root, tasks=("breast_2cls",), rows=6)
    path = root / "csv_files/breast_2cls.csv"
    lines = lines_of(path)
    lines[2]["mask"] = ""
    write_lines(path, lines)
    config = make_config(tasks="all", **{"data.root": str(root), "data.val_fraction": 0.0})
    folder = open_folder(config, tmp_path, require_labels=False)
    splits = open_splits(config, folder)
    assert len(folder.rows["breast_2cls"]) == 6
    assert training_rows(folder, splits, config.data)["breast_2cls"].tolist() == [0, 1, 3, 4, 5]
    assert len(rows_in(folder, splits, "all")["breast_2cls"]) == 5


def test_a_smaller_fraction_lies_inside_a_larger(config, tmp_path):
    folder = open_folder(config, tmp_path)
    splits = open_splits(config, folder)
    whole = training_rows(folder, splits, config.data)
    for task_id, indices in whole.items():
        assert indices.tolist() == splits.indices(folder, task_id, "train").tolist()
    previous = whole
    for fraction in (0.7, 0.5, 0.2, 1e-6):
        config.data.fraction = fraction
        some = training_rows(folder, splits, config.data)
        for task_id, indices in some.items():
            assert len(indices) == max(1, int(np.ceil(fraction * len(whole[task_id]))))
            assert set(indices) <= set(previous[task_id])
        previous = some


def test_a_task_may_have_a_share_of_its_own_and_keeps_its_minimum(config, tmp_path):
    folder = open_folder(config, tmp_path)
    splits = open_splits(config, folder)
    whole = {id: len(rows) for id, rows in training_rows(folder, splits, config.data).items()}
    assert min(whole.values()) >= 3
    config.data.fraction, config.data.fractions = 1e-6, {"FUGC": 1.0}
    few = {id: len(rows) for id, rows in training_rows(folder, splits, config.data).items()}
    assert few == {"FUGC": whole["FUGC"], "breast_2cls": 1}
    config.data.min_examples = 3
    assert len(training_rows(folder, splits, config.data)["breast_2cls"]) == 3
    config.data.min_examples = 1000
    all_rows = training_rows(folder, splits, config.data)
    assert {id: len(rows) for id, rows in all_rows.items()} == whole
    config.data.fractions = {"FUCG": 0.5}
    with pytest.raises(UserError, match=r"data\.fractions: .*'FUCG'.*FUGC"):
        training_rows(folder, splits, config.data)


def test_any_share_has_the_classes_of_all_and_whole_groups(make_folder_of):
    # 60 rows of class 0 and 20 of class 1, in videos of four frames.
    folder, splits = make_folder_of([0] * 60 + [1] * 20, frames=4)
    data = usfm_config.base().data
    labels = np.array([row.label for row in folder.rows["plane"]])
    for fraction in (0.25, 0.5, 0.75):
        data.fraction = fraction
        chosen = training_rows(folder, splits, data)["plane"]
        assert len(chosen) == 80 * fraction
        assert (labels[chosen] == 1).sum() == pytest.approx(20 * fraction, abs=4)  # one video
        assert set(np.bincount(chosen // 4)) <= {0, 4}
    data.fraction = 0.26  # whole videos, so a little more
    assert len(training_rows(folder, splits, data)["plane"]) == 24


@pytest.fixture
def make_folder_of(small_folder):
    """Makes a folder of one task with these labels, `frames` rows a video, and splits."""

    def make(labels, frames):
        first = small_folder.rows["plane"][0]
        rows = tuple(
            dataclasses.replace(first, index=i, key=f"{i}", label=label)
            for i, label in enumerate(labels)
        )
        keys = [("plane", row.key) for row in rows]
        groups = {key: f"video {i // frames}" for i, key in enumerate(keys)}
        tasks = tuple(task for task in small_folder.tasks if task.id == "plane")
        folder = Folder(small_folder.roots, tasks, {"plane": rows})
        return folder, Splits(dict.fromkeys(keys, "train"), groups)

    return make


def test_say_keeps_stdout_for_results(capsys):
    say("a line")
    assert capsys.readouterr() == ("", "a line\n")
