"""Runs that are killed, stopped or robbed of their images end as one that nothing disturbed."""

import dataclasses
import functools
import hashlib
import json
import os
import random
import shutil
import signal
import time

import numpy as np

from usfm.training import record
from usfm.training.checkpoint import Checkpoints
from usfm.training.stop import EXIT_TERMINATED

STEPS = 24
UNSCORED = "--config.evaluate.after_training=False"


def steps(workdir):
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.steps()


def state(workdir):
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.arrays(STEPS)


def digest(workdir):
    sha = hashlib.sha256()
    for name, array in sorted(state(workdir).items()):
        sha.update(f"{name} {array.shape} {array.dtype}".encode() + array.tobytes())
    return sha.hexdigest()


def logged(workdir):
    """The steps in metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)


def wait_for_step(step, workdir, process):
    wait_for(lambda: step in logged(workdir), process)


def saving(workdir):
    return any("tmp" in path.name for path in (workdir / "checkpoints").glob("*"))


def kill(process):
    """Kills the process alone; the workers it started notice, or this would not end."""
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=120)  # they hold its output open
    assert process.returncode == -signal.SIGKILL


def assert_same_end(workdir, trained):
    assert logged(workdir) == list(range(1, STEPS + 1))
    assert digest(workdir) == digest(trained)
    recorded, expected = (record.read(of / "gramians") for of in (workdir, trained))
    assert recorded.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(recorded[name], array, err_msg=name)


def test_a_killed_run_ends_bit_for_bit_like_one_that_was_not(run, trained, tmp_path):
    with_workers = (UNSCORED, "--config.data.workers=2")
    # Step 12 is saved only when step 6 is on disk, so after step 13 there is one to go on from.
    first, second = random.randint(1, 12), random.randint(13, 18)
    print(f"killed after step {first}, and after step {second} as soon as it saved")

    process = run.start(tmp_path, UNSCORED)
    wait_for_step(first, tmp_path, process)
    kill(process)
    process = run.start(tmp_path, *with_workers)
    wait_for_step(second, tmp_path, process)
    wait_for(lambda: saving(tmp_path), process)
    kill(process)
    saved = steps(tmp_path)[-1]

    done = run(tmp_path, UNSCORED)
    assert done.returncode == 0, done.stderr
    assert f"going on from step {saved} of {STEPS}" in done.stderr
    assert_same_end(tmp_path, trained)
    assert not saving(tmp_path)


def test_a_run_told_to_stop_saves_first_and_goes_on_without_its_images(run, trained, tmp_path):
    data, workdir = tmp_path / "data", tmp_path / "run"
    shutil.copytree(run.data, data)
    # Nothing else makes it save before the end, and its workers are told too.
    flags = ("--config.data.workers=2", "--config.checkpoint.every_steps=1000")
    start = functools.partial(dataclasses.replace(run, data=data).start, workdir, *flags)
    step = random.randint(1, 12)
    print(f"stopped after step {step}")
    process = start()
    wait_for_step(step, workdir, process)
    for _ in range(3):
        os.killpg(process.pid, signal.SIGTERM)
        time.sleep(0.02)
    errors = process.communicate(timeout=600)[1]
    assert process.returncode == EXIT_TERMINATED, errors
    (saved,) = steps(workdir)
    assert step < saved < STEPS
    assert f"SIGTERM: step {saved} is saved; run the same command again to go on" in errors
    assert logged(workdir) == list(range(1, saved + 1))
    assert "Traceback" not in errors
    assert "leaked" not in errors

    process = start()
    wait_for_step(saved + 1, workdir, process)
    shutil.rmtree(data)
    errors = process.communicate(timeout=600)[1]
    assert process.returncode == 0, errors
    assert f"going on from step {saved} of {STEPS}" in errors
    assert f"{data} is gone: not scored; run --mode=evaluate when it is back" in errors
    assert not (workdir / "evaluation.json").exists()
    assert_same_end(workdir, trained)


def test_nothing_is_compiled_after_the_first_step(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == STEPS
    mixes = {tuple(name for name in line if name.startswith("loss/")) for line in lines}
    assert len(mixes) > 1
    assert {line["compilations"] for line in lines} == {lines[0]["compilations"]}
    assert lines[0]["compilations"] > 0


def test_what_is_recorded_is_whole_and_says_what_the_log_says(trained):
    found = record.read(trained / "gramians")
    tasks, groups = len(found["tasks"]), len(found["groups"])
    assert found["step"].tolist() == list(range(1, STEPS + 1))
    for name in ("gramian", "preconditioned_gramian"):
        assert found[name].shape == (STEPS, groups, tasks, tasks)
        largest = np.abs(found[name]).max((2, 3), keepdims=True)
        assert (np.abs(found[name] - found[name].swapaxes(2, 3)) <= 1e-6 * largest).all()
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    for line, losses, there in zip(lines, found["losses"], found["present"], strict=True):
        logged = {task: line.get(f"loss/{task}") for task in found["tasks"]}
        assert [value is not None for value in logged.values()] == there.tolist()
        np.testing.assert_allclose([v for v in logged.values() if v], losses[there], rtol=1e-6)
    # Whoever is present has a gradient in every group, whoever is not has none.
    norms = np.diagonal(found["gramian"], axis1=2, axis2=3)
    assert ((norms > 0).all(1) == found["present"]).all()
    known = ~np.isnan(found["square_norm"]).all(1)
    assert (known == found["present"]).all()
    assert found["learning_rate"].argmax() not in (0, STEPS - 1)
    assert np.abs(state(trained)["multitask/gradvac/cosines"]).max() > 0
