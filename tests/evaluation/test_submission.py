import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from usfm.evaluation.evaluate import evaluate
from usfm.evaluation.metrics import METRICS
from usfm.evaluation.prediction import Answer, content
from usfm.evaluation.submission import mask_file, read_submission, write_submission


def score(answers, folder):
    same = {"part_of": lambda row: "val", "group_of": lambda row: row.key}
    return evaluate(answers, folder, folder.rows, trivial={}, **same).report


def load(path):
    return json.loads(path.read_text())


def test_written_submission_scores_the_same(folder, guesses, tmp_path):
    write_submission(guesses, folder, tmp_path / "out")
    rows = [row for of_task in folder.rows.values() for row in of_task]
    read = score(read_submission(folder, tmp_path / "out", rows), folder)
    written = score(guesses, folder)
    assert read["missing"] == []
    for task in folder.tasks:
        found, expected = read["tasks"][task.id], written["tasks"][task.id]
        assert found["undefined"] == expected["undefined"]
        for metric in METRICS[task.type]:
            if metric in found["undefined"]:
                continue  # these answers carry no confidence
            assert found[metric] == pytest.approx(expected[metric], rel=1e-6)


def test_form_is_the_official_one(folder, guesses, tmp_path):
    out = tmp_path / "out"
    write_submission(reversed(guesses), folder, out)
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == {
        "classification_predictions.json",
        "detection_predictions.json",
        "regression_predictions.json",
        *(f"Segmentation/MASKS/{i}.png" for i in range(6)),
    }
    row, answer = next(pair for pair in guesses if pair[0].task_id == "classes")
    assert load(out / "classification_predictions.json")[0] == {
        "image_path": "../Images/classes/0.png",
        "task_id": "classes",
        "predicted_class": int(answer.probs.argmax()),
        "predicted_probs": [float(p) for p in answer.probs],
    }
    row, answer = next(pair for pair in guesses if pair[0].task_id == "where")
    x, y, x2, y2 = (float(v) for v in answer.box)
    assert load(out / "detection_predictions.json")[0] == {
        "image_path": "../Images/where/0.png",
        "task_id": "where",
        "bbox_normalized": [x, y, x2, y2],
        "bbox_pixels": [x * row.width, y * row.height, x2 * row.width, y2 * row.height],
    }
    row, answer = next(pair for pair in guesses if pair[0].task_id == "spots")
    flat = [float(v) for v in answer.points.ravel()]
    assert load(out / "regression_predictions.json")[0] == {
        "image_path": "../Images/spots/0.png",
        "task_id": "spots",
        "predicted_points_normalized": flat,
        "predicted_points_pixels": [
            v * (row.height if i % 2 else row.width) for i, v in enumerate(flat)
        ],
    }


def test_masks_are_png_of_class_ids_at_original_size(folder, guesses, tmp_path):
    write_submission(guesses, folder, tmp_path / "out")
    row, answer = next(pair for pair in guesses if pair[0].task_id == "mask")
    with Image.open(tmp_path / "out/Segmentation/MASKS/0.png") as image:
        assert (image.format, image.mode) == ("PNG", "L")
        np.testing.assert_array_equal(np.asarray(image), answer.mask)
        assert image.size == (row.width, row.height)


def test_types_that_the_folder_lacks_get_no_file(folder, guesses, tmp_path):
    part = dataclasses.replace(folder, tasks=folder.tasks[:1])
    write_submission([p for p in guesses if p[0].task_id == "classes"], part, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["classification_predictions.json"]


def test_rows_without_labels_are_answered(folder, guesses, tmp_path):
    blank = {"label": None, "box": None, "points": (), "mask_path": "", "mask_content": ""}
    answers = [
        (
            dataclasses.replace(
                row, **blank, image_path=f"../Segmentation/X/IMAGES/{row.index}.bmp"
            ),
            answer,
        )
        for row, answer in guesses
    ]
    write_submission(answers, folder, tmp_path / "out")
    assert len(load(tmp_path / "out/detection_predictions.json")) == 6
    assert (tmp_path / "out/Segmentation/X/MASKS/5.png").exists()


@pytest.mark.parametrize(
    ("mask_path", "expected"),
    [
        ("../Segmentation/Two/X/MASKS/1.png", "Segmentation/Two/X/MASKS/1.png"),
        ("../../a/1.png", "a/1.png"),
        (".././a//1.png", "a/1.png"),
        ("a/1.png", "a/1.png"),
    ],
)
def test_leading_steps_up_are_dropped(folder, mask_path, expected):
    row = dataclasses.replace(folder.rows["mask"][0], mask_path=mask_path)
    assert str(mask_file(row)) == expected


@pytest.mark.parametrize("mask_path", ["../a/../../b.png", "a/../b.png", "/tmp/b.png", ".."])
def test_no_mask_is_written_outside_the_output_folder(folder, mask_path):
    row = dataclasses.replace(folder.rows["mask"][0], mask_path=mask_path)
    with pytest.raises(ValueError, match=r"mask.csv line 2: the path .* leads out"):
        mask_file(row)


def test_two_rows_with_one_mask_file_are_an_error(folder, guesses, tmp_path):
    row, answer = next(pair for pair in guesses if pair[0].task_id == "mask")
    other = dataclasses.replace(row, key="other", line=9)
    with pytest.raises(ValueError, match=r"mask.csv line 9: another row has the mask_path"):
        write_submission([(row, answer), (other, answer)], folder, tmp_path)


@pytest.mark.parametrize(
    "mask", [np.zeros((3, 3), np.uint8), np.full((24, 32), 3, np.uint8), np.zeros((24, 32))]
)
def test_mask_of_the_wrong_form_is_refused(folder, tmp_path, mask):
    row = folder.rows["mask"][0]
    with pytest.raises(ValueError, match=r"mask: the mask of .* must be uint8 \(24, 32\)"):
        write_submission([(row, Answer(mask=mask))], folder, tmp_path)


def test_answer_that_is_not_finite_is_refused(folder, tmp_path):
    answer = Answer(box=np.array([0, 0, np.inf, 1], np.float32))
    with pytest.raises(ValueError, match=r"where: the answer to .*where/0.png is not finite"):
        write_submission([(folder.rows["where"][0], answer)], folder, tmp_path)


def test_rows_of_one_image_are_told_apart_by_their_order(folder, guesses, tmp_path):
    first, second = (
        dataclasses.replace(row, image_path="../Images/same.png", key=f"same{row.index}")
        for row in folder.rows["where"][:2]
    )
    boxes = [Answer(box=np.array(b, np.float32)) for b in ([0, 0, 0.5, 1], [0.5, 0, 1, 1])]
    write_submission([(second, boxes[1]), (first, boxes[0])], folder, tmp_path)
    read = read_submission(folder, tmp_path, [first, second])
    task = folder.tasks[3]
    told = [content(task, answer).tolist() for _, answer in read]
    assert told == [[0, 0, 0.5, 1], [0.5, 0, 1, 1]]


def test_rows_that_a_submission_leaves_out_are_not_read(folder, tmp_path):
    write_submission([], folder, tmp_path)
    rows = [row for of_task in folder.rows.values() for row in of_task]
    assert list(read_submission(folder, tmp_path / "none", rows)) == []
    assert list(read_submission(folder, tmp_path, rows[:6])) == []
