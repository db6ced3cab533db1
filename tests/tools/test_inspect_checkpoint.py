import dataclasses
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from tools import inspect_checkpoint
from usfm.training.checkpoint import Checkpoints
from usfm.training.state import TrainState

STATE = TrainState(
    step=jnp.int32(1),
    params={"encoder": {"kernel": jnp.arange(6, dtype=jnp.float32).reshape(2, 3)}},
    opt_state={"mu": {"kernel": jnp.ones((2, 3), jnp.bfloat16)}},
    multitask={},
)


def save(workdir: pathlib.Path, states: dict[int, TrainState]) -> None:
    with Checkpoints(workdir / "checkpoints", keep=10) as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, state, {"tasks": []})


def seen(workdir: pathlib.Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in workdir.rglob("*")
    }


def test_equal_states_have_equal_digests_and_others_do_not(tmp_path):
    other_moments = dataclasses.replace(STATE, opt_state={"mu": {"kernel": jnp.zeros((2, 3))}})
    save(tmp_path / "a", {1: STATE, 2: other_moments})
    save(tmp_path / "b", {5: STATE})
    ours = inspect_checkpoint.inspect(tmp_path / "a")
    (theirs,) = inspect_checkpoint.inspect(tmp_path / "b")["checkpoints"].values()
    first, second = ours["checkpoints"]["1"], ours["checkpoints"]["2"]
    assert first == theirs
    assert first["digest"] != second["digest"]
    assert first["params_digest"] == second["params_digest"] != first["digest"]


@pytest.mark.parametrize(
    "changed",
    [
        {"b": np.array([1, 2], np.int32)},
        {"a": np.array([[1, 2]], np.int32)},
        {"a": np.array([1, 2], np.uint32)},
        {"a": np.array([1, 3], np.int32)},
    ],
)
def test_digest_tells_names_shapes_dtypes_and_values_apart(changed):
    arrays = {"a": np.array([1, 2], np.int32)}
    assert inspect_checkpoint.digest(arrays) == inspect_checkpoint.digest(arrays)
    assert inspect_checkpoint.digest(arrays) != inspect_checkpoint.digest(changed)


def test_digest_does_not_depend_on_order():
    a, b = np.zeros(1), np.ones(1)
    first, second = {"a": a, "b": b}, {"b": b, "a": a}
    assert inspect_checkpoint.digest(first) == inspect_checkpoint.digest(second)


def test_inspecting_leaves_the_workdir_as_it_was(tmp_path, capsys):
    save(tmp_path, {1: STATE, 2: STATE, 3: STATE, 4: STATE})
    # What another process is writing just now.
    (tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp").mkdir()
    before = seen(tmp_path)
    inspect_checkpoint.main([str(tmp_path)])
    assert seen(tmp_path) == before
    printed = json.loads(capsys.readouterr().out)
    assert printed["steps"] == [1, 2, 3, 4]
    assert printed["best"] is None


def test_one_step_can_be_chosen(tmp_path, capsys):
    save(tmp_path, {1: STATE, 2: STATE})
    inspect_checkpoint.main([str(tmp_path), "--step=2"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["steps"] == [1, 2]
    assert list(printed["checkpoints"]) == ["2"]


def test_a_step_that_is_not_kept_is_one_clear_line(tmp_path):
    save(tmp_path, {1: STATE, 2: STATE})
    with pytest.raises(SystemExit, match=r"checkpoints has no step 7; kept are: 1, 2$"):
        inspect_checkpoint.main([str(tmp_path), "--step=7"])


def test_a_missing_workdir_is_one_clear_line_and_is_not_made(tmp_path):
    workdir = tmp_path / "none"
    with pytest.raises(SystemExit, match=f"^inspect_checkpoint: {workdir} holds no checkpoints/"):
        inspect_checkpoint.main([str(workdir)])
    assert not workdir.exists()
