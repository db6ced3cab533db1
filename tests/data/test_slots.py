import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from usfm.data import memory
from usfm.data.slots import read_batch, slots_per_type, type_slices
from usfm.tasks import TYPES, Task

TASKS = st.lists(
    st.tuples(st.sampled_from(TYPES), st.floats(0.01, 100)), min_size=1, max_size=30
).map(lambda items: [(Task(f"t{i}", type_), weight) for i, (type_, weight) in enumerate(items)])


@given(TASKS, st.integers(4, 200))
def test_slots_are_shared_out_whole_and_near_the_weights(weighted, slots):
    tasks = [task for task, _ in weighted]
    weights = {task.id: weight for task, weight in weighted}
    counts = slots_per_type(tasks, weights, slots)
    assert sum(counts.values()) == slots
    assert list(counts) == [type_ for type_ in TYPES if any(t.type == type_ for t in tasks)]
    quota = {
        type_: slots * sum(w for t, w in weighted if t.type == type_) / sum(weights.values())
        for type_ in counts
    }
    assert min(counts.values()) >= 1
    if min(quota.values()) >= 1:
        assert all(abs(counts[type_] - quota[type_]) < 1 for type_ in counts)


def test_the_largest_remainder_gets_the_last_slot():
    tasks = [
        *(Task(f"s{i}", "segmentation") for i in range(12)),
        *(Task(f"c{i}", "classification") for i in range(9)),
        *(Task(f"d{i}", "detection") for i in range(3)),
        *(Task(f"r{i}", "regression") for i in range(3)),
    ]
    # Shares of 16 slots: 5.33, 1.78, 1.78 and 7.11.
    counts = slots_per_type(tasks, None, 16)
    assert counts == {"classification": 5, "detection": 2, "regression": 2, "segmentation": 7}
    assert type_slices(counts) == {
        "classification": slice(0, 5),
        "detection": slice(5, 7),
        "regression": slice(7, 9),
        "segmentation": slice(9, 16),
    }


def test_a_type_of_little_weight_keeps_one_slot():
    tasks = [Task("a", "segmentation"), Task("b", "detection"), Task("c", "regression")]
    counts = slots_per_type(tasks, {"a": 1000.0, "b": 1.0, "c": 1.0}, 4)
    assert counts == {"detection": 1, "regression": 1, "segmentation": 2}


def test_fewer_slots_than_types_is_an_error():
    tasks = [Task("a", "segmentation"), Task("b", "detection")]
    with pytest.raises(ValueError, match=r"1 slots cannot hold 2 .* set train.slots to 2"):
        slots_per_type(tasks, None, 1)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_not_above_zero_is_an_error(weight):
    with pytest.raises(ValueError, match="weight of task a"):
        slots_per_type([Task("a", "segmentation")], {"a": weight}, 4)


def test_a_task_without_a_weight_is_an_error():
    with pytest.raises(ValueError, match="weight of task a is None"):
        slots_per_type([Task("a", "segmentation")], {"b": 1.0}, 4)


def test_a_batch_has_the_rows_of_each_slot_and_zeros_elsewhere(make_store, monkeypatch):
    # Memory that an earlier batch has left.
    monkeypatch.setattr(memory, "empty", lambda shape: np.full(shape, 7, np.uint8))
    store = make_store()
    ids = [task.id for task in store.tasks]
    slots = [("plane", [6, 2]), ("det", [0, 1, 2]), ("pts2", [5]), ("seg", [3, 3, 4])]
    batch = read_batch(
        store, store.tasks, [(ids.index(id_), np.array(rows)) for id_, rows in slots], images=3
    )
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "image": ((4, 3, 16, 24, 1), "uint8"),
        "task": ((4,), "int32"),
        "row": ((4, 3), "int32"),
        "valid": ((4, 3), "bool"),
        "label": ((4, 3), "int32"),
        "box": ((4, 3, 4), "float32"),
        "points": ((4, 3, 3, 2), "float32"),
        "points_valid": ((4, 3, 3), "bool"),
        "mask": ((4, 3, 16, 24), "uint8"),
    }
    assert [ids[task] for task in batch["task"]] == [id_ for id_, _ in slots]
    filled = np.zeros((4, 3), bool)
    for slot, (id_, rows) in enumerate(slots):
        filled[slot, : len(rows)] = True
        assert batch["row"][slot, : len(rows)].tolist() == rows
        np.testing.assert_array_equal(
            batch["image"][slot, : len(rows)], store.read(id_, rows)["image"]
        )
    np.testing.assert_array_equal(batch["valid"], filled)
    assert not any(array[~filled].any() for name, array in batch.items() if name != "task")

    assert batch["label"][0].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(batch["box"][1], store.read("det", [0, 1, 2])["box"])
    np.testing.assert_array_equal(batch["points"][2, :1, :2], store.read("pts2", [5])["points"])
    # A task of two points leaves the third of the run empty.
    assert batch["points_valid"][2, 0].tolist() == [True, True, False]
    np.testing.assert_array_equal(batch["mask"][3], store.read("seg", [3, 3, 4])["mask"])
    for own, name in enumerate(("label", "box", "points", "mask")):
        assert not np.delete(batch[name], own, axis=0).any()


def test_fields_that_no_task_of_the_run_uses_are_absent(make_store):
    store = make_store()
    tasks = [task for task in store.tasks if task.type == "classification"]
    batch = read_batch(store, tasks, [(0, np.array([0, 1]))], images=2)
    assert set(batch) == {"image", "task", "row", "valid", "label"}
    assert batch["label"][0].tolist() == [0, 1]
