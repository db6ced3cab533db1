import pickle
import time
from typing import Any

import numpy as np
import pytest

from usfm.data import store as store_module
from usfm.data.pipeline import iterate, slot_batches
from usfm.data.slots import mixing_weights

IMAGES = 3


def stream(store, rows=None, **changes) -> Any:
    indices = {task.id: np.arange(store.num_rows(task.id)) for task in store.tasks}
    settings: dict[str, Any] = {"slots": 8, "examples_per_slot": IMAGES, "seed": 1} | changes
    tasks = settings.pop("tasks", store.tasks)
    return slot_batches(store, tasks, indices | (rows or {}), **settings)


def assert_same(batch, other):
    assert batch.keys() == other.keys()
    for name in batch:
        np.testing.assert_array_equal(batch[name], other[name])


def rows_of(dataset, task, steps):
    """Rows of a task in the order they come, and the number of its slots."""
    rows = []
    for step in range(steps):
        batch = dataset[step]
        rows.extend(batch["row"][batch["task"] == task].ravel().tolist())
    return rows


def test_the_batches_are_the_same_for_any_number_of_workers_and_any_start(make_store):
    dataset = stream(make_store())
    for workers, start in ((0, 0), (1, 3), (2, 2)):
        batches = iterate(dataset, start, workers)
        try:
            for step in range(start, start + 4):
                assert_same(next(batches), dataset[step])
        finally:
            batches.close()


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_read_the_batch_of_one(make_store, processes):
    store = make_store()
    whole = stream(store)
    parts = [stream(store, process_index=i, process_count=processes) for i in range(processes)]
    for step in (0, 1, 17):
        batches = [part[step] for part in parts]
        joined = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
        assert_same(joined, whole[step])


def test_a_process_reads_only_its_own_slots(make_store, monkeypatch):
    store = make_store()
    read = []
    original = store_module.Store.read
    monkeypatch.setattr(
        store_module.Store,
        "read",
        lambda self, task_id, rows, out: read.append(task_id) or original(self, task_id, rows, out),
    )
    stream(store, process_index=1, process_count=4)[0]
    assert len(read) == 2


def test_slots_lie_in_the_order_of_types_with_fixed_numbers(make_store):
    store = make_store()
    dataset = stream(store)
    types = [[store.tasks[task].type for task in dataset[step]["task"]] for step in range(6)]
    assert types[0] == sorted(types[0])
    assert all(later == types[0] for later in types)


def test_the_same_seed_gives_the_same_stream_and_another_another(make_store):
    store = make_store()
    assert_same(stream(store)[5], stream(store)[5])
    assert (stream(store)[5]["row"] != stream(store, seed=2)[5]["row"]).any()


def test_every_row_comes_once_an_epoch_in_a_new_order(make_store):
    store = make_store()
    (seg,) = [i for i, task in enumerate(store.tasks) if task.id == "seg"]
    rows = rows_of(stream(store), seg, steps=14)
    epochs = [tuple(rows[i : i + 7]) for i in range(0, len(rows) - 6, 7)]
    assert len(epochs) >= 6
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(epochs)) > len(epochs) // 2


def test_only_the_given_rows_are_drawn_even_when_fewer_than_a_slot_holds(make_store):
    store = make_store()
    dataset = stream(store, rows={"seg": np.array([5, 2]), "det": np.array([4])})
    for task, expected in (("seg", {5, 2}), ("det", {4})):
        place = [task.id for task in store.tasks].index(task)
        assert set(rows_of(dataset, place, steps=3)) == expected
    assert dataset[0]["valid"].all()


def test_tasks_of_equal_size_have_orders_of_their_own(make_store):
    store = make_store()
    dataset = stream(store)
    organ, plane = (rows_of(dataset, task, steps=20) for task in (1, 2))
    assert organ[:14] != plane[:14]


def test_a_further_task_leaves_the_orders_of_the_others(make_store):
    store = make_store()
    without = [task for task in store.tasks if task.id != "det"]
    few = rows_of(stream(store, tasks=without), [task.id for task in without].index("organ"), 9)
    many = rows_of(stream(store), [task.id for task in store.tasks].index("organ"), 9)
    shared = min(len(few), len(many))
    assert shared >= 14
    assert few[:shared] == many[:shared]


def test_slots_of_a_type_go_to_its_tasks_by_weight(make_store):
    store = make_store()
    weights = {task.id: 1.0 for task in store.tasks} | {"organ": 3.0}
    dataset = stream(store, weights=weights)
    tasks = np.concatenate([dataset[step]["task"] for step in range(40)])
    organ, plane = (int((tasks == task).sum()) for task in (1, 2))
    assert organ + plane == 40 * 4  # of 8 slots, by a weight of 4 of 8
    assert organ == 3 * plane


@pytest.mark.parametrize(
    ("many", "few", "temperature", "ratio"),
    [(40, 10, 0.0, 1), (40, 10, 1.0, 4), (40, 10, 2.0, 2), (32, 8, 2.0, 2)],
)
def test_tasks_are_mixed_in_exact_proportion(make_store, many, few, temperature, ratio):
    store = make_store(40)
    tasks = [task for task in store.tasks if task.type == "classification"]
    rows = {"organ": np.arange(many), "plane": np.arange(few)}
    weights = mixing_weights(rows, temperature)
    dataset = stream(store, tasks=tasks, rows=rows, weights=weights, examples_per_slot=1)
    drawn = np.concatenate([dataset[step]["task"] for step in range(150)])
    organ, plane = np.bincount(drawn).tolist()
    assert (organ, plane) == (1200 * ratio / (ratio + 1), 1200 / (ratio + 1))


def test_a_late_step_costs_no_more_than_the_first(make_store):
    dataset = stream(make_store())
    start = time.perf_counter()
    late = dataset[1_000_000]
    batches = iterate(dataset, 1_000_000, workers=0)
    assert_same(next(batches), late)
    batches.close()
    assert time.perf_counter() - start < 1


def test_the_store_can_be_sent_to_another_process(make_store):
    store = make_store()
    sent = pickle.dumps(store)
    assert len(sent) < 10_000
    assert pickle.loads(sent) == store


def test_a_task_without_rows_is_an_error(make_store):
    rows = {"seg": np.array([], int)}
    with pytest.raises(ValueError, match="task seg has no row to train on"):
        stream(make_store(), rows=rows)
    # Not that its weight is 0, which nobody gave it.
    with pytest.raises(ValueError, match="task seg has no row to train on"):
        stream(make_store(), rows=rows, weights=mixing_weights(rows, 1.0))


def test_slots_that_processes_cannot_share_are_an_error(make_store):
    with pytest.raises(ValueError, match="8 slots cannot be shared by 3 processes"):
        stream(make_store(), process_count=3)
