"""The phantoms: their physics, the exactness of their labels, and the folder they make."""

import csv
import dataclasses
import json

import cv2
import numpy as np
import pytest

from usfm.data.folder import read_folder
from usfm.data.phantoms import RELATED, TASKS, bmode, related, scene, shapes, write_folder
from usfm.data.phantoms.catalogue import PHANTOMS

LINEAR = bmode.Probe(200, 256, 40.0, 8.0)
FAN = bmode.Probe(180, 260, 120.0, 3.5, half_angle=0.6, radius=50.0, cycles=2.5)
TISSUE = scene.Medium(0.0, texture=0.0)


def drawn(task, number=0):
    """A scene of a task and its image."""
    rng = np.random.default_rng([7, number])
    made = PHANTOMS[task].scene(rng)
    return made, scene.image(made, rng)


@pytest.mark.parametrize("probe", [LINEAR, FAN], ids=["linear", "fan"])
def test_homogeneous_tissue_gives_fully_developed_speckle(probe):
    shape = (probe.samples, probe.beams)
    attenuation = np.full(shape, probe.tgc, np.float32)
    zeros = np.zeros(shape, np.float32)
    quiet = dataclasses.replace(probe, noise=-200.0)
    amplitude = np.concatenate(
        [
            bmode.envelope(quiet, zeros, zeros, attenuation, np.random.default_rng(seed))
            for seed in range(6)
        ],
        axis=1,
    )
    # A Rayleigh distribution has mean / standard deviation = sqrt(pi / (4 - pi)) = 1.91.
    assert amplitude.mean() / amplitude.std() == pytest.approx(1.913, abs=0.06)
    # Neither the widening of the beam nor the attenuation changes the mean power with depth.
    for third in np.array_split(amplitude, 3):
        assert np.mean(third**2) == pytest.approx(1.0, abs=0.15)


def test_the_beam_is_narrowest_at_the_focus():
    speckle = bmode.smear(bmode.white(np.random.default_rng(0), (LINEAR.samples, 128)), LINEAR)

    def likeness(rows):
        near, far = speckle[rows, :-1], speckle[rows, 1:]
        return np.abs(np.mean(near * far.conj()))

    half = LINEAR.samples // 2
    assert likeness(slice(half - 30, half + 30)) < likeness(slice(-60, None)) - 0.05


@pytest.mark.parametrize("probe", [LINEAR, FAN], ids=["linear", "fan"])
def test_beam_coordinates_invert_the_beam_grid(probe):
    sample, beam = bmode.beam_coordinates(probe, *bmode.beam_grid(probe))
    expected = np.meshgrid(np.arange(probe.samples), np.arange(probe.beams), indexing="ij")
    np.testing.assert_allclose(sample, expected[0], atol=0.02)
    np.testing.assert_allclose(beam, expected[1], atol=0.02)


def test_outside_of_the_fan_is_black_and_inside_is_not():
    image = scene.image(scene.Scene(FAN, TISSUE, ()), np.random.default_rng(0))
    x, z = bmode.pixel_grid(FAN)
    distance = np.hypot(x, z + FAN.radius)
    angle = np.abs(np.arctan2(x, z + FAN.radius))
    out = (angle > FAN.half_angle) | (distance < FAN.radius) | (distance > FAN.radius + FAN.depth)
    assert out.mean() > 0.2
    assert image[out].max() == 0
    assert np.mean(image[~out] > 0) > 0.99
    # The fan fills the width of the image or its height.
    assert (~out).any(0).all() or (~out).any(1).all()


def test_shadow_behind_bone_and_enhancement_behind_fluid():
    def column_mean(medium):
        parts = (scene.Part(shapes.blob(0.0, 15.0, 5.0, 3.0), medium),)
        image = scene.image(scene.Scene(LINEAR, TISSUE, parts), np.random.default_rng(0))
        return image[120:, 118:138].mean()

    tissue, bone, fluid = map(column_mean, (TISSUE, scene.BONE, scene.FLUID))
    assert bone < tissue - 60
    assert fluid > tissue + 15


def test_a_specular_interface_shines_only_head_on():
    def brightness(angle):
        line = shapes.half_plane(0.0, 20.0, angle)
        part = scene.Part(line, TISSUE, rim=20.0)
        image = scene.image(scene.Scene(LINEAR, TISSUE, (part,)), np.random.default_rng(0))
        distance = line(*bmode.pixel_grid(LINEAR))
        return image[np.abs(distance) < LINEAR.pixel].mean()

    assert brightness(0.0) > brightness(0.9) + 30


def test_the_mask_is_the_shape_at_the_pixel_centres():
    circle = scene.Part(shapes.blob(3.0, 21.0, 6.0, 6.0), TISSUE, label=1)
    probe = bmode.Probe(200, 256, 40.0, 8.0)
    mask = scene.class_mask(scene.Scene(probe, TISSUE, (circle,)))
    column, row = np.meshgrid(np.arange(256) + 0.5, np.arange(200) + 0.5)
    inside = np.hypot(column - 128 - 15, row - 105) < 30  # 0.2 mm a pixel
    assert np.mean(mask != inside) < 1e-4
    assert scene.tight_box(mask) == (113, 75, 173, 135)


@pytest.mark.parametrize("task", [t for t in TASKS if PHANTOMS[t].task.type == "segmentation"])
def test_every_class_is_seen_and_differs_from_what_surrounds_it(task):
    for number in range(4):
        made, image = drawn(task, number)
        mask = scene.class_mask(made)
        assert np.unique(mask).tolist() == list(range(PHANTOMS[task].task.num_classes))
        for label in range(1, mask.max() + 1):
            inside = (mask == label).astype(np.uint8)
            around = cv2.dilate(inside, np.ones((17, 17))) - inside
            core = cv2.erode(inside, np.ones((7, 7)))
            assert abs(image[core > 0].mean() - image[around > 0].mean()) > 10


@pytest.mark.parametrize("task", [t for t in TASKS if PHANTOMS[t].task.type == "detection"])
def test_what_is_boxed_lies_in_the_image_and_is_dark(task):
    for number in range(4):
        made, image = drawn(task, number)
        left, top, right, bottom = scene.tight_box(scene.class_mask(made))
        width, height = right - left, bottom - top
        assert min(left, top) > 0
        assert right < image.shape[1]
        assert bottom < image.shape[0]
        core = image[
            top + height // 4 : bottom - height // 4, left + width // 4 : right - width // 4
        ]
        assert core.mean() < np.median(image[image > 0])


def test_points_are_the_ends_of_the_bone():
    on, beyond = [], []
    for number in range(8):
        made, image = drawn("fetal_femur", number)
        start, end = map(np.array, scene.landmarks(made))
        assert start[0] < end[0]
        step = (end - start) / np.linalg.norm(end - start)
        for point, inwards in ((start, step), (end, -step)):
            for values, place in ((on, point + inwards), (beyond, point - 8 * inwards)):
                column, row = place.astype(int)
                values.append(image[row - 2 : row + 2, column - 1 : column + 2].max())
    assert np.mean(on) > np.mean(beyond) + 50


def test_both_classes_are_drawn():
    for task in TASKS:
        if PHANTOMS[task].task.type == "classification":
            labels = [PHANTOMS[task].scene(np.random.default_rng(n)).label for n in range(40)]
            assert 10 <= labels.count(1) <= 30
            assert set(labels) == {0, 1}


def contents(root):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_an_image_depends_on_seed_scene_and_number_alone(tmp_path):
    write_folder(tmp_path / "short", tasks=["carotid_artery"], rows=2)
    write_folder(tmp_path / "long", tasks=["FUGC", "carotid_artery"], rows=4)
    write_folder(tmp_path / "other", tasks=["carotid_artery"], rows=2, seed=1)
    short, long, other = (contents(tmp_path / name) for name in ("short", "long", "other"))
    table = "csv_files/carotid_artery.csv"
    assert long[table].startswith(short[table])
    pictures = [name for name in short if name.endswith(".png")]
    assert len(pictures) == 4
    for name in pictures:
        assert short[name] == long[name]
        assert short[name] != other[name]


def test_tasks_of_one_scene_have_the_same_images(tmp_path):
    write_folder(tmp_path / "a", tasks=["breast_2cls", "breast_lesion"], rows=2)
    made = contents(tmp_path / "a")
    for name in ("0000.png", "0001.png"):
        one = made[f"Classification/breast_2cls/{name}"]
        assert one == made[f"Segmentation/Two/breast_lesion/IMAGES/{name}"]


def test_the_folder_is_read_without_a_fault(tmp_path):
    write_folder(tmp_path / "all", rows=3)
    folder = read_folder(tmp_path / "all")
    assert [task.id for task in folder.tasks] == list(TASKS)
    assert not folder.skipped
    for task in folder.tasks:
        known = PHANTOMS[task.id].task
        assert (task.type, task.size) == (known.type, known.size)
        assert len(folder.rows[task.id]) == 3
        assert all(row.labelled for row in folder.rows[task.id])
    sizes = {(row.height, row.width) for rows in folder.rows.values() for row in rows}
    assert len(sizes) >= 5
    assert all(180 <= side <= 320 for size in sizes for side in size)


def test_the_layout_is_that_of_fm_uia(tmp_path):
    tasks = ["FUGC", "breast_2cls", "cardiac_multi", "thyroid_nodule_det"]
    write_folder(tmp_path / "f", tasks=tasks, rows=1)
    rows = {}
    for task in tasks:
        with (tmp_path / "f" / "csv_files" / f"{task}.csv").open() as file:
            rows[task] = next(csv.DictReader(file))
    assert rows["cardiac_multi"] == {
        "image_path": "../Segmentation/Four/cardiac_multi/IMAGES/0000.png",
        "mask_path": "../Segmentation/Four/cardiac_multi/MASKS/0000.png",
        "task_id": "cardiac_multi",
        "task_name": "segmentation",
        "num_classes": "4",
    }
    assert rows["breast_2cls"]["mask"] in ("0", "1")
    assert rows["FUGC"]["task_name"] == "Regression"
    assert rows["FUGC"]["num_classes"] == "2"
    assert len(json.loads(rows["FUGC"]["point_2_xy"])) == 2
    assert int(rows["thyroid_nodule_det"]["x_min"]) < int(rows["thyroid_nodule_det"]["x_max"])


def test_a_folder_of_the_same_arguments_is_left_alone(tmp_path):
    arguments = {"tasks": ["FUGC"], "rows": 1}
    write_folder(tmp_path / "f", **arguments)
    mark = tmp_path / "f" / "Regression" / "FUGC" / "0000.png"
    mark.write_bytes(b"changed")
    write_folder(tmp_path / "f", **arguments)
    assert mark.read_bytes() == b"changed"
    with pytest.raises(FileExistsError, match=r'"rows": 1.*not from.*"rows": 2.*another folder'):
        write_folder(tmp_path / "f", tasks=["FUGC"], rows=2)


def test_what_is_not_a_phantom_folder_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not made by write_folder"):
        write_folder(tmp_path, tasks=["FUGC"], rows=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_failed_run_leaves_nothing(tmp_path, monkeypatch):
    def fail(drawn):
        raise RuntimeError("disk full")

    monkeypatch.setattr(scene, "class_mask", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        write_folder(tmp_path / "f", tasks=["carotid_artery"], rows=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"tasks": ["breast"]}, "no phantom task 'breast': choose from FUGC, breast_2cls"),
        ({"tasks": []}, "no task given"),
        ({"rows": 0}, "rows must be 1 or more"),
        ({"seed": -1}, "seed 0 or more"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, arguments, fault):
    with pytest.raises(ValueError, match=fault):
        write_folder(tmp_path / "f", **arguments)


# ---- Tasks of known relatedness ----


def drawn_related(task: str, count: int):
    for number in range(count):
        rng = np.random.default_rng(number)
        made = RELATED[task].scene(rng)
        yield made, scene.class_mask(made), scene.image(made, rng)


@pytest.mark.parametrize("task", related.CONTRADICTING)
def test_a_point_and_its_mirror_image_are_told_from_the_lesion(task):
    for made, mask, _ in drawn_related(task, 10):
        ((x, y),) = scene.landmarks(made)
        y = mask.shape[0] - y if task == "lesion_upside" else y
        assert mask[int(y), int(x)] == 1


@pytest.mark.parametrize("task", related.AGREEING)
def test_the_brighter_lesion_looks_so(task):
    labels, looks = [], []
    for made, mask, image in drawn_related(task, 30):
        labels.append(made.label)
        looks.append(image[mask == 1].mean() > image[mask == 0].mean())
    assert 8 < sum(labels) < 22
    assert np.mean(np.array(labels) == looks) > 0.9


def test_the_folder_of_related_tasks_is_read_without_fault(tmp_path):
    write_folder(tmp_path / "f", rows=6, phantoms=RELATED)
    folder = read_folder(tmp_path / "f")
    for task in folder.tasks:
        known = RELATED[task.id].task
        assert (task.type, task.size) == (known.type, known.size)
    rows = {task: len(rows) for task, rows in folder.rows.items()}
    assert rows == {"lesion_echo": 6, "lesion_echo_again": 2, "lesion_point": 6, "lesion_upside": 2}
    contents = [row.content for rows in folder.rows.values() for row in rows]
    assert len(set(contents)) == len(contents)
