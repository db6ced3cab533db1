import collections
import pickle
import threading
from typing import Any

import numpy as np
import pytest

from usfm.data import order
from usfm.data import store as store_module
from usfm.data.mixing import Mix, Stage, mixing_weights
from usfm.data.pipeline import iterate, slot_batches

IMAGES = 3


def stream(store, rows=None, **changes) -> Any:
    indices = {task.id: np.arange(store.num_rows(task.id)) for task in store.tasks}
    settings: dict[str, Any] = {"examples_per_slot": IMAGES, "seed": 1} | changes
    mix = Mix(settings.pop("tasks", store.tasks), 8, settings.pop("stages", (Stage(),)))
    return slot_batches(store, mix, indices | (rows or {}), **settings)


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
    store = make_store()
    dataset = stream(
        store,
        stages=(Stage(), Stage(4, {task.id: 1.0 for task in store.tasks} | {"organ": 3.0})),
        classes={"plane": np.arange(7) % 2},
    )
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


def test_a_change_of_weights_leaves_the_orders_within_tasks(make_store):
    store = make_store()
    organ = [task.id for task in store.tasks].index("organ")
    alike = {task.id: 1.0 for task in store.tasks}
    stages = (Stage(0, alike), Stage(3, alike | {"organ": 0.2}), Stage(5, alike | {"organ": 7.0}))
    before, after = (rows_of(stream(store, **of), organ, 9) for of in ({}, {"stages": stages}))
    shared = min(len(before), len(after))
    assert shared >= 21
    assert before[:shared] == after[:shared]
    assert [len(rows_of(stream(store, stages=stages), organ, s)) for s in (3, 5)] == [15, 18]


def test_classes_come_equally_often_and_every_row_of_a_class_once_an_epoch_of_it(make_store):
    store = make_store()
    organ = [task.id for task in store.tasks].index("organ")
    rows, labels = np.array([1, 2, 3, 4, 5, 6]), np.array([0, 2, 2, 2, 2, 3])
    changes = {"rows": {"organ": rows}, "classes": {"organ": labels}}
    dataset = stream(store, **changes)
    drawn = rows_of(dataset, organ, steps=20)
    turns = np.array(drawn).reshape(-1, 3)  # classes 0, 2 and 3; there is no row of class 1
    of_row = dict(zip(rows.tolist(), labels.tolist(), strict=True))
    classes = [tuple(of_row[row] for row in turn) for turn in turns.tolist()]
    assert all(sorted(turn) == [0, 2, 3] for turn in classes)
    assert len(set(classes)) > 1
    large = [row for row in drawn if of_row[row] == 2]
    epochs = [tuple(large[i : i + 4]) for i in range(0, len(large) - 3, 4)]
    assert len(epochs) >= 4
    assert all(sorted(epoch) == [2, 3, 4, 5] for epoch in epochs)
    assert len(set(epochs)) > 1
    # Other tasks, and where the run goes on, are not concerned.
    assert rows_of(dataset, organ + 1, 5) == rows_of(stream(store), organ + 1, 5)
    batches = iterate(dataset, 7, workers=0)
    assert_same(next(batches), stream(store, **changes)[7])
    batches.close()


def test_a_late_step_asks_for_as_little_as_the_first(make_store, monkeypatch):
    store = make_store()
    # By thread: closing an iterator does not wait for the one that reads ahead for it.
    made = collections.Counter()
    original = order._order.__wrapped__

    def counted(*of):
        made[threading.get_ident()] += 1
        return original(*of)

    monkeypatch.setattr(order, "_order", counted)
    labels = {id: np.arange(7) % 2 for id in ("organ", "plane")}
    stages = (Stage(), Stage(600_000, {task.id: 2.0 for task in store.tasks} | {"organ": 3.0}))
    for changes in ({}, {"stages": stages}, {"classes": labels}):
        dataset, counts = stream(store, **changes), []
        for step in (2, 1_000_000):
            made.clear()
            at_once = dataset[step]
            counts.append(made[threading.get_ident()])
            batches = iterate(dataset, step, workers=0)
            assert_same(next(batches), at_once)
            batches.close()
        # One order or two of each of 8 slots, as its images lie in one epoch or two; by classes,
        # as many again for every image of it.
        assert min(counts) >= 8
        assert max(counts) <= (8 * (2 + 2 * IMAGES) if "classes" in changes else 8 * 2)


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
        stream(make_store(), rows=rows, stages=(Stage(0, mixing_weights(rows, 1.0)),))


def test_slots_that_processes_cannot_share_are_an_error(make_store):
    with pytest.raises(ValueError, match="8 slots cannot be shared by 3 processes"):
        stream(make_store(), process_count=3)
