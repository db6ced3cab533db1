import csv
import hashlib
import pathlib

import numpy as np
import pytest

from usfm.data.folder import Folder, FolderError, Row, read_folder
from usfm.data.splits import Splits, gaps, leaks, make_splits
from usfm.data.splits_file import read_splits, write_splits
from usfm.tasks import Task

MINI = pathlib.Path(__file__).parents[2] / "../shared/data/fm_uia_mini"


def folder(images, skipped_images=()):
    """A folder of classification rows, from task id -> (image path, content) pairs."""
    rows: dict[str, tuple[Row, ...]] = {}
    for id, pairs in images.items():
        seen = []
        for index, (path, content) in enumerate(pairs):
            number = seen.count(path) + 1
            seen.append(path)
            key = path if number == 1 else f"{path}#{number}"
            row = Row(id, index, key, f"{id}.csv", index + 2, path, "", 0, None, (), 8, 8, content)
            rows[id] = (*rows.get(id, ()), row)
    tasks = tuple(Task(id, "classification", 2) for id in sorted(rows))
    skipped = frozenset((*image, 0) for image in skipped_images)
    return Folder((pathlib.Path("root"),), tasks, rows, (), skipped)


def content(k):
    return hashlib.blake2b(str(k).encode(), digest_size=16).hexdigest()


def singles(number, task="t", start=0):
    return {task: [(f"../I/{k}.png", content(k)) for k in range(start, start + number)]}


def write(path, *lines, header="task_id,image_path,part"):
    path.write_text("\n".join((header, *lines)) + "\n")
    return path


def test_the_fractions_are_met_about():
    many = folder(singles(2000))
    splits = make_splits(many, val_fraction=0.2, test_fraction=0.1)
    counts = [splits.indices(many, "t", part).size for part in ("train", "val", "test")]
    np.testing.assert_allclose(counts, [1400, 400, 200], atol=60)
    assert splits.indices(many, "t", "val").dtype == np.int64


def test_indices_are_those_of_the_rows():
    some = folder(singles(50))
    splits = make_splits(some)
    found = [splits.indices(some, "t", part) for part in ("train", "val", "test")]
    assert sorted(np.concatenate(found).tolist()) == list(range(50))
    assert all(splits.part(some.rows["t"][k]) == "val" for k in found[1])


def test_rows_of_one_patient_video_or_image_stay_together_across_tasks():
    mixed = folder(
        {
            "a": [(f"../A/Patient{k // 5:05d}_Plane1_{k}_of_9.png", content(k)) for k in range(200)]
            + [(f"../V/2410101408{k // 5:02d}.zhc_{k}.jpg", content(900 + k)) for k in range(200)],
            "b": [(f"../B/{k}.png", content(k)) for k in range(200)],
        }
    )
    splits = make_splits(mixed, val_fraction=0.5)
    assert leaks(splits) == []
    for k, row in enumerate(mixed.rows["a"][:200]):
        assert splits.group(row) == f"Patient{k // 5:05d}"
        assert splits.group(mixed.rows["b"][k]) == splits.group(row)
    for k, row in enumerate(mixed.rows["a"][200:]):
        assert splits.group(row) == f"2410101408{k // 5:02d}.zhc"
    assert len({*splits.groups.values()}) == 80
    assert {*splits.parts.values()} == {"train", "val"}


def test_groups_that_share_an_image_become_one():
    chain = folder(
        {
            "a": [
                ("../Patient3_1.png", content(1)),
                ("../Patient3_2.png", content(2)),
                ("../Patient1_1.png", content(2)),
                ("../Patient1_2.png", content(3)),
                ("../Patient2_1.png", content(3)),
                ("../Patient4_1.png", content(4)),
            ]
        }
    )
    groups = list(make_splits(chain).groups.values())
    assert groups == ["Patient1"] * 5 + ["Patient4"]


def test_a_row_without_a_name_is_grouped_by_its_content():
    twins = folder({"a": [("../x.png", content(7))], "b": [("../y.png", content(7))]})
    splits = make_splits(twins)
    assert {*splits.groups.values()} == {content(7)[:16]}
    assert len({*splits.parts.values()}) == 1


def test_new_images_and_patients_move_no_old_row():
    images = {
        "a": [(f"../Patient{k // 3}_{k}.png", content(k)) for k in range(300)],
        **singles(300, "b", start=1000),
    }
    before = make_splits(folder(images))
    more = {
        "a": [(f"../Patient{k // 3}_{k}.png", content(k)) for k in range(900, 990)] + images["a"],
        "b": singles(50, start=5000)["t"] + images["b"],
        **singles(50, "new", start=6000),
    }
    after = make_splits(folder(more))
    assert {key: after.parts[key] for key in before.parts} == before.parts
    assert {*before.parts.values()} == {"train", "val"}


def test_a_larger_val_part_keeps_what_was_in_it():
    some = folder(singles(300))
    small, large = (make_splits(some, val_fraction=share) for share in (0.1, 0.3))
    in_small, in_large = (set(each.indices(some, "t", "val")) for each in (small, large))
    assert in_small < in_large


def test_patterns_are_the_users():
    some = folder({"a": [("../clip7_f0.png", content(1)), ("../clip7_f1.png", content(2))]})
    assert {*make_splits(some, patterns=[r"(clip\d+)_"]).groups.values()} == {"clip7"}


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [("(a", "no regular expression"), ("a", "0 capture groups"), ("(a)(b)", "2 capture groups")],
)
def test_a_bad_pattern_is_refused(pattern, fault):
    with pytest.raises(ValueError, match=fault):
        make_splits(folder(singles(1)), patterns=[pattern])


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0), (0.2, -0.1), (0.5, 0.5), (1, 0)])
def test_bad_fractions_are_refused(val, test):
    with pytest.raises(ValueError, match=r"data\.val_fraction"):
        make_splits(folder(singles(1)), val_fraction=val, test_fraction=test)


def test_what_is_written_can_be_read_back(tmp_path):
    some = folder({"a": [("../x, y.png", content(1)), ("../x, y.png", content(1))], **singles(9)})
    splits = make_splits(some, val_fraction=0.4, test_fraction=0.2)
    path = tmp_path / "work/splits.csv"
    write_splits(path, splits, some)
    assert read_splits(path, some) == splits
    with path.open(newline="") as file:
        records = list(csv.DictReader(file))
    assert list(records[0]) == ["task_id", "image_path", "part", "group"]
    assert len(records) == 11
    assert [each.name for each in path.parent.iterdir()] == ["splits.csv"]


def test_a_given_split_is_taken_as_it_is(tmp_path):
    some = folder(singles(3))
    path = write(
        tmp_path / "s.csv",
        "test,t,../I/2.png,x",
        "train,t,../I/0.png,x",
        "val,t,../I/1.png,x",
        "anything,not_chosen,../I/7.png,x",
        header="part,task_id,image_path,note",
    )
    splits = read_splits(path, some)
    assert [splits.part(row) for row in some.rows["t"]] == ["train", "val", "test"]


def test_leaks_and_gaps_of_a_given_split_are_named(tmp_path):
    some = folder(
        {
            "a": [("../Patient1_1.png", content(1)), ("../Patient1_2.png", content(2))],
            "b": [("../z.png", content(3))],
        }
    )
    path = write(
        tmp_path / "s.csv",
        "a,../Patient1_1.png,train",
        "a,../Patient1_2.png,val",
        "b,../z.png,test",
    )
    splits = read_splits(path, some)
    assert leaks(splits) == ["Patient1"]
    assert gaps(splits, some) == ["task 'b' has no train rows", "task 'b' has no val rows"]


def test_all_faults_of_a_given_split_come_together(tmp_path):
    path = write(
        tmp_path / "s.csv",
        "t,../I/0.png,train",
        "t,../I/0.png,val",
        "t,../I/1.png,valid",
        "t,../I/99.png,val",
        "t,../I/2.png,val,more",
    )
    with pytest.raises(FolderError) as caught:
        read_splits(path, folder(singles(4)))
    found = [(each.row, each.field) for each in caught.value.faults]
    assert found == [(3, "part"), (4, "part"), (5, "image_path"), (6, ""), (None, "")]
    assert "'../I/3.png' is missing" in caught.value.faults[-1].fault


def test_a_row_that_was_skipped_may_stand_in_the_split(tmp_path):
    path = write(tmp_path / "s.csv", "t,../I/0.png,train", "t,../I/bad.png,val")
    some = folder(singles(1), skipped_images={("t", "../I/bad.png")})
    assert read_splits(path, some).part(some.rows["t"][0]) == "train"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "no such file"),
        ("", "is empty"),
        ("image_path,part\na,train", "no column task_id"),
        ("task_id,image_path\nt,a", "column is missing"),
    ],
)
def test_what_is_no_split_is_refused(tmp_path, text, fault):
    path = tmp_path / "s.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(FolderError, match=fault) as caught:
        read_splits(path, folder(singles(2)))
    assert len(caught.value.faults) == 1


@pytest.mark.skipif(not MINI.is_dir(), reason="fm_uia_mini is not beside this checkout")
def test_the_split_of_fm_uia_mini():
    mini = read_folder(MINI, tasks="vessel_det,tongue_5pt")
    splits = read_splits(MINI / "splits.csv", mini)
    assert leaks(splits) == gaps(splits, mini) == []
    assert isinstance(splits, Splits)
    assert splits.indices(mini, "vessel_det", "train").size == 56
    assert splits.indices(mini, "vessel_det", "val").size == 14
