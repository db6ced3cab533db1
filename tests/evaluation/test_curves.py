import json
import xml.etree.ElementTree as ET

import pytest

from usfm.evaluation.curves import HEIGHT, WIDTH, draw_curves, mean_curve, read_losses


def write(path, *lines, torn=""):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + torn, encoding="utf-8")
    return path


def test_losses_are_read_by_task_and_step(tmp_path):
    path = write(
        tmp_path / "metrics.jsonl",
        {"step": 1, "seconds": 0.5, "loss/b": 3.0, "loss/a": 1.0},
        {"step": 2, "seconds": 0.6, "loss/a": 0.5, "lr": 1e-3},
        {"step": 2, "val/a": 9.0},
    )
    assert read_losses(path) == {"a": [(1, 1.0), (2, 0.5)], "b": [(1, 3.0)]}
    assert list(read_losses(path)) == ["a", "b"]


def test_step_logged_again_after_a_resume_counts_once(tmp_path):
    path = write(
        tmp_path / "metrics.jsonl",
        *({"step": s, "loss/a": v} for s, v in [(1, 1.0), (2, 9.0), (3, 9.0), (2, 2.0)]),
    )
    assert read_losses(path) == {"a": [(1, 1.0), (2, 2.0), (3, 9.0)]}


def test_losses_that_are_not_finite_are_left_out(tmp_path):
    losses = [(1, float("nan")), (2, None), (3, float("inf")), (4, 1.0)]
    path = write(tmp_path / "metrics.jsonl", *({"step": s, "loss/a": v} for s, v in losses))
    assert read_losses(path) == {"a": [(4, 1.0)]}


def test_line_cut_short_at_the_end_is_left_out(tmp_path):
    path = write(tmp_path / "m", {"step": 1, "loss/a": 1.0}, torn='{"step": 2, "loss/ä')
    for length in (path.stat().st_size, path.stat().st_size - 1):
        path.write_bytes(path.read_bytes()[:length])
        assert read_losses(path) == {"a": [(1, 1.0)]}


def test_damaged_line_elsewhere_is_an_error(tmp_path):
    path = write(tmp_path / "m", torn='{"step": 1\n{"step": 2}\n')
    with pytest.raises(ValueError, match="m line 1 is not JSON"):
        read_losses(path)


def test_no_file_holds_no_losses(tmp_path):
    assert read_losses(tmp_path / "metrics.jsonl") == {}


def coordinates(svg):
    line = next(element for element in ET.fromstring(svg) if element.tag == "polyline")
    return [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]


def test_curve_falls_with_the_loss_and_stays_inside():
    points = [(step, 3 / step) for step in range(1, 5001)]
    drawn = coordinates(draw_curves([("", points)], 5000, ""))
    assert len(drawn) <= 120
    assert drawn == sorted(drawn)
    assert [y for _, y in drawn] == sorted(y for _, y in drawn)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in drawn)


def test_curve_of_half_a_run_ends_half_way():
    whole, half = (
        coordinates(draw_curves([("", [(0, 1.0), (s, 1.0)])], 100, "")) for s in (100, 50)
    )
    assert half[-1][0] - half[0][0] == pytest.approx((whole[-1][0] - whole[0][0]) / 2, abs=0.1)


@pytest.mark.parametrize("loss", [0.0, 2.5, -1.0])
def test_single_loss_is_a_dot(loss):
    svg = ET.fromstring(draw_curves([("", [(7, loss)])], 7, ""))
    assert [element.get("class") for element in svg if element.tag == "circle"] == ["dot"]


def test_curves_over_each_other_share_their_axes_and_are_told_apart():
    svg = draw_curves([("faint", [(0, 4.0), (10, 2.0)]), ("", [(0, 1.0), (10, 1.0)])], 10, "<a>")
    root = ET.fromstring(svg)
    assert root.get("aria-label") == "<a>"
    assert [e.get("class") for e in root if e.tag == "polyline"] == ["curve faint", "curve"]
    first, second = (e.get("points", "").split() for e in root if e.tag == "polyline")
    tops = [float(points[0].split(",")[1]) for points in (first, second)]
    assert tops[0] < tops[1]


def test_a_mean_of_curves_counts_each_at_every_step():
    falling, late = [(0, 4.0), (10, 2.0)], [(5, 1.0)]
    assert mean_curve([falling, late]) == [(0, 2.5), (5, 2.0), (10, 1.5)]
