import pytest

from usfm.tasks import Task, plans

TASKS = (
    Task("b_seg", "segmentation", 2, group="breast"),
    Task("a_cls", "classification", 3, group="breast"),
    Task("c_det", "detection", 1, group="c_det"),
)


def ids(expression):
    return [task.id for task in plans.select(TASKS, expression)]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("all", ["a_cls", "b_seg", "c_det"]),
        ("group:breast", ["a_cls", "b_seg"]),
        ("task:b_seg", ["b_seg"]),
        ("c_det", ["c_det"]),
        ("c_det, task:a_cls", ["a_cls", "c_det"]),
        ("group:breast,b_seg", ["a_cls", "b_seg"]),
    ],
)
def test_select_is_sorted_and_takes_each_task_once(expression, expected):
    assert ids(expression) == expected


@pytest.mark.parametrize(
    ("expression", "suggestion"),
    [
        ("group:brest", "did you mean 'group:breast'"),
        ("b_sge", "did you mean 'b_seg'"),
        ("a_cls,,b_seg", "nothing is called ''"),
        ("group:c", "nothing is called 'group:c'"),
    ],
)
def test_select_says_what_it_does_not_know(expression, suggestion):
    with pytest.raises(ValueError, match=suggestion):
        plans.select(TASKS, expression)


def test_the_three_plans_of_the_paper():
    assert plans.task_specific(TASKS).parts == {
        "b_seg": ("b_seg",),
        "a_cls": ("a_cls",),
        "c_det": ("c_det",),
    }
    assert plans.clinically_grouped(TASKS).parts == {
        "breast": ("a_cls", "b_seg"),
        "c_det": ("c_det",),
    }
    assert plans.all_task(TASKS).parts == {"all": ("a_cls", "b_seg", "c_det")}


def test_any_partition_is_a_plan():
    plan = plans.partition("mine", TASKS, {"x": ["c_det", "a_cls"], "y": ["b_seg"]})
    assert plan == plans.Plan("mine", {"x": ("a_cls", "c_det"), "y": ("b_seg",)})


def test_what_is_no_partition_is_refused_with_all_reasons():
    with pytest.raises(ValueError, match="plan 'mine'") as caught:
        plans.partition("mine", TASKS, {"x": ["b_seg", "c_dte"], "y": ["b_seg"], "z": []})
    for reason in (
        "part 'z' is empty",
        "no task 'c_dte', did you mean 'c_det'",
        "'a_cls' is in no part",
        "'c_det' is in no part",
        "'b_seg' is given 2 times",
    ):
        assert reason in str(caught.value)
