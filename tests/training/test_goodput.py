import pytest

from usfm.training import goodput
from usfm.training.goodput import Goodput


def events(*lines):
    return [{"time": time, "event": what, **values} for time, what, values in lines]


def test_steps_that_a_kill_made_in_vain_do_not_count():
    account = goodput.goodput(
        events(
            (0, "begin", {}),
            (10, "loop", {"step": 0}),
            (30, "compiled", {"step": 1}),
            (130, "steps", {"step": 51, "data_wait": 5, "checkpoint": 15}),
            (150, "steps", {"step": 61, "data_wait": 0}),
            # Killed; begun again a night later from the checkpoint of step 56.
            (9000, "begin", {}),
            (9010, "loop", {"step": 56}),
            (9020, "compiled", {"step": 57}),
            (9060, "steps", {"step": 77}),
            (9070, "evaluated", {}),
        )
    )
    assert account.seconds == pytest.approx(
        {
            "start": 20,
            "compilation": 30,
            "data wait": 5,
            "checkpoint": 15,
            "steps": 80 + 10 + 40,  # of the 20 s from step 51 to 61, half was lost
            "repeated steps": 10,
            "evaluation": 10,
        }
    )
    assert account.starts == 2
    assert sum(account.seconds.values()) == 150 + 70  # all that the two starts took
    assert account.share == pytest.approx(130 / 220)


def test_a_start_is_seen_without_a_begin_and_a_torn_line_is_passed_over(tmp_path):
    goodput.note(tmp_path, "loop", step=0)
    goodput.note(tmp_path, "compiled", step=1)
    with (tmp_path / goodput.FILE).open("a") as file:
        file.write('{"time": 1, "ev\n')
    goodput.note(tmp_path, "loop", step=1)
    found = goodput.read(tmp_path)
    assert [event["event"] for event in found] == ["loop", "compiled", "loop"]
    assert goodput.goodput(found).starts == 2
    assert goodput.goodput([]).share == 0


def test_it_is_told_in_one_line():
    account = Goodput({"steps": 90.0, "start": 7.0, "data wait": 3.0, "checkpoint": 0.01}, 1)
    assert str(account) == "goodput 90.0% of 100 s in 1 start: else start 7.0%, data wait 3.0%"
