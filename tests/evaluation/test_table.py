import pytest

from usfm.evaluation.table import notes, number, table_lines, text_table

REPORT = {
    "tasks": {
        "lesion": {"dsc": 0.8, "hd": 12.34, "n": 24, "undefined": {}},
        "femur": {"mre": 30.0, "n": 3, "undefined": {}},
        "plane": {
            **dict.fromkeys(("accuracy", "f1_macro", "f1_weighted", "mcc"), 0.5),
            "auc": None,
            "n": 28,
            "undefined": {"auc": "class 2 does not occur in the truth"},
        },
    },
    "trivial": {
        "lesion": {"dsc": 0.3, "hd": 99.0, "n": 24, "undefined": {}},
        "femur": {"mre": 25.6, "n": 3, "undefined": {}},
    },
    "missing": [],
    "parts": {"val": 55},
    "skipped_rows": 0,
}
BEFORE = {"tasks": {"lesion": {"dsc": 0.1, "hd": 5.0}, "femur": {"mre": 300.0}}}


def line_of(text, task_id):
    return next(line.split() for line in text.splitlines() if line.startswith(task_id))


def test_the_better_value_is_starred_whichever_way_is_better():
    text = text_table(REPORT)
    assert line_of(text, "lesion") == ["lesion", "segmentation", "24", "dsc", "0.800*", "0.300"]
    assert line_of(text, "femur") == ["femur", "regression", "3", "mre", "px", "30.0", "25.6*"]


def test_before_is_a_column_of_its_own():
    text = text_table(REPORT, BEFORE)
    assert line_of(text, "task")[-3:] == ["before", "model", "trivial"]
    assert line_of(text, "lesion")[-3:] == ["0.100", "0.800*", "0.300"]


def test_undefined_value_is_a_dash_and_its_reason_a_note():
    text = text_table(REPORT)
    assert line_of(text, "plane")[-2:] == ["–", "–"]
    assert "plane: auc is undefined: class 2 does not occur in the truth" in text


def test_lines_of_the_table_are_equally_wide():
    head, rule, *lines = text_table(REPORT, BEFORE).splitlines()[:5]
    assert {len(line) for line in lines} == {len(head)} == {len(rule)}


def test_all_metrics_of_a_task_have_lines_with_the_primary_first():
    metrics = [(line.task_id, line.metric) for line in table_lines(REPORT)]
    first = [("lesion", "dsc"), ("lesion", "hd"), ("lesion", "hd95"), ("lesion", "nsd")]
    assert metrics[:7] == [*first, ("femur", "mre"), ("femur", "pck"), ("plane", "auc")]
    assert len(metrics) == 4 + 2 + 8


def test_only_what_is_in_pixels_has_one_decimal():
    assert (number("hd95", 12.34), number("ece", 0.1234)) == ("12.3", "0.123")


@pytest.mark.parametrize(
    ("values", "best"), [((5.0, 9.0), {"model"}), ((5.0, 5.0), {"model", "trivial"})]
)
def test_lower_hd_is_better_and_equals_share(values, best):
    model, floor = ({"a": {"dsc": 0.5, "hd": v, "n": 1, "undefined": {}}} for v in values)
    report = REPORT | {"tasks": model, "trivial": floor}
    assert table_lines(report)[1].best == best


def test_missing_and_skipped_rows_are_noted():
    missing = [{"task_id": "lesion", "row_key": f"{i}.png"} for i in range(7)]
    said = notes(REPORT | {"missing": missing, "skipped_rows": 2})
    assert said[1].startswith("7 rows have no prediction: lesion 0.png, lesion 1.png")
    assert said[1].endswith("and 2 more")
    assert said[2] == "2 faulty rows of the folder were skipped"
