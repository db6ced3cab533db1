import math

import pytest

from usfm.errors import UserError
from usfm.evaluation.selection import comparable, scored_tasks, value_of
from usfm.tasks import Task

TASKS = (
    Task("a", "segmentation", num_classes=2),
    Task("b", "segmentation", num_classes=2),
    Task("c", "regression", num_points=2),
)


def test_a_metric_is_of_the_tasks_that_have_it_or_of_the_one_named():
    assert scored_tasks("dsc", TASKS) == ["a", "b"]
    assert scored_tasks("b/hd", TASKS) == ["b"]
    for wrong in ("iou", "c/dsc", "nobody/dsc"):
        with pytest.raises(UserError, match=r"is of no task of the run: a has dsc, hd.*c has mre"):
            scored_tasks(wrong, TASKS)


def test_its_value_is_their_mean_and_undefined_where_one_is():
    scores = {"a": {"dsc": 0.5, "hd": 3.0}, "b": {"dsc": 0.75, "hd": None}}
    assert value_of("dsc", scores) == 0.625
    assert math.isnan(value_of("hd", scores))


def test_what_is_compared_is_higher_where_better():
    assert comparable("dsc", 0.5) > comparable("a/dsc", 0.4)
    assert comparable("c/mre", 3.0) > comparable("mre", 4.0)
