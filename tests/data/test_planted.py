"""The planted phantoms: an FM_UIA folder of 27 tasks, and the truth of what is related in it."""

import dataclasses
import json
import math
import pathlib

import numpy as np
import pytest

from usfm.data.folder import read_folder
from usfm.data.phantoms import scene, write_folder, write_planted
from usfm.data.phantoms.anatomy import ASPECTS, DEPTHS, SIDES, Anatomy
from usfm.data.phantoms.planted import GROUPS, IMAGES, LEAST, SHARED, deal, planted
from usfm.data.splits import gaps, make_splits
from usfm.errors import UserError
from usfm.tasks.fm_uia import TASKS

ASKING = ("breast_2cls", "fetal_head_pos_cls", "organ_cls")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The smallest folder of all tasks."""
    root = tmp_path_factory.mktemp("planted") / "folder"
    write_planted(root, rows=LEAST, seed=2)
    return root


@pytest.fixture(scope="module")
def folder(root):
    return read_folder(root)


@pytest.fixture(scope="module")
def phantoms():
    return planted(deal(seed=2))


def contents(root: pathlib.Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


# ---- The folder ----


def test_all_tasks_are_read_without_fault(folder):
    assert {task.id: task for task in folder.tasks} == TASKS
    assert not folder.skipped
    for task in folder.tasks:
        rows = folder.rows[task.id]
        assert len(rows) == LEAST
        assert all(row.labelled and max(row.height, row.width) <= 96 for row in rows)
        if task.type == "classification":
            assert {row.label for row in rows} == set(range(task.num_classes))


def test_every_class_of_a_mask_is_in_every_image(folder, phantoms):
    for task in folder.tasks:
        if task.type == "segmentation":
            made, _ = phantoms[task.id].draw(2, 5)
            classes = np.unique(scene.class_mask(made))
            assert classes.tolist() == list(range(task.num_classes))


def test_numbers_of_images_are_those_of_fm_uia(phantoms):
    counts = {id: phantom.count(200) for id, phantom in phantoms.items()}
    assert counts["fetal_plane_cls"] == 200
    assert counts["head_symphysis_multi"] == round(200 * 3060 / 7440)
    assert counts["fetal_heart"] == LEAST
    assert counts.keys() == TASKS.keys() == IMAGES.keys()


def test_files_are_called_and_shared_as_in_fm_uia(folder):
    def images(id):
        return [row.image_path for row in folder.rows[id]]

    assert images("breast_lesion")[7] == "../Segmentation/Two/breast_lesion/IMAGES/0007.bmp"
    assert images("breast_3cls") == images("breast_2cls") == images("breast_lesion")
    assert images("lung_2cls") == images("lung")
    places = "../Classification/fetal_plane_cls", "../Classification/fetal_head_pos_cls"
    assert images("fetal_plane_cls")[4] == f"{places[0]}/Patient00002_Plane2_1_of_1.png"
    assert images("fetal_head_pos_cls")[4] == f"{places[1]}/241000000002.zhc_50.jpg"
    seen = {row.content for id in TASKS if id not in SHARED for row in folder.rows[id]}
    assert len(seen) == LEAST * (len(TASKS) - len(SHARED))


def test_patients_and_videos_are_groups_and_no_task_lacks_a_part(folder):
    splits = make_splits(folder)
    for id, size in {"fetal_plane_cls": 3, "fetal_sacral_pos_cls": 3, "cervix": 1}.items():
        groups = [splits.group(row) for row in folder.rows[id]]
        assert len(set(groups)) == LEAST // size
        assert all(groups[k] == groups[k - k % size] for k in range(LEAST))
    for row, other in zip(folder.rows["lung"], folder.rows["lung_2cls"], strict=True):
        assert splits.group(row) == splits.group(other)
    assert not gaps(splits, folder)


def test_the_truth_lies_beside_the_data(root):
    truth = json.loads((root / "planted.json").read_text())
    dealt = deal(seed=2)
    assert truth["groups"] == dealt.groups
    assert truth["conflicts"] == [list(pair) for pair in dealt.conflicts]
    assert (truth["relatedness"], truth["difficulty"], truth["seed"]) == (1.0, 0.3, 2)


def test_equal_arguments_give_equal_bytes_and_others_are_refused(root, tmp_path):
    some = ("FUGC", "breast_2cls", "fetal_head_pos_cls")
    write_folder(tmp_path, tasks=some, rows=LEAST, seed=2, phantoms=planted(deal(seed=2)))
    whole, part = contents(root), contents(tmp_path)
    del part["phantoms.json"]
    assert len(part) == len(some) * (LEAST + 1)
    assert part.items() <= whole.items()
    write_planted(root, rows=LEAST, seed=2)
    assert contents(root) == whole
    with pytest.raises(FileExistsError, match=r'"relatedness": 1\.0.*not.*"relatedness": 0\.5'):
        write_planted(root, rows=LEAST, seed=2, relatedness=0.5)


# ---- The truth ----


def test_groups_are_dealt_by_the_seed_and_not_by_organ():
    one, other = deal(seed=0), deal(seed=1)
    assert one == deal(seed=0)
    assert one.groups != other.groups
    for dealt in (one, other):
        members = [list(dealt.groups.values()).count(k) for k in range(GROUPS + 2)]
        assert sum(members) == len(TASKS)
        assert min(members[:GROUPS]) >= 3
        assert members[GROUPS:] == [1, 1]
        assert all(dealt.groups[id] == dealt.groups[owner] for id, owner in SHARED.items())
        clinical = {TASKS[id].group for id, group in dealt.groups.items() if group == 0}
        assert len(clinical) > 1


@pytest.mark.parametrize("seed", range(5))
def test_tasks_of_one_group_share_an_anatomy_and_others_do_not(seed):
    dealt = deal(seed=seed)
    anatomies = {id: dealt.anatomy(id) for id in TASKS}
    rivals = dealt.contradicted
    for id, group in dealt.groups.items():
        for other, another in dealt.groups.items():
            alike = rivals.get(id, group) == rivals.get(other, another)
            assert (anatomies[id] == anatomies[other]) == alike
            # Groups are told apart by more than the look of the tissue.
            assert (anatomies[id].forms[0] == anatomies[other].forms[0]) == alike


def test_at_relatedness_0_nothing_is_shared():
    dealt = deal(relatedness=0.0, seed=3)
    assert dealt.groups == deal(seed=3).groups
    assert not dealt.conflicts
    phantoms = planted(dealt)
    assert not any(phantom.reversed for phantom in phantoms.values())
    assert len({phantom.image(0) for phantom in phantoms.values()}) == len(TASKS)
    for field in dataclasses.fields(Anatomy):
        traits = [getattr(phantom.anatomy, field.name) for phantom in phantoms.values()]
        distinct = {str(trait) for trait in traits}
        # That there are no sheets is a trait that many can have.
        assert len(distinct) > (15 if field.name == "sheets" else 26)


def test_relatedness_is_the_share_of_traits_that_a_group_shares():
    dealt, whole = deal(relatedness=0.5, seed=0), deal(seed=0)
    names = [field.name for field in dataclasses.fields(Anatomy)]
    shared = [
        getattr(dealt.anatomy(id), name) == getattr(whole.anatomy(id), name)
        for id in TASKS
        for name in names
    ]
    assert 0.35 < np.mean(shared) < 0.65


@pytest.mark.parametrize("seed", range(5))
def test_conflicts_are_the_same_images_with_their_answers_upside_down(seed):
    dealt = deal(seed=seed)
    phantoms = planted(dealt)
    assert len({rival for _, rival in dealt.conflicts}) == 2
    for id, rival in dealt.conflicts:
        assert dealt.groups[id] != dealt.groups[rival]
        one, other = phantoms[id], phantoms[rival]
        assert TASKS[id].type == TASKS[rival].type
        assert one.anatomy == other.anatomy
        # The same images, were they drawn from the same numbers.
        upside, rng = dataclasses.replace(other, owner=one.owner).draw(seed, 0)
        upright, same = one.draw(seed, 0)
        np.testing.assert_array_equal(scene.image(upside, rng), scene.image(upright, same))
        mask = scene.class_mask(upright)
        np.testing.assert_array_equal(scene.class_mask(upside), mask[::-1])
        assert not (mask & mask[::-1]).any()
        for (x, y), (u, v) in zip(scene.landmarks(upright), scene.landmarks(upside), strict=False):
            assert (u, v) == (x, mask.shape[0] - y)


# ---- The labels ----


@pytest.mark.parametrize("id", ASKING)
def test_the_label_tells_the_target(phantoms, id):
    """Place and size of the mask, and the looks of the image, agree with the classes."""
    phantom, looks, labels = phantoms[id], [], []
    for number in range(math.prod(ASPECTS.values())):
        made, rng = phantom.draw(2, number)
        image, mask = scene.image(made, rng), scene.class_mask(made)
        (rows, columns), (height, width) = np.nonzero(mask), mask.shape
        apart = np.abs(image[mask > 0] - np.median(image[(mask == 0) & (image > 0)])).mean()
        looks.append((columns.mean() > width / 2, rows.mean() > height / 2, apart, mask.sum()))
        labels.append(made.label)
    level = dict(zip(ASPECTS, np.array(looks, int).T, strict=True))
    level["strength"] = level["strength"] > np.median(level["strength"])
    # All combinations are there, so a third each of the targets are small, middling and large.
    level["size"] = level["size"].argsort().argsort() // (len(labels) // ASPECTS["size"])
    sizes = [ASPECTS[aspect] for aspect in phantom.aspects]
    assert math.prod(sizes) == phantom.task.num_classes
    seen = np.ravel_multi_index([level[aspect] for aspect in phantom.aspects], sizes)
    # Speckle and sheets move one or two targets past the thresholds of so plain a reading.
    assert np.mean(seen == labels) > 0.9


def test_the_side_is_asked_only_where_images_are_not_mirrored():
    for seed in range(8):
        for phantom in planted(deal(seed=seed)).values():
            assert not (phantom.task.flip_ok and "side" in phantom.aspects)


def test_points_are_the_ends_of_the_target_and_the_middle_of_a_companion(phantoms):
    for id in (id for id, task in TASKS.items() if task.type == "regression"):
        phantom = dataclasses.replace(phantoms[id], reversed=False)
        for number in range(12):
            made, _ = phantom.draw(2, number)
            mask = scene.class_mask(made)
            left, right = np.array(scene.landmarks(made)[:2])
            assert left[0] < right[0]
            step = (right - left) / np.linalg.norm(right - left)
            for point, inwards in ((left, step), (right, -step)):
                column, row = (point + 1.5 * inwards).astype(int)
                assert mask[row, column] == 1
                column, row = (point - 1.5 * inwards).astype(int)
                assert mask[row, column] == 0
            for x, z in made.points[2:]:
                assert min(abs(x - side) for side in SIDES) < 1.3
                assert min(abs(z - depth) for depth in DEPTHS) < 1.1


def test_difficulty_takes_the_contrast_away(phantoms):
    id = next(id for id in TASKS if not phantoms[id].anatomy.forms[0].core)

    def contrast(difficulty):
        phantom = dataclasses.replace(phantoms[id], difficulty=difficulty)
        apart = []
        for number in range(8):
            made, rng = phantom.draw(2, number)
            image, mask = scene.image(made, rng).astype(float), scene.class_mask(made)
            around = image[(mask == 0) & (image > 0)]
            apart.append(abs(image[mask == 1].mean() - np.median(around)))
        return np.mean(apart)

    easy, default, hard = contrast(0.0), contrast(0.3), contrast(1.0)
    assert easy > default > 30 > hard > 5


@pytest.mark.parametrize(
    ("knobs", "fault"),
    [
        ({"rows": 35}, "rows must be 36 or more, not 35"),
        ({"seed": -1}, "seed 0 or more, not 1 and -1"),
        ({"relatedness": -0.1}, "relatedness must be from 0 to 1"),
        ({"difficulty": 1.1}, "difficulty must be from 0 to 1, not 1.1"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, knobs, fault):
    with pytest.raises(UserError, match=fault):
        write_planted(tmp_path / "f", **knobs)
    assert not list(tmp_path.iterdir())
