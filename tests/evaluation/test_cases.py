import math

from usfm.evaluation.cases import Case, choose
from usfm.tasks import Task

SEG = Task("seg", "segmentation", num_classes=2)
TIPS = Task("tips", "regression", num_points=2)
PLANE = Task("plane", "classification", num_classes=2)


def rows(task_id, metric, values):
    return [(task_id, f"{k}.png", f"{k}", "val", metric, value) for k, value in enumerate(values)]


def keys(cases):
    return {case.name: case.row_key for case in cases}


def test_the_best_the_median_and_the_worst_row_are_chosen_whichever_way_is_better():
    values = [0.5, 0.9, 0.1, 0.7, 0.3]
    chosen = choose([SEG, TIPS], rows("seg", "dsc", values) + rows("tips", "mre", values))
    assert chosen["seg"][0] == Case("best", "1.png", "dsc", 0.9)
    assert keys(chosen["seg"]) == {"best": "1.png", "median": "0.png", "worst": "2.png"}
    assert keys(chosen["tips"]) == {"best": "2.png", "median": "0.png", "worst": "1.png"}


def test_classifications_are_ranked_by_the_probability_of_the_true_class():
    scored = rows("plane", "accuracy", [1, 1, 0]) + rows("plane", "prob_true", [0.6, 0.9, 0.2])
    assert [case.row_key for case in choose([PLANE], scored)["plane"]] == [
        "1.png",
        "0.png",
        "2.png",
    ]


def test_no_row_is_shown_twice_and_one_that_is_not_finite_never():
    assert keys(choose([SEG], rows("seg", "dsc", [0.2]))["seg"]) == {"median": "0.png"}
    two = keys(choose([SEG], rows("seg", "dsc", [0.2, math.nan, 0.4]))["seg"])
    assert two == {"best": "2.png", "worst": "0.png"}
    assert choose([SEG], rows("seg", "dsc", [math.nan])) == {}


def test_equal_rows_are_chosen_alike_whatever_their_order():
    scored = rows("seg", "dsc", [1.0] * 5)
    assert choose([SEG], scored) == choose([SEG], scored[::-1])
