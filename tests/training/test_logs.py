import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usfm.training import logs
from usfm.training.logs import LAG, Log, NonFiniteError

TASKS = ["first", "second"]


def metrics(losses, present=(True, True), grad_norm=1.0, ok=True, left_out=None) -> Any:
    return {
        "losses": np.array(losses, np.float32),
        "present": np.array(present),
        "left_out": np.isnan(losses) if left_out is None else np.array(left_out),
        "images": 4 * np.array(present),
        "grad_norm": np.float32(grad_norm),
        "ok": np.bool_(ok),
    }


def make(path, **changes):
    return Log(path, TASKS, **({"start": 0, "steps": 10, "every": 4} | changes))


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_first_step_every_fourth_and_the_last_have_a_line(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    with make(path) as log:
        for step in range(1, 11):
            log.add(step, metrics([step, 0], [True, step % 2 == 1]), images=8, waited=0.0)
        log.flush()
    lines = lines_of(path)
    assert [line["step"] for line in lines] == [1, 4, 8, 10]
    assert [line["loss/first"] for line in lines] == [1, (2 + 3 + 4) / 3, (5 + 6 + 7 + 8) / 4, 9.5]
    assert capsys.readouterr().err.count(" of 10: loss ") == 4


def test_losses_are_means_over_the_steps_with_the_task(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with make(path) as log:
        log.add(1, metrics([1, 5], grad_norm=1), images=8, waited=0.0)
        log.add(2, metrics([2, 0], [True, False], grad_norm=2), images=8, waited=0.0)
        log.add(3, metrics([3, 7], grad_norm=3), images=8, waited=0.0)
        log.add(4, metrics([0, 9], [False, True], grad_norm=7), images=8, waited=0.0)
        log.flush()
    line = lines_of(path)[-1]
    assert (line["loss/first"], line["loss/second"], line["grad_norm"]) == (2.5, 8, 4)
    assert (line["images/first"], line["images/second"]) == (8, 8)


def test_the_loop_does_not_wait_for_the_newest_steps(tmp_path):
    class OnItsWay:
        def __array__(self, dtype=None, copy=None):
            raise AssertionError("waited for")

    on_its_way: Any = dict.fromkeys(metrics([0, 0]), OnItsWay())
    path = tmp_path / "metrics.jsonl"
    with make(path, every=1) as log:
        log.add(1, metrics([1, 1]), images=8, waited=0.0)
        for step in range(2, 2 + LAG):
            log.add(step, on_its_way, images=8, waited=0.0)
        assert [line["step"] for line in lines_of(path)] == [1]
        with pytest.raises(AssertionError, match="waited for"):
            log.flush()


def test_a_step_that_was_not_made_is_an_error_that_names_its_tasks(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with make(path) as log:
        log.add(1, metrics([1, 1]), images=8, waited=0.0)
        log.add(2, metrics([1, np.inf], ok=False), images=8, waited=0.0)
        with pytest.raises(NonFiniteError, match="step 2: not finite in second") as caught:
            log.flush()
        assert caught.value.step == 2
        assert caught.value.tasks == ("second",)
        log.add(3, metrics([1, 1], ok=False), images=8, waited=0.0)
        with pytest.raises(NonFiniteError, match="step 3: not finite in the gradient"):
            log.flush()


def test_tasks_left_out_are_counted_in_the_line_and_named(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    with make(path) as log:
        log.add(1, metrics([1, 1]), images=8, waited=0.0)
        log.add(2, metrics([np.nan, 1], [False, True]), images=8, waited=0.0)
        log.add(3, metrics([np.nan, 4], [False, True]), images=8, waited=0.0)
        log.add(4, metrics([5, 3], [True, False], left_out=[False, True]), images=8, waited=0.0)
        for step in range(5, 9):
            log.add(step, metrics([1, 1]), images=8, waited=0.0)
        log.flush()
    _, line, last = lines_of(path)
    assert (line["left_out/first"], line["left_out/second"]) == (2, 1)
    assert (line["loss/first"], line["loss/second"]) == (5, 2.5)
    assert not any(name.startswith("left_out") for name in last)
    said = capsys.readouterr().err.splitlines()
    assert [text for text in said if "left out" in text] == [
        "left out in the last 3 steps, not finite: first of 2",
        "left out in the last 3 steps, of a gradient that is zero: second of 1",
    ]


def test_time_and_waiting_are_measured(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(logs.time, "perf_counter", lambda: now[0])
    path = tmp_path / "metrics.jsonl"
    with make(path, every=2) as log:
        for step in range(1, 5):
            now[0] += 2.0
            log.add(step, metrics([1, 1]), images=8, waited=0.5)
            log.flush()
    assert [line["seconds"] for line in lines_of(path)] == [2, 4, 8]
    assert [line["images_per_second"] for line in lines_of(path)] == [4, 4, 4]
    assert [line["data_wait"] for line in lines_of(path)] == [0.25, 0.25, 0.25]


def test_a_compilation_is_counted_in_the_line_of_its_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with make(path, every=1) as log:
        for step in range(1, 6):
            if step == 3:
                jax.jit(lambda x: x * 3 + jnp.float32(tmp_path.stat().st_ino))(1.0)
            log.add(step, metrics([1, 1]), images=8, waited=0.0)
        log.flush()
    before, after = (lines_of(path)[i]["compilations"] for i in (0, 2))
    assert after > before
    assert [line["compilations"] for line in lines_of(path)] == [before] * 2 + [after] * 3


def test_lines_after_the_step_that_is_gone_on_from_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = [json.dumps({"step": step}) + "\n" for step in (1, 4, 8)]
    path.write_text("".join(whole) + '{"step": 1')
    with make(path, start=4) as log:
        for step in range(5, 9):
            log.add(step, metrics([1, 1]), images=8, waited=0.0)
        log.flush()
    assert [line["step"] for line in lines_of(path)] == [1, 4, 5, 8]


def test_routing_is_a_mean_over_the_steps_with_the_task(tmp_path):
    path = tmp_path / "metrics.jsonl"
    shares = [[[1, 0], [0.5, 0.5]], [[0.5, 0.5], [0, 0]], [[0, 1], [0, 0]]]
    present = [(True, True), (True, False), (True, False)]
    with make(path, steps=3, every=10) as log:
        for step, (of_step, there) in enumerate(zip(shares, present, strict=True), 1):
            given = metrics([1, 1], there)
            given |= {"routing": np.array(of_step), "dropped": np.float32(step / 10)}
            log.add(step, given, images=8, waited=0.0)
        log.flush()
    first, last = lines_of(path)
    assert first["routing/second"] == [0.5, 0.5]
    assert last["routing/first"] == [0.25, 0.75]
    assert "routing/second" not in last  # absent from both steps of the line
    assert last["dropped"] == pytest.approx(0.25)


def test_conflicts_are_told_of_the_steps_that_were_recorded(tmp_path):
    path = tmp_path / "metrics.jsonl"
    recorded = {"gramian": np.array([[1, -1], [-1, 1]], np.float32)}
    with make(path, every=3, steps=6) as log:
        for step in range(1, 7):
            log.add(step, metrics([1, 1]) | (recorded if step == 4 else {}), images=8, waited=0.0)
        log.flush()
    assert [line.get("conflicts") for line in lines_of(path)] == [None, None, 1.0]


def test_lines_that_cannot_be_written_are_kept_until_they_can(tmp_path, capsys):
    path = tmp_path / "run" / "metrics.jsonl"
    with make(path, every=1) as log:
        log.note(0, {"val/dsc": 0.5})
        path.unlink()
        path.parent.rmdir()
        path.parent.write_text("in the way")
        for step in (1, 2):
            log.add(step, metrics([step, 0]), images=8, waited=0.0)
        log.flush()
        assert log.unsaved() == f"{path} lacks what came after step 0"
        path.parent.unlink()
        log.add(3, metrics([3, 0]), images=8, waited=0.0)
        log.flush()
        assert log.unsaved() == ""
    assert [line["step"] for line in lines_of(path)] == [1, 2, 3]
    assert capsys.readouterr().err.count("cannot be written") == 1
