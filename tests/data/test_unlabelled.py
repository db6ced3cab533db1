import numpy as np
import pytest
from PIL import Image

from usfm.data.folder import FolderError
from usfm.data.image import read_image
from usfm.data.unlabelled import folder_of_images
from usfm.evaluation.prediction import Answer, content
from usfm.evaluation.submission import read_submission, write_submission
from usfm.tasks import Task

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

TASKS = (Task("seg", "segmentation", num_classes=2), Task("pts", "regression", num_points=2))
CLIP = np.random.default_rng(0).integers(0, 256, (11, 20, 30), np.uint8)


@pytest.fixture
def root(tmp_path, save_dicom):
    """Images, a clip and what is none, at several depths."""
    root = tmp_path / "root"
    (root / "b/deep").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for name in ("z.png", "b/1.jpg", ".hidden/1.png", ".DS_Store.png"):
        Image.fromarray(CLIP[0]).save(root / name)
    save_dicom(root / "b/deep/IM_0001", CLIP, NumberOfFrames=11)
    save_dicom(root / "b/still", CLIP[1])
    (root / "README.txt").write_text("what this is")
    (root / "b/cut.png").write_bytes((root / "z.png").read_bytes()[:90])
    return root


def test_every_image_and_frame_is_a_row_of_every_task(root):
    folder = folder_of_images(root, TASKS)
    frames = [f"b/deep/IM_0001#{number}" for number in range(1, 12)]
    expected = ["b/1.jpg", *frames, "b/still", "z.png"]
    assert [task.id for task in folder.tasks] == list(folder.rows) == ["pts", "seg"]
    for task in TASKS:
        rows = folder.rows[task.id]
        assert [row.image_path for row in rows] == [f"../{name}" for name in expected]
        assert [row.index for row in rows] == list(range(len(rows)))
        assert len({row.key for row in rows}) == len(rows)
        assert not any(row.labelled for row in rows)
        assert all((row.height, row.width) == (20, 30) for row in rows)
    for row, pixels in zip(folder.rows["pts"][1:12], CLIP, strict=True):
        np.testing.assert_array_equal(read_image(folder.image_file(row)), pixels)


def test_what_is_left_out_is_said_with_the_reason(root):
    (root / "lost.png").symlink_to(root / "gone.png")
    (root / "empty").write_bytes(b"")
    said = {fault.file: str(fault) for fault in folder_of_images(root, TASKS).skipped}
    assert list(said) == ["README.txt", "b/cut.png", "empty", "lost.png"]
    assert said["README.txt"].startswith("README.txt: is not an image")
    assert "cannot be decoded" in said["b/cut.png"]
    assert "0 bytes" in said["empty"]
    assert "leads to no file" in said["lost.png"]


def test_links_are_followed_and_lead_to_no_loop(root, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    Image.fromarray(CLIP[0]).save(tmp_path / "elsewhere/1.png")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "b/up").symlink_to(root)
    paths = [row.image_path for row in folder_of_images(root, TASKS).rows["seg"]]
    assert "../c/1.png" in paths
    assert len(paths) == 15


def test_a_folder_without_images_is_refused(tmp_path):
    for root, fault in ((tmp_path, "holds no image"), (tmp_path / "gone", "is no folder")):
        with pytest.raises(FolderError, match=fault):
            folder_of_images(root, TASKS)


def test_answers_are_written_one_file_an_image_and_read_back(root, tmp_path):
    (root / "z").write_bytes((root / "z.png").read_bytes())
    two = (*TASKS, Task("other", "segmentation", num_classes=2))
    folder = folder_of_images(root, two)
    answers = {
        (row.task_id, row.key): Answer(mask=np.full((20, 30), number % 2, np.uint8))
        if row.task_id != "pts"
        else Answer(points=np.full((2, 2), number / 99, np.float32))
        for rows in folder.rows.values()
        for number, row in enumerate(rows)
    }
    rows = [row for of_task in folder.rows.values() for row in of_task]
    write_submission(
        ((row, answers[row.task_id, row.key]) for row in rows), folder, tmp_path / "out"
    )
    assert (tmp_path / "out/seg/b/deep/IM_0001#3.png").exists()
    back = {
        (row.task_id, row.key): answer
        for row, answer in read_submission(folder, tmp_path / "out", rows)
    }
    assert back.keys() == answers.keys()
    for key, answer in answers.items():
        task = next(task for task in folder.tasks if task.id == key[0])
        # Points are written as numbers of pixels.
        np.testing.assert_allclose(content(task, back[key]), content(task, answer), atol=1e-6)
