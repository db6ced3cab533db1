import numpy as np
import pytest

from usfm.data.folder import read_folder
from usfm.data.source import open_splits
from usfm.errors import UserError
from usfm.training import inputs


@pytest.fixture
def make_inputs(make_config):
    """Makes the inputs of a run with some fields changed."""

    def make(**fields) -> inputs.Inputs:
        config = make_config(**fields)
        folder = read_folder(config.data.root, tasks=config.tasks)
        return inputs.inputs_of(config, folder, open_splits(config, folder), None)

    return make


def test_balanced_classes_are_drawn_alike_and_then_count_alike(make_inputs):
    fields = {"data.class_balanced": True, "tasks": "task:breast_2cls", "data.val_fraction": 0.2}
    balanced = make_inputs(**fields)
    labels = np.concatenate([balanced.batches[step]["label"].ravel() for step in range(5)])
    assert np.bincount(labels).tolist() == [20, 20]
    np.testing.assert_array_equal(balanced.own.class_weights, [[1, 1]])


def test_what_was_drawn_is_told_by_task_and_row(make_inputs):
    # 3 steps of 8 slots of one image; of 6 : 2 slots, as data.weights says.
    run = make_inputs(**{"data.weights": {"breast_2cls": 3.0}})
    rows = run.rows
    assert run.drawn(3, 1) == (
        f"images drawn: breast_2cls 18 ({18 / rows['breast_2cls']:.1f} a row), "
        f"lung_2cls 6 ({6 / rows['lung_2cls']:.1f} a row)"
    )
    tasks = np.concatenate([run.batches[step]["task"] for step in range(3)])
    assert np.bincount(tasks).tolist() == [18, 6]
    assert run.shares() == ["share of slots: breast_2cls 75.0%, lung_2cls 25.0%"]


def test_a_schedule_is_told_stage_by_stage(make_inputs):
    run = make_inputs(**{"data.weights": {"breast_2cls": 3.0}, "data.temperature_schedule": "20=0"})
    assert run.shares() == [
        "share of slots: breast_2cls 75.0%, lung_2cls 25.0%",
        "share of slots from step 20 on: breast_2cls 75.0%, lung_2cls 25.0%",
    ]


def test_a_weight_of_an_unknown_task_is_told_before_the_store_is_built(make_inputs, monkeypatch):
    monkeypatch.setattr(inputs, "open_store", lambda *_: pytest.fail("built"))
    with pytest.raises(UserError, match=r"data\.weights: the folder has no task 'lung_2cl'; .*"):
        make_inputs(**{"data.weights": {"lung_2cl": 2.0}})
