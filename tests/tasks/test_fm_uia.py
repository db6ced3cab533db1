from collections import Counter

import pytest

from usfm.tasks import TYPES
from usfm.tasks.fm_uia import TASKS, check_overrides, describe


def test_there_are_27_tasks_of_the_four_types():
    assert Counter(task.type for task in TASKS.values()) == {
        "segmentation": 12,
        "classification": 9,
        "detection": 3,
        "regression": 3,
    }
    assert all(task.size >= 1 and task.organ and task.group for task in TASKS.values())


def test_the_groups_that_the_paper_fixes():
    for group, members in {
        "breast": {"breast_lesion", "breast_2cls", "breast_3cls"},
        "lung": {"lung", "lung_2cls", "lung_disease_3cls"},
    }.items():
        assert {task.id for task in TASKS.values() if task.group == group} == members


def test_what_tells_left_from_right_may_not_be_flipped():
    fixed = {task.id for task in TASKS.values() if not task.flip_ok}
    positions = {"fetal_head_pos_cls", "fetal_sacral_pos_cls"}
    assert fixed == positions | {"IUGC", "FUGC", "fetal_femur"}


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.id)
def test_a_known_task_is_described_as_in_the_table(task):
    assert describe(task.id, task.type, task.size) == task


@pytest.mark.parametrize("type", TYPES)
def test_an_unknown_task_is_typed_by_its_csv_and_alone_in_its_group(type):
    task = describe("spleen", type, 4)
    assert (task.type, task.size, task.organ, task.group) == (type, 4, "", "spleen")
    assert task.flip_ok == (type != "regression")


def test_the_csv_decides_type_and_size_even_of_a_known_task():
    task = describe("fetal_head_pos_cls", "segmentation", 5)
    assert (task.type, task.num_classes, task.organ) == ("segmentation", 5, "fetal head")
    assert task.flip_ok


def test_config_overrides_group_and_flip():
    task = describe("IUGC", "regression", 3, {"IUGC": "labour"}, {"IUGC": True})
    assert (task.group, task.flip_ok) == ("labour", True)


def test_an_override_of_a_task_that_is_not_there_suggests_the_right_one():
    check_overrides("data.groups", {"breast_lesion": "x"}, TASKS)
    with pytest.raises(ValueError, match=r"data\.groups.*'brest_lesion'; did you mean 'breast_le"):
        check_overrides("data.groups", {"brest_lesion": "x"}, TASKS)
