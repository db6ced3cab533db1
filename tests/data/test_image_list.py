import re

import numpy as np
import pytest
from PIL import Image

from usfm.data.faults import FolderError
from usfm.data.image import read_image
from usfm.data.image_list import images_of_list
from usfm.errors import UserError
from usfm.evaluation.submission import mask_file
from usfm.tasks import Task

SEG, PTS = Task("seg", "segmentation", num_classes=2), Task("pts", "regression", num_points=2)
KNOWN = (PTS, SEG)


@pytest.fixture
def listed(tmp_path):
    """Makes a list of some text beside a few images, and reads it."""
    for k, name in enumerate(("lists/a.png", "lists/deep/b.png", "far/c.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 30), k, np.uint8)).save(tmp_path / name)

    def read(name, text, chosen=KNOWN):
        path = tmp_path / "lists" / name
        path.write_text(text.format(tmp_path=tmp_path))
        return images_of_list(path, KNOWN, chosen)

    return read


def pixels(folder, task_id):
    """The grey value of each image that a task is asked."""
    return [int(read_image(folder.image_file(row)).max()) for row in folder.rows[task_id]]


def test_a_text_file_names_images_of_all_chosen_tasks(listed):
    folder = listed("my.txt", "deep/b.png\n\n../far/c.png\n{tmp_path}/lists/a.png\n")
    assert [task.id for task in folder.tasks] == ["pts", "seg"]
    assert pixels(folder, "seg") == pixels(folder, "pts") == [1, 2, 0]
    masks = [str(mask_file(row)) for row in folder.rows["seg"]]
    assert masks[:2] == ["seg/deep/b.png.png", "seg/far/c.png.png"]
    assert masks[2].startswith("seg/")
    assert masks[2].endswith("lists/a.png.png")
    assert folder.skipped == ()


def test_a_csv_may_say_what_each_image_is_asked(listed):
    text = "task_id,image_path\nseg,a.png\npts,deep/b.png\n,../far/c.png\nseg,deep/b.png\n"
    folder = listed("my.csv", text)
    assert pixels(folder, "seg") == [0, 1, 2]
    assert pixels(folder, "pts") == [1, 2]
    assert [row.index for row in folder.rows["pts"]] == [0, 1]
    only = listed("my.csv", text, chosen=(PTS,))
    assert pixels(only, "pts") == [1, 2]
    assert list(only.rows) == ["pts"]


def test_what_is_not_there_or_named_twice_is_left_out_and_said(listed):
    folder = listed("my.txt", "a.png\ngone.png\n./a.png\nmy.txt\n")
    assert pixels(folder, "seg") == [0]
    twice, gone, none = map(str, folder.skipped)
    assert twice.startswith("my.txt line 3, image_path: a.png is named before, on line 1")
    assert gone.startswith("gone.png: leads to no file")
    assert none.startswith("my.txt: is not an image")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("my.csv", "path\na.png\n", "the column image_path is missing"),
        ("my.csv", "image_path,task_id\na.png,sgm\n", "line 2, task_id: the model has no task"),
        ("my.csv", "image_path,task_id\n,seg\n", "line 2, image_path: is empty"),
        ("my.txt", "a.png\n../a.png\n", "line 2: ../a.png and a.png (line 1) would be answered"),
        ("my.txt", "\n", "names no image"),
        ("my.txt", "gone.png\n", "holds no image"),
    ],
)
def test_a_list_that_cannot_be_followed_is_refused(listed, name, text, told):
    with pytest.raises(UserError, match=re.escape(told)):
        listed(name, text)


def test_an_image_is_no_list(tmp_path):
    Image.fromarray(np.full((20, 30), 255, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png cannot be read as a list of images"):
        images_of_list(tmp_path / "a.png", KNOWN, KNOWN)


def test_a_list_of_nothing_that_can_be_read_says_what_is_wrong_with_each(listed):
    with pytest.raises(FolderError, match=r"2 faults in .*my\.txt\n.*\n  gone\.png: leads to no"):
        listed("my.txt", "gone.png\n")
