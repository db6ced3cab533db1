import csv
import json
import os
import pathlib
import time

import numpy as np
import pytest
from PIL import Image

from usfm.data import files
from usfm.data.folder import FolderError, read_folder

MINI = pathlib.Path(__file__).parents[2] / "../shared/data/fm_uia_mini"
SEG = "image_path,mask_path,task_id,task_name,num_classes"
CLS = "image_path,mask,task_id,task_name,num_classes"
DET = "image_path,x_min,y_min,x_max,y_max,task_id,task_name,num_classes"
REG = "image_path,point_1_xy,point_2_xy,task_id,task_name,num_classes"


def seg(image="0", mask="../M/0.png"):
    return f"../I/{image}.png,{mask},s,segmentation,3"


def cls(image="0", label="1"):
    return f"../I/{image}.png,{label},c,classification,3"


def det(image="0", box="1,2,30,20"):
    return f"../I/{image}.png,{box},d,detection,1"


def reg(image="0", first="[1, 2.5]", second="[40, 30]"):
    return f'../I/{image}.png,"{first}","{second}",r,Regression,2'


@pytest.fixture
def root(tmp_path):
    """A folder of four images of 40 x 30, masks of them, and a CSV of each type without faults."""
    for name in ("I", "M", "csv_files"):
        (tmp_path / "root" / name).mkdir(parents=True)
    root = tmp_path / "root"
    rng = np.random.default_rng(0)
    for k in range(4):
        save(root / f"I/{k}.png", rng.integers(0, 256, (30, 40), np.uint8))
        save(root / f"M/{k}.png", rng.integers(0, 3, (30, 40), np.uint8))
    write(root, "s", SEG, seg(), seg("1", "../M/1.png"))
    write(root, "c", CLS, cls(), cls("1", "2.0"))
    write(root, "d", DET, det(), det(box="0,0,40,30"), det("1"))
    write(root, "r", REG, reg(), reg("1", second=""))
    return root


def save(path, array):
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


def write(root, name, *lines):
    (root / f"csv_files/{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def faults(root, **arguments):
    with pytest.raises(FolderError) as caught:
        read_folder(root, **arguments)
    return caught.value.faults


def test_a_clean_folder_is_read_in_order(root):
    folder = read_folder(root)
    assert [(task.id, task.type, task.size) for task in folder.tasks] == [
        ("c", "classification", 3),
        ("d", "detection", 1),
        ("r", "regression", 2),
        ("s", "segmentation", 3),
    ]
    assert [row.label for row in folder.rows["c"]] == [1, 2]
    assert [row.points for row in folder.rows["r"]] == [((1, 2.5), (40, 30)), ((1, 2.5), None)]
    assert [row.box for row in folder.rows["d"]] == [(1, 2, 30, 20), (0, 0, 40, 30), (1, 2, 30, 20)]
    assert [row.key for row in folder.rows["d"]] == ["../I/0.png", "../I/0.png#2", "../I/1.png"]
    for task in folder.tasks:
        rows = folder.rows[task.id]
        assert [row.index for row in rows] == list(range(len(rows)))
        assert all(row.labelled and (row.height, row.width) == (30, 40) for row in rows)
        assert all(row.csv == f"{task.id}.csv" and row.line == row.index + 2 for row in rows)
    first = folder.rows["s"][0]
    assert folder.image_file(first) == root / "I/0.png"
    assert folder.mask_file(first) == root / "M/0.png"
    assert first.content == folder.rows["c"][0].content != folder.rows["c"][1].content


def test_one_task_may_be_spread_over_files_and_one_file_hold_several(root):
    (root / "csv_files/c.csv").unlink()
    write(root, "a", CLS, cls("3"), "../I/2.png,0,other,classification,2")
    write(root, "b", CLS, cls("2"))
    folder = read_folder(root, tasks="c,other")
    assert [(row.csv, row.index) for row in folder.rows["c"]] == [("a.csv", 0), ("b.csv", 1)]
    assert len(folder.rows["other"]) == 1


def test_a_byte_order_mark_blank_lines_and_hidden_files_are_accepted(root):
    text = f"{CLS}\r\n{cls()}\r\n\r\n{cls('1')}\r\n"
    (root / "csv_files/c.csv").write_text(text, encoding="utf-8-sig", newline="")
    (root / "csv_files/._c.csv").write_bytes(b"\xff\x00")
    assert [row.line for row in read_folder(root).rows["c"]] == [2, 4]


# Each: the file, its header, its one line, then the line, field and a part of the fault.
BAD_LINES = {
    "missing image": ("c", CLS, cls("9"), "image_path", "no file I/9.png"),
    "image path empty": ("c", CLS, ",1,c,classification,3", "image_path", "empty"),
    "image path leaves": ("c", CLS, cls("../../0"), "image_path", "leaves the folder"),
    "image path absolute": ("c", CLS, "/a.png,1,c,classification,3", "image_path", "leaves"),
    "image is a folder": ("c", CLS, "../I,1,c,classification,3", "image_path", "not a file"),
    "class not a number": ("c", CLS, cls(label="one"), "mask", "'one' is not a whole number"),
    "class is NaN": ("c", CLS, cls(label="nan"), "mask", "'nan' is not a whole number"),
    "class is 1.5": ("c", CLS, cls(label="1.5"), "mask", "'1.5' is not a whole number"),
    "class too large": ("c", CLS, cls(label="3"), "mask", "3 is out of range"),
    "class negative": ("c", CLS, cls(label="-1"), "mask", "-1 is out of range"),
    "class empty": ("c", CLS, cls(label=""), "mask", "empty"),
    "task_id empty": ("c", CLS, "../I/0.png,1,,classification,3", "task_id", "empty"),
    "task_name": ("c", CLS, "../I/0.png,1,c,clasification,3", "task_name", "no type of task"),
    "num_classes": ("c", CLS, "../I/0.png,1,c,classification,x", "num_classes", "whole number"),
    "num_classes 0": ("c", CLS, "../I/0.png,1,c,classification,0", "num_classes", "whole number"),
    "too few fields": ("c", CLS, "../I/0.png,1,c", "", "2 field(s) too few"),
    "too many fields": ("c", CLS, cls() + ",7", "", "1 field(s) too many"),
    "no mask_path": ("s", SEG, seg(mask=""), "mask_path", "empty"),
    "missing mask": ("s", SEG, seg(mask="../M/9.png"), "mask_path", "no file M/9.png"),
    "mask leaves": ("s", SEG, seg(mask="../../0.png"), "mask_path", "leaves the folder"),
    "box not a number": ("d", DET, det(box="1,2,x,20"), "x_max", "'x' is not a number"),
    "box NaN": ("d", DET, det(box="1,nan,30,20"), "y_min", "'nan' is not finite"),
    "box half empty": ("d", DET, det(box="1,2,30,"), "y_max", "empty"),
    "box missing": ("d", DET, det(box=",,,"), "x_min", "empty"),
    "box inverted": ("d", DET, det(box="30,2,1,20"), "x_max", "inverted"),
    "box without height": ("d", DET, det(box="1,2,30,2"), "y_max", "the box is empty"),
    "box outside right": ("d", DET, det(box="1,2,41,20"), "x_max", "outside (41)"),
    "box outside top": ("d", DET, det(box="1,-1,30,20"), "y_min", "outside (-1)"),
    "point malformed": ("r", REG, reg("0", "1 2"), "point_1_xy", "is not a point"),
    "point of three": ("r", REG, reg("0", "[1, 2, 3]"), "point_1_xy", "is not a point"),
    "point of words": ("r", REG, reg("0", "[1, null]"), "point_1_xy", "is not two numbers"),
    "point NaN": ("r", REG, reg("0", "[1, NaN]"), "point_1_xy", "is not finite"),
    "point outside": ("r", REG, reg("0", second="[3, 30.5]"), "point_2_xy", "outside (3, 30.5)"),
    "no point": ("r", REG, reg("0", "", ""), "point_1_xy", "empty"),
}


@pytest.mark.parametrize("case", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named_by_file_row_and_field(root, case):
    name, header, line, field, fault = case
    good = {"s": seg("1"), "c": cls("1"), "d": det("1"), "r": reg("1")}[name]
    write(root, name, header, good, line)
    (found,) = faults(root)
    assert (found.file, found.row, found.field) == (f"{name}.csv", 3, field)
    assert fault in found.fault
    assert found.remedy
    folder = read_folder(root, on_bad_row="skip")
    assert folder.skipped == (found,)
    assert [row.line for row in folder.rows[name]] == [2]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


BAD_FILES = {
    "image truncated": ("I/0.png", truncate, "image_path", "cannot be decoded"),
    "image empty": ("I/0.png", lambda path: path.write_bytes(b""), "image_path", "0 bytes"),
    "image is text": ("I/0.png", lambda path: path.write_text("x"), "image_path", "not an image"),
    "mask truncated": ("M/0.png", truncate, "mask_path", "cannot be decoded"),
    "mask empty": ("M/0.png", lambda path: path.write_bytes(b""), "mask_path", "0 bytes"),
    "mask of another size": (
        "M/0.png",
        lambda path: save(path, np.zeros((30, 41))),
        "mask_path",
        "the mask is 41 x 30, its image 40 x 30",
    ),
    "mask 0/255": ("M/0.png", lambda path: save(path, np.eye(30, 40) * 255), "mask_path", "0/255"),
    "mask all 255": (
        "M/0.png",
        lambda path: save(path, np.full((30, 40), 255)),
        "mask_path",
        "0/255",
    ),
    "mask out of range": (
        "M/0.png",
        lambda path: save(path, np.eye(30, 40) * 3),
        "mask_path",
        "out of range (3)",
    ),
    "mask coloured": (
        "M/0.png",
        lambda path: save(path, np.eye(30, 40)[..., None] * [255, 0, 0]),
        "mask_path",
        "colour",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_named_by_every_row_that_uses_it(root, case):
    path, spoil, field, fault = case
    spoil(root / path)
    found = faults(root)
    rows = {("c.csv", 2), ("d.csv", 2), ("d.csv", 3), ("r.csv", 2), ("s.csv", 2)}
    assert {(each.file, each.row) for each in found} == (
        rows if field == "image_path" else {("s.csv", 2)}
    )
    assert all(each.field == field and fault in each.fault and each.remedy for each in found)


def test_labels_are_of_the_image_as_exif_turns_it(root):
    exif = Image.Exif()
    exif[274] = 6
    with Image.open(root / "I/0.png") as image:
        image.save(root / "I/0.png", exif=exif)  # now seen as 30 x 40
    found = {
        each.field: str(each) for each in faults(root) if each.row == 3 or each.file[0] in "rs"
    }
    said = "it is stored as 40 x 30 and read turned by its EXIF"
    assert "the mask is 40 x 30, its image 30 x 40; give a mask of the" in found["mask_path"]
    assert said in found["mask_path"]
    assert said in found["x_max"]
    assert said in found["point_2_xy"]
    save(root / "M/0.png", np.zeros((40, 30)))
    write(root, "d", DET, det(box="0,0,30,40"))
    write(root, "r", REG, reg(second="[30, 40]"))
    assert read_folder(root).rows["s"][0].height == 40


def test_a_0_255_mask_comes_with_its_remedy(root):
    save(root / "M/0.png", np.eye(30, 40) * 255)
    assert "divide the mask by 255" in faults(root)[0].remedy


WHOLE_FILES = {
    "empty": (b"", "", "is empty"),
    "header only": (CLS.encode(), "", "no rows"),
    "not UTF-8": (f"{CLS}\n{cls()}\n{cls('é')}".encode("latin-1"), "", "not UTF-8 (line 3)"),
    "open quote": (f'{CLS}\n"{cls()}'.encode(), "", "not a CSV (from line 2"),
    "column twice": (f"{CLS},mask\n{cls()},1".encode(), "", "column 'mask' twice"),
    "no task_id": (b"image_path,mask\n../I/0.png,1", "", "no column task_id"),
    "no label column": (f"{SEG}\n{cls()}".encode(), "mask", "column is missing"),
}


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
@pytest.mark.parametrize("case", WHOLE_FILES.values(), ids=WHOLE_FILES)
def test_a_fault_of_a_whole_file_cannot_be_skipped(root, case, on_bad_row):
    data, field, fault = case
    (root / "csv_files/c.csv").write_bytes(data)
    found = next(each for each in faults(root, on_bad_row=on_bad_row) if each.file == "c.csv")
    assert (found.row, found.field) == (None, field)
    assert fault in found.fault


@pytest.mark.parametrize(
    "line",
    [cls("2").replace("classification,3", other) for other in ("classification,4", "detection,1")],
)
def test_a_task_with_two_types_or_class_counts_cannot_be_skipped(root, line):
    write(root, "z", CLS, line)
    (found,) = faults(root, on_bad_row="skip")
    assert "classification with 3 in c.csv line 2" in found.fault
    assert (found.file, found.row) == ("z.csv", None)


def test_a_task_of_which_no_row_is_good_cannot_be_skipped(root):
    write(root, "c", CLS, cls("9"))
    found = faults(root, on_bad_row="skip")
    assert [str(each) for each in found if each.row is None] == [
        "task c: has no good row; correct its rows, or leave it out by the config field tasks"
    ]


def test_a_folder_without_csv_files(tmp_path):
    (found,) = faults(tmp_path)
    assert "no such folder" in found.fault
    (tmp_path / "csv_files").mkdir()
    (found,) = faults(tmp_path)
    assert "no CSV" in found.fault


def test_repeated_and_contradicting_rows(root):
    write(root, "c", CLS, cls("0"), cls("0"), cls("1", "0"), cls("1", "2"), cls("2"))
    write(root, "d", DET, det(), det(box="0,0,9,9"), det())
    found = {(each.file, each.row): each.fault for each in faults(root)}
    assert found == {
        ("c.csv", 3): "repeats c.csv line 2",
        ("c.csv", 4): "has another label in c.csv line 5",
        ("c.csv", 5): "has another label in c.csv line 4",
        ("d.csv", 4): "repeats d.csv line 2",
    }
    folder = read_folder(root, on_bad_row="skip")
    assert [row.line for row in folder.rows["c"]] == [2, 6]


def test_a_line_with_several_faults_reports_those_that_can_be_seen(root):
    write(root, "c", CLS, cls("1"), cls("9", "7"))
    assert {each.field for each in faults(root)} == {"image_path", "mask"}


def test_all_faults_come_in_one_report_and_in_a_file(root, tmp_path):
    lines = [cls(str(k), "x") for k in range(10, 40)]
    write(root, "c", CLS, *lines)
    write(root, "z", "image_path,task_id", "../I/0.png,zz")
    (root / "csv_files/y.csv").write_bytes(b"")
    path = tmp_path / "work/bad_rows.csv"
    with pytest.raises(FolderError) as caught:
        read_folder(root, faults_file=path)
    message = str(caught.value).splitlines()
    assert message[0] == f"63 faults in {root}"
    assert len(message) == 1 + 20 + 2
    assert message[2].startswith("  c.csv line 2, image_path: there is no file I/10.png; ")
    assert message[-2:] == ["  and 43 more", f"All of them: {path}"]
    with path.open(newline="") as file:
        written = list(csv.DictReader(file))
    assert list(written[0]) == ["file", "row", "field", "fault", "remedy"]
    assert len(written) == 63
    assert {each["file"] for each in written} == {"c.csv", "y.csv", "z.csv"}


def test_an_old_fault_file_goes_when_there_are_no_faults(root, tmp_path):
    path = tmp_path / "bad_rows.csv"
    path.write_text("old")
    read_folder(root, faults_file=path)
    assert not path.exists()


def test_tasks_that_are_not_chosen_are_not_looked_at(root):
    write(root, "c", CLS, cls("9", "x"), cls() + ",7")
    folder = read_folder(root, tasks="s,task:d")
    assert [task.id for task in folder.tasks] == ["d", "s"]
    assert set(folder.rows) == {"d", "s"}


def test_an_unknown_task_or_override_is_said_unless_a_csv_could_not_be_read(root):
    with pytest.raises(ValueError, match="nothing is called 'cc'"):
        read_folder(root, tasks="cc")
    with pytest.raises(ValueError, match=r"data\.groups: the folder has no task 'cc'"):
        read_folder(root, groups={"cc": "x"})
    (root / "csv_files/cc.csv").write_bytes(b"\xff")
    assert "not UTF-8" in faults(root, tasks="cc")[0].fault


def test_groups_and_flips_can_be_overridden(root):
    folder = read_folder(root, groups={"c": "x", "d": "x"}, flip_ok={"d": False}, tasks="group:x")
    assert [(task.id, task.flip_ok) for task in folder.tasks] == [("c", True), ("d", False)]


def test_folders_inside_may_be_links(root, tmp_path):
    (root / "I").rename(tmp_path / "elsewhere")
    (root / "I").symlink_to(tmp_path / "elsewhere")
    assert len(read_folder(root).rows["c"]) == 2


def test_a_folder_without_labels(root):
    write(root, "s", SEG, seg(mask="../M/new.png"))
    write(root, "c", CLS.replace("mask,", ""), "../I/0.png,c,classification,3")
    write(root, "d", DET, det(box=",,,"))
    write(root, "r", REG, reg("0", "", ""))
    folder = read_folder(root, require_labels=False)
    assert [task.type for task in folder.tasks] == [
        "classification",
        "detection",
        "regression",
        "segmentation",
    ]
    assert not any(row.labelled for rows in folder.rows.values() for row in rows)
    assert folder.rows["s"][0].mask_path == "../M/new.png"
    assert folder.rows["r"][0].points == (None, None)


def test_labels_that_need_not_be_given_are_checked_where_they_are(root):
    save(root / "M/0.png", np.eye(30, 40) * 255)
    write(root, "c", CLS, cls("0", "7"), cls("1", ""))
    write(root, "d", DET, det(box="1,2,,"), det("1", box=",,,"))
    write(root, "s", SEG, seg(), seg("1", ""))
    found = {(each.file, each.row) for each in faults(root, require_labels=False)}
    assert found == {("c.csv", 2), ("d.csv", 2), ("s.csv", 2), ("s.csv", 3)}


def test_a_mask_that_need_not_be_there_must_be_whole_if_it_is(root):
    truncate(root / "M/0.png")
    assert "cannot be decoded" in faults(root, require_labels=False)[0].fault


def test_a_line_with_shifted_fields_makes_no_task(root):
    write(root, "c", CLS, cls(), "../I/1.png,1,surplus,c,classification,3")
    folder = read_folder(root, on_bad_row="skip")
    assert [task.id for task in folder.tasks] == ["c", "d", "r", "s"]
    assert len(folder.skipped) == 1


def test_an_error_of_the_program_ends_the_check_at_once(root, monkeypatch):
    for k in range(100):
        save(root / f"I/{k}.png", np.zeros((2, 2)))
    write(root, "c", CLS, *(cls(str(k)) for k in range(100)))
    begun = []

    def broken(path):
        begun.append(path)
        time.sleep(0.01)
        raise RuntimeError("disk")

    monkeypatch.setattr(files, "read_image", broken)
    with pytest.raises(RuntimeError, match="disk"):
        read_folder(root, tasks="c")
    assert len(begun) < 100


def test_on_bad_row_takes_two_values(root):
    with pytest.raises(ValueError, match=r"data\.on_bad_row: 'ignore'"):
        read_folder(root, on_bad_row="ignore")


@pytest.fixture
def decoded(monkeypatch):
    """The names of the images that were decoded."""
    names = []

    def read_image(path, original=files.read_image):
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(files, "read_image", read_image)
    return names


def test_a_file_is_decoded_once_for_all_tasks_and_not_again_at_the_next_start(
    root, tmp_path, decoded
):
    first = read_folder(root, cache_dir=tmp_path / "cache")
    assert sorted(decoded) == ["0.png", "1.png"]
    assert read_folder(root, cache_dir=tmp_path / "cache") == first
    assert len(decoded) == 2


def test_the_cache_does_not_hide_a_changed_file(root, tmp_path, decoded):
    path = root / "I/0.png"
    image = Image.open(path)
    image.save(path, format="BMP")  # uncompressed, so that another content has the same size
    before = read_folder(root, cache_dir=tmp_path)
    status = path.stat()
    image.rotate(180).save(path, format="BMP")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    del decoded[:]
    after = read_folder(root, cache_dir=tmp_path)
    assert decoded == ["0.png"]
    assert after.rows["c"][0].content != before.rows["c"][0].content
    assert after.rows["c"][1] == before.rows["c"][1]


def test_the_cache_does_not_hide_a_missing_file(root, tmp_path):
    read_folder(root, cache_dir=tmp_path)
    (root / "M/1.png").unlink()
    assert "no file M/1.png" in faults(root, cache_dir=tmp_path)[0].fault


def test_what_was_checked_before_a_fault_is_remembered(root, tmp_path, decoded):
    (root / "M/0.png").write_bytes(b"")
    faults(root, cache_dir=tmp_path)
    faults(root, cache_dir=tmp_path)
    assert len(decoded) == 2


@pytest.mark.parametrize("damage", ["", "{", "[[1]]", "3", '[["image","I/0.png",1,2,3,4,5,6,7]]'])
def test_a_damaged_cache_is_rebuilt(root, tmp_path, damage, decoded):
    expected = read_folder(root, cache_dir=tmp_path)
    (path,) = tmp_path.glob("*.json")
    path.write_text(damage)
    assert read_folder(root, cache_dir=tmp_path) == expected
    assert len(json.loads(path.read_text())) == 4
    read_folder(root, cache_dir=tmp_path)
    assert len(decoded) == 4


def test_folders_share_a_cache_directory_without_mixing(root, tmp_path):
    other = tmp_path / "other"
    root.rename(other)
    (tmp_path / "cache").mkdir()
    read_folder(other, cache_dir=tmp_path / "cache")
    other.rename(root)
    read_folder(root, cache_dir=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.skipif(not MINI.is_dir(), reason="fm_uia_mini is not beside this checkout")
def test_fm_uia_mini_has_no_faults():
    folder = read_folder(MINI)
    assert len(folder.tasks) == 9
    assert sum(map(len, folder.rows.values())) == 985
    assert all(row.labelled for rows in folder.rows.values() for row in rows)
