import pytest

from tools import benchmark
from usfm import config as usfm_config
from usfm.data.phantoms.catalogue import PHANTOMS


def test_an_unknown_name_is_answered_by_the_known_ones():
    with pytest.raises(SystemExit, match="give one or more of step; got stpe"):
        benchmark.main(["stpe"])


def test_runs_take_turns_after_one_warm_up_each():
    called = []
    runs = {name: lambda name=name: called.append(name) for name in ("a", "b")}
    seconds = benchmark._alternating(runs)
    assert called == ["a", "b"] * (1 + benchmark.ROUNDS)
    assert {name: len(of_name) for name, of_name in seconds.items()} == {
        "a": benchmark.ROUNDS,
        "b": benchmark.ROUNDS,
    }


def test_the_noise_batch_has_slots_of_every_type_with_tasks_of_that_type():
    config = usfm_config.debug(usfm_config.base())
    tasks = tuple(PHANTOMS[id].task for id in sorted(PHANTOMS))
    batch = benchmark._random_batch(config, tasks)
    types = [tasks[i].type for i in batch["task"]]
    assert types == sorted(types)
    assert set(types) == {"classification", "detection", "regression", "segmentation"}
    assert batch["image"].shape == (9, 4, 128, 128, 1)
