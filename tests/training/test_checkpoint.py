import dataclasses
import gc
import shutil
import sys
import threading
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from usfm.errors import UserError
from usfm.tasks import Task
from usfm.training import checkpoint
from usfm.training.checkpoint import Checkpoints, tasks_from_meta, tasks_to_meta
from usfm.training.sharding import shardings
from usfm.training.state import TrainState

TASKS = (
    Task("heart", "segmentation", num_classes=3, organ="heart", group="cardiac"),
    Task("plane", "classification", num_classes=2, flip_ok=False),
)
META = tasks_to_meta(TASKS)


def mesh(data, fsdp):
    devices = jax.devices()[: data * fsdp]
    axes = ("data", "fsdp", "expert")
    return jax.make_mesh((data, fsdp, 1), axes, axis_types=(AxisType.Auto,) * 3, devices=devices)


def make_state(step, mesh, rows=256):
    """A state as a run has it, with values of its step."""
    kernel = jnp.arange(rows * 128, dtype=jnp.float32).reshape(rows, 128) + step
    params = {"encoder": {"kernel": kernel, "bias": jnp.full(8, step, jnp.bfloat16)}}
    average = {"encoder": {"kernel": kernel / 2, "bias": None}}  # as if the bias were frozen
    state = TrainState(jnp.int32(step), params, optax.adamw(1e-3).init(average), {}, average)
    return jax.device_put(state, shardings(state, mesh))


def abstract(state):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def assert_same(state, other):
    def same(a, b):
        assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))

    jax.tree.map(same, state, other)


@pytest.fixture
def saved(tmp_path):
    """A folder with checkpoints of steps 1 to 3, two of them kept."""
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, make_state(step, mesh(1, 1)), META)
    return tmp_path / "checkpoints"


def test_what_is_saved_is_restored_to_the_bit(saved):
    state = make_state(3, mesh(1, 1))
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.steps() == [2, 3]
        assert checkpoints.latest() == 3
        assert_same(checkpoints.restore(3, abstract(state)), state)
        assert tasks_from_meta(checkpoints.meta(3)) == TASKS


def test_parts_of_a_state_are_restored_by_themselves(saved):
    state = make_state(2, mesh(1, 1))
    parts = {"params": {"encoder": {"kernel": None, "bias": state.params["encoder"]["bias"]}},
             "ema": state.ema}  # fmt: skip
    with Checkpoints(saved) as checkpoints:
        assert_same(checkpoints.restore_parts(2, abstract(parts)), parts)


def test_a_part_that_was_not_saved_is_named(tmp_path):
    one = NamedSharding(mesh(1, 1), P())
    begun_without = dataclasses.replace(make_state(1, mesh(1, 1)), ema={})
    parts = {"ema": {"encoder": {"kernel": jnp.ones((256, 128))}}}
    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(1, begun_without, META)
        checkpoints.wait()
        with pytest.raises(UserError) as caught:
            checkpoints.restore_parts(1, abstract(jax.device_put(parts, one)))
    assert str(caught.value).splitlines()[1:] == [
        "  ema/encoder/kernel: absent in the checkpoint, float32[256, 128] in this run"
    ]


def test_arrays_are_those_of_the_state_by_their_paths(saved):
    with Checkpoints(saved) as checkpoints:
        arrays = checkpoints.arrays(3)
    state = make_state(3, mesh(1, 1))
    assert sorted(arrays) == [
        "ema/encoder/kernel",
        "opt_state/0/count",
        "opt_state/0/mu/encoder/kernel",
        "opt_state/0/nu/encoder/kernel",
        "params/encoder/bias",
        "params/encoder/kernel",
        "step",
    ]
    for name, array in state.params["encoder"].items():
        found = arrays[f"params/encoder/{name}"]
        assert isinstance(found, np.ndarray)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, np.asarray(array))
    assert arrays["step"] == 3
    with Checkpoints(saved) as checkpoints:
        some = checkpoints.arrays(3, "params", "ema")
    assert some.keys() == {name for name in arrays if name.startswith(("params/", "ema/"))}


def test_a_state_may_be_donated_once_save_returns(tmp_path):
    eat = jax.jit(lambda s: jax.tree.map(lambda a: a * 0, s), donate_argnums=0)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        state = make_state(5, mesh(1, 1))
        checkpoints.save(5, state, META)
        eat(state)
        checkpoints.wait()
        same = make_state(5, mesh(1, 1))
        assert_same(checkpoints.restore(5, abstract(same)), same)


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (2, 4)])
def test_a_state_is_restored_onto_another_mesh(saved, tmp_path, data, fsdp):
    state = make_state(3, mesh(data, fsdp))
    spec = state.params["encoder"]["kernel"].sharding.spec
    assert spec == (P() if fsdp == 1 else P("fsdp"))
    with Checkpoints(saved) as checkpoints:
        assert_same(checkpoints.restore(3, abstract(state)), state)
        alone = checkpoints.arrays(3)
    with Checkpoints(tmp_path / "other", keep=1) as checkpoints:
        checkpoints.save(3, state, META)
        checkpoints.wait()
        one = make_state(3, mesh(1, 1))
        assert_same(checkpoints.restore(3, abstract(one)), one)
        spread = checkpoints.arrays(3)
    assert alone.keys() == spread.keys()
    for name, array in alone.items():
        np.testing.assert_array_equal(array, spread[name])


def test_another_model_or_optimizer_is_refused_with_every_difference(saved):
    state = make_state(3, mesh(1, 1), rows=512)
    params = dict(state.params)
    params["encoder"] = {**params["encoder"], "bias": jnp.zeros(8, jnp.float32), "new": jnp.ones(1)}
    del state.opt_state[0].nu["encoder"]["kernel"]
    other = TrainState(state.step, params, state.opt_state, {}, state.ema)
    one = NamedSharding(mesh(1, 1), P())
    other = abstract(jax.device_put(other, one))
    with Checkpoints(saved) as checkpoints, pytest.raises(UserError) as caught:
        checkpoints.restore(3, other)
    first, *lines = str(caught.value).splitlines()
    assert first.startswith(f"checkpoint {saved}/3 does not fit this run's model and optimizer;")
    assert lines == [
        "  ema/encoder/kernel: float32[256, 128] in the checkpoint, float32[512, 128] in this run",
        "  opt_state/0/mu/encoder/kernel: float32[256, 128] in the checkpoint, float32[512, 128] "
        "in this run",
        "  opt_state/0/nu/encoder/kernel: float32[256, 128] in the checkpoint, absent in this run",
        "  params/encoder/bias: bfloat16[8] in the checkpoint, float32[8] in this run",
        "  params/encoder/kernel: float32[256, 128] in the checkpoint, float32[512, 128] in this "
        "run",
        "  params/encoder/new: absent in the checkpoint, float32[1] in this run",
    ]


def test_the_newest_the_best_and_every_so_many_stay(tmp_path):
    kept = tmp_path / "checkpoints"
    scores = {1: 0.5, 2: 0.9, 3: np.nan, 4: 0.1, 5: 0.9, 6: 0.2, 7: np.nan, 8: 0.3}
    stay = {1: [1], 2: [2], 3: [2, 3], 4: [2, 4], 5: [4, 5], 6: [4, 5, 6], 7: [4, 5, 7]}
    for step, score in scores.items():  # a run each, as if every one had been killed
        with Checkpoints(kept, keep=1, every=4, metric="dsc") as checkpoints:
            checkpoints.save(step, make_state(step, mesh(1, 1)), META, score)
            checkpoints.wait()
            assert checkpoints.steps() == stay.get(step, [4, 5, 8])
    with Checkpoints(kept) as checkpoints:
        assert (checkpoints.best(), checkpoints.latest()) == (5, 8)
        assert_same(checkpoints.restore(5, abstract(make_state(5, mesh(1, 1)))),
                    make_state(5, mesh(1, 1)))  # fmt: skip
    # Scores of another metric are not compared with those.
    with Checkpoints(kept, keep=1, metric="auc") as checkpoints:
        checkpoints.save(9, make_state(9, mesh(1, 1)), META, 0.2)
        checkpoints.wait()
        assert (checkpoints.best(), checkpoints.steps()) == (9, [9])


def test_without_scores_none_is_best(saved):
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.best() is None


def join_threads_of_orbax():
    for thread in threading.enumerate():
        if type(thread).__module__ == "orbax.checkpoint._src.futures.future":
            threading.Thread.join(thread)  # their own join raises what went wrong


@pytest.fixture
def impatience() -> Iterator[pytest.MonkeyPatch]:
    """Threads of orbax wait a second for each other, until it is undone.

    Those of a write that failed would wait for ten minutes, and then drop in the midst of another
    test what they never came to. Here all of them end, and what they leave is collected.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)  # a log that pytest keeps would keep what they leave
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orbax.checkpoint._src.multihost.multihost.coordination_timeout", lambda: 1)
        yield patch
    join_threads_of_orbax()
    gc.collect()
    logging.set_verbosity(verbosity)


# A write that fails, fails in threads of orbax as well, which never come to what waits for it.
fails_in_threads = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning",
    "ignore:coroutine .* was never awaited:RuntimeWarning",
)


@fails_in_threads
def test_a_write_that_fails_is_said_once_and_made_up_for(saved, capsys, impatience):
    with Checkpoints(saved, keep=2) as checkpoints:
        shutil.rmtree(saved)
        saved.write_text("in the way")
        for step in (4, 5):
            checkpoints.save(step, make_state(step, mesh(1, 1)), META)
        with pytest.raises(UserError, match=r"all steps up to 5 are not saved: .*/5 cannot be"):
            checkpoints.wait()
        assert checkpoints.latest() is None
        saved.unlink()
        impatience.undo()
        checkpoints.save(6, make_state(6, mesh(1, 1)), META)
        checkpoints.wait()
        assert checkpoints.steps() == [6]
        same = make_state(6, mesh(1, 1))
        assert_same(checkpoints.restore(6, abstract(same)), same)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("checkpoint")]
    assert len(said) == 2
    assert said[0].startswith(f"checkpoint {saved}/4 could not be written (")
    assert said[1] == f"checkpoint {saved}/6 is written: all is saved again"


@fails_in_threads
@pytest.mark.parametrize("gone_after", [1, 99])
def test_the_last_state_is_tried_again_and_again(tmp_path, monkeypatch, impatience, gone_after):
    path, tries = tmp_path / "checkpoints", []

    def sleep(seconds):
        tries.append(seconds)
        if len(tries) == gone_after:
            path.unlink()
            impatience.undo()

    state = make_state(4, mesh(1, 1))
    with Checkpoints(path, keep=1) as checkpoints:
        monkeypatch.setattr(checkpoint.time, "sleep", sleep)
        path.rmdir()
        path.write_text("in the way")
        if gone_after == 1:
            checkpoints.save(4, state, META, last=True)
            assert checkpoints.steps() == [4]
        else:
            with pytest.raises(UserError, match="all steps up to 4 are not saved"):
                checkpoints.save(4, state, META, last=True)
            assert tries == [checkpoint.PAUSE] * (checkpoint.TRIES - 1)
            path.unlink()
            impatience.undo()
            checkpoints.save(5, make_state(5, mesh(1, 1)), META)


def test_an_object_store_that_nothing_here_can_reach_is_not_taken_for_a_folder(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("gcsfs", "google.cloud.storage"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"gs://bucket/run cannot be opened: .*usfm\[gcs\]"):
        Checkpoints("gs://bucket/run", keep=1)
    assert not any(tmp_path.iterdir())


def test_what_killed_processes_left_is_no_checkpoint_and_does_not_stay(saved):
    (saved / "9").mkdir()
    shutil.copytree(saved / "2", saved / "7")
    (saved / "7/_CHECKPOINT_METADATA").unlink()  # half deleted
    (saved / "4.orbax-checkpoint-tmp").mkdir()
    (saved / "4.orbax-checkpoint-tmp/part").write_text("half written")
    (saved / "notes").mkdir()
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.steps() == [2, 3]
        assert checkpoints.latest() == 3
    with Checkpoints(saved, keep=2) as checkpoints:
        checkpoints.save(4, make_state(4, mesh(1, 1)), META)
        checkpoints.wait()
        assert checkpoints.steps() == [3, 4]
        assert checkpoints.arrays(4)["step"] == 4
    assert sorted(path.name for path in saved.iterdir()) == ["3", "4", "notes"]


def test_reading_leaves_the_folder_alone(saved, tmp_path):
    (saved / "9").mkdir()
    with Checkpoints(saved) as checkpoints:
        checkpoints.arrays(2)
    assert sorted(path.name for path in saved.iterdir()) == ["2", "3", "9"]
    with Checkpoints(tmp_path / "none") as checkpoints:
        assert checkpoints.latest() is None
        assert checkpoints.steps() == []
    assert not (tmp_path / "none").exists()


@pytest.fixture
def damaged(saved, request):
    """The folder after one file of its newest checkpoint was cut short, or is gone."""
    file, damage = request.param
    path = saved / "3" / file
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return saved


def both_ways(file):
    return pytest.mark.parametrize("damaged", [(file, "cut"), (file, "missing")], indirect=True)


MESSAGE = "checkpoints/3 cannot be read .*; if it is damaged, remove it to go on from the one"


@both_ways("meta/metadata")
def test_a_checkpoint_whose_tasks_are_damaged_is_named(damaged):
    with Checkpoints(damaged) as checkpoints, pytest.raises(UserError, match=MESSAGE):
        checkpoints.meta(3)


# Not the arrays themselves: orbax then leaves threads behind that fail in some later test.
@both_ways("state/_METADATA")
def test_a_checkpoint_whose_state_is_damaged_is_named_and_the_one_before_serves(damaged):
    state = make_state(2, mesh(1, 1))
    with Checkpoints(damaged) as checkpoints, pytest.raises(UserError, match=MESSAGE):
        checkpoints.restore(3, abstract(state))
    shutil.rmtree(damaged / "3")
    with Checkpoints(damaged) as checkpoints:
        assert checkpoints.latest() == 2
        assert_same(checkpoints.restore(2, abstract(state)), state)
