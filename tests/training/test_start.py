"""What a run starts from: its own checkpoint with other tasks, or another run."""

import dataclasses

import jax
import numpy as np
import pytest

from usfm import config as usfm_config
from usfm.data.slots import slots_per_type
from usfm.errors import UserError
from usfm.models.functional import path_name
from usfm.tasks import Task
from usfm.training import sharding
from usfm.training.checkpoint import Checkpoints, tasks_from_meta
from usfm.training.program import make_model, make_program
from usfm.training.start import check_same_run, describe, resumed, source_of

NEW = Task("a_new_one", "classification", num_classes=9)  # before all others, and wider

pytestmark = pytest.mark.usefixtures("one_device_mesh")


@pytest.fixture
def begun(trained):
    """The config of a run, its tasks, and what lies beside its newest checkpoint."""
    with Checkpoints(trained / "checkpoints") as checkpoints:
        meta = checkpoints.meta(checkpoints.steps()[-1])
    return usfm_config.of_run(trained, {}), tasks_from_meta(meta), meta


def others(tasks):
    """Without the first task, and with a new one."""
    return (NEW, *tasks[1:])


def arrays_of(workdir):
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.arrays(checkpoints.steps()[-1])


def named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): np.asarray(leaf) for path, leaf in leaves}


def test_the_run_itself_may_go_on_and_says_nothing(begun, capsys):
    config, tasks, meta = begun
    now = describe(config, tasks)
    assert {name: meta[name] for name in ("tasks", "config")} == {
        name: now[name] for name in ("tasks", "config")
    }
    check_same_run(config, tasks, {**meta, "code": now["code"]})
    assert capsys.readouterr().err == ""
    check_same_run(config, tasks, {**meta, "code": {**now["code"], "usfm": "0.0.0"}})
    assert capsys.readouterr().err == "the checkpoint was made with usfm 0.0.0\n"


def test_another_config_than_the_checkpoints_is_refused_unless_told(begun, capsys):
    config, tasks, meta = begun
    config.optimizer.b2, config.train.log_every = 0.5, 7
    with pytest.raises(UserError) as caught:
        check_same_run(config, tasks, meta)
    first, *lines = str(caught.value).splitlines()
    assert "--config.checkpoint.accept_changes=True" in first
    assert lines == ["  optimizer.b2: 0.999 before, 0.5 now"]
    config.checkpoint.accept_changes = True
    check_same_run(config, tasks, meta)
    assert lines[0] in capsys.readouterr().err


def test_other_tasks_are_refused_unless_told_and_keep_what_is_theirs(trained, begun, capsys):
    config, tasks, meta = begun
    now = others(tasks)
    with pytest.raises(UserError, match=f"left out: {tasks[0].id}.*accept_changes"):
        check_same_run(config, now, meta)
    config.checkpoint.accept_changes = True
    check_same_run(config, now, meta)
    assert "new, with fresh heads: a_new_one" in capsys.readouterr().err

    slots = slots_per_type(now, None, config.train.slots)
    program = make_program(config, now, slots, sharding.make_mesh(config.mesh))
    fresh = program.start(np.uint32(0))
    with Checkpoints(trained / "checkpoints") as checkpoints:
        state = resumed(checkpoints, checkpoints.steps()[-1], config, program, fresh)
    found, saved = named(dataclasses.asdict(state)), arrays_of(trained)
    assert found["step"] == saved["step"]
    for name, array in found.items():
        if "/heads/" not in name and not name.startswith("multitask/"):
            np.testing.assert_array_equal(array, saved[name], err_msg=name)
    # The new task is in the first place of both lists, where the one left out was in its type.
    cosines, before = (of["multitask/gradvac/cosines"] for of in (found, saved))
    np.testing.assert_array_equal(cosines[1:, 1:], before[1:, 1:])
    assert not cosines[0].any()
    assert before[0].any()
    kernel, before = (of["params/heads/classification/kernel"] for of in (found, saved))
    old = [task.id for task in tasks if task.type == "classification"]
    new = [task.id for task in now if task.type == "classification"]
    for task in set(old) & set(new):
        np.testing.assert_array_equal(
            kernel[new.index(task)][:, : before.shape[2]], before[old.index(task)]
        )
    made = np.asarray(fresh.params["heads"]["classification"]["kernel"])
    np.testing.assert_array_equal(kernel[0], made[0])


def test_another_run_is_started_from_with_its_averages(trained, begun, capsys):
    config, tasks, _ = begun
    now = others(tasks)
    config.model.init_from = str(trained)
    source = source_of(config, now)
    assert source is not None
    assert "new, with fresh heads: a_new_one" in capsys.readouterr().err
    model, mesh = make_model(config, now), sharding.make_mesh(config.mesh)
    fresh = sharding.build(lambda: model.init(jax.random.key(1)), mesh)
    found, saved = named(source(model, fresh)), arrays_of(trained)
    for name, array in found.items():
        if not name.startswith("heads/"):
            np.testing.assert_array_equal(array, saved[f"ema/{name}"], err_msg=name)
    made = np.asarray(fresh["heads"]["classification"]["kernel"])
    np.testing.assert_array_equal(found["heads/classification/kernel"][0], made[0])


def test_another_run_of_another_model_is_refused_with_every_difference(trained, begun):
    config, tasks, _ = begun
    config.model.init_from = str(trained)
    config.model.decoder_width.detection = 16
    source = source_of(config, tasks)
    assert source is not None
    model, mesh = make_model(config, tasks), sharding.make_mesh(config.mesh)
    placed = sharding.abstract(lambda: model.init(jax.random.key(1)), mesh)
    with pytest.raises(UserError, match=r"heads/detection/kernel: float32.* in the checkpoint"):
        source(model, placed)
