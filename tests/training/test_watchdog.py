import subprocess
import sys
import time

import pytest

from usfm.training import watchdog
from usfm.training.stop import EXIT_TERMINATED
from usfm.training.watchdog import Watchdog


def test_a_hang_is_told_once_with_the_stacks_of_all_threads(tmp_path, capfd):
    file = tmp_path / "stacks.txt"
    with Watchdog(file, seconds=0.2) as dog:
        dog.step()
        _wait_for(lambda: file.exists() and "in _wait_for" in file.read_text())
        time.sleep(0.5)
        once = file.read_text()
        assert once.count("no step has ended for") == 1
        # Its own comes first, as the current one.
        assert once.lower().count("thread 0x") >= 2  # this one and the watchdog's
        dog.step()
        _wait_for(lambda: file.read_text().count("no step has ended for") == 2)
    assert "in _wait_for" in capfd.readouterr().err


def _wait_for(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_without_a_limit_it_is_many_median_steps_and_none_before_some_are_known(
    tmp_path, monkeypatch
):
    now = [0.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    dog = Watchdog(tmp_path / "stacks.txt")
    for seconds in (500.0, 20.0, 21.0):
        assert dog.limit() == float("inf")
        now[0] += seconds
        dog.step()
    assert dog.limit() == 30 * 21
    for _ in range(10):
        now[0] += 1.0
        dog.step()
    assert dog.limit() == 300


@pytest.mark.parametrize(("exits", "code"), [(True, EXIT_TERMINATED), (False, 0)])
def test_it_ends_the_process_only_when_told_to(tmp_path, exits, code):
    script = f"""
import pathlib, time
from usfm.training.watchdog import Watchdog
file = pathlib.Path({str(tmp_path / "stacks.txt")!r})
with Watchdog(file, seconds=0.1, exits={exits}):
    while not file.exists():
        time.sleep(0.01)
    time.sleep(1)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("no step has ended for 0 s: where every thread is follows")
