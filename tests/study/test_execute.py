"""Who trains which cells, and what becomes of those that fail; the processes are pretended."""

import itertools
import json
import time

import pytest

from usfm import config as usfm_config
from usfm.errors import UserError
from usfm.study import execute, worker
from usfm.study.cells import Study
from usfm.tasks import Task, plans

TASKS = tuple(Task(f"cls{i}", "classification", num_classes=2 + i // 2) for i in range(4))
STUDY = Study(
    tasks=TASKS,
    fractions=(1.0,),
    seeds=(0, 1),
    methods=("sum",),
    models=("tiny",),
    partitions={p.name: {1.0: p} for p in (plans.task_specific(TASKS), plans.all_task(TASKS))},
    training_rows={1.0: {task.id: 10 for task in TASKS}},
)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(execute, "POLL", 0)


def leave(workdir, name, **result):
    place = workdir / "cells" / name
    place.mkdir(parents=True, exist_ok=True)
    (place / worker.STATUS).write_text(json.dumps(result))


def pretend(workdir, shares, *, fail=(), die=()):
    """An executor whose processes do a cell whenever they are looked at.

    Args:
        workdir: of the study.
        shares: gets the names that each was given.
        fail: an iterator of names; a cell fails as often as it is in it.
        die: likewise, and takes the process with it.
    """
    fail, die = list(fail), list(die)

    def start(number, names):
        shares.append(list(names))
        left = list(names)

        def is_running():
            if not left:
                return False
            name = left.pop(0)
            if name in die:
                die.remove(name)
                left.clear()
                return False
            if name in fail:
                fail.remove(name)
                leave(workdir, name, status="failed", error="so it was planned")
            else:
                leave(workdir, name, status="done", seconds=1)
            return True

        return is_running

    return start


def attempts(workdir):
    lines = (workdir / execute.LOG).read_text().splitlines()
    return [(line["cell"], line["attempt"], line["status"]) for line in map(json.loads, lines)]


def run(workdir, processes=1, **planned):
    shares = []
    start = pretend(workdir, shares, **planned)
    missing = execute.execute(STUDY, workdir, STUDY.cells(), start, processes)
    return [cell.name for cell in missing], shares


NAMES = [cell.name for cell in STUDY.cells()]


def test_every_cell_is_done_once_and_a_second_start_does_nothing(tmp_path):
    missing, shares = run(tmp_path)
    assert missing == []
    assert sorted(itertools.chain(*shares)) == sorted(NAMES)
    assert sorted(attempts(tmp_path)) == sorted((name, 1, "done") for name in NAMES)
    assert run(tmp_path) == ([], [])
    assert len(attempts(tmp_path)) == len(NAMES)


def test_a_cell_that_was_done_when_nobody_was_left_to_say_so_has_its_line_later(tmp_path):
    run(tmp_path, fail=[NAMES[2]])
    complete = attempts(tmp_path)
    log = tmp_path / execute.LOG
    lines = log.read_text().splitlines(keepends=True)
    cells = (NAMES[0], NAMES[2])
    lost = [n for n, of in enumerate(complete) if of[0] in cells and of[2] == "done"]
    log.write_text("".join(line for n, line in enumerate(lines) if n not in lost))
    assert run(tmp_path) == ([], [])
    assert sorted(attempts(tmp_path)) == sorted(complete)


def test_processes_share_the_work_and_keep_equal_shapes_together(tmp_path):
    _, shares = run(tmp_path, processes=2)
    assert len(shares) == 2
    by_name = {cell.name: cell for cell in STUDY.cells()}
    shapes = [{STUDY.shape(by_name[name]) for name in share} for share in shares]
    assert not shapes[0] & shapes[1]
    tasks = [sum(len(by_name[name].tasks) for name in share) for share in shares]
    assert tasks == [8, 8]  # the runs of all four tasks in one, those of one in the other


def test_a_failed_cell_is_tried_once_more(tmp_path, capsys):
    missing, _ = run(tmp_path, fail=[NAMES[2]])
    assert missing == []
    assert [a for a in attempts(tmp_path) if a[0] == NAMES[2]] == [
        (NAMES[2], 1, "failed"), (NAMES[2], 2, "done")]  # fmt: skip
    assert f"{NAMES[2]} failed and is tried again" in capsys.readouterr().err


def test_a_cell_that_fails_twice_is_left_out_and_the_rest_goes_on(tmp_path, capsys):
    missing, _ = run(tmp_path, fail=[NAMES[2]] * 2)
    assert missing == [NAMES[2]]
    assert all(worker.done(tmp_path / "cells" / name) for name in NAMES if name != NAMES[2])
    assert f"{NAMES[2]} failed again and is left out" in capsys.readouterr().err
    # A later start gives it another chance.
    assert run(tmp_path)[0] == []


def test_a_process_that_dies_costs_one_attempt_at_the_cell_it_died_at(tmp_path):
    (name,) = (name for name in NAMES if name.startswith("cls3-") and name.endswith("seed_0"))
    missing, shares = run(tmp_path, die=[name])
    assert missing == []
    failed = [attempt for attempt in attempts(tmp_path) if attempt[2] == "failed"]
    assert failed == [(name, 1, "failed")]
    lines = (tmp_path / execute.LOG).read_text()
    assert "its process died" in lines
    assert len(shares) == 3  # at first, what the dead one had not begun, and the one it died at


def test_an_unknown_executor_is_refused(tmp_path):
    config = usfm_config.study(usfm_config.base())
    config.study.executor = "slrum"
    with pytest.raises(UserError, match=r"study\.executor='slrum' is not one of local, slurm"):
        execute.executor(config, tmp_path)


def test_submitit_starts_what_the_local_executor_would(tmp_path):
    (tmp_path / "logs").mkdir()
    start = execute.by_submitit(tmp_path, "local", {"timeout_min": 1})
    is_running = start(0, ["a"])
    while is_running():
        time.sleep(0.05)
    # There is no study in the folder: the job says so in its log, and is not at work for ever.
    (log,) = (tmp_path / "logs").glob("*/*_log.err")
    assert "config.json" in log.read_text()
