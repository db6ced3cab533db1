import collections
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from usfm import config as usfm_config
from usfm.data.mixing import Mix, Stage, mixing_weights, stages_of, temperatures
from usfm.data.slots import slots_per_type
from usfm.errors import UserError
from usfm.tasks import TYPES, Task

A, B, C = (Task(id, "classification") for id in "abc")
D = Task("d", "segmentation")
WEIGHTS = st.floats(0.01, 1000)


def data(**fields):
    config = usfm_config.base()
    config.update_from_flattened_dict({f"data.{name}": value for name, value in fields.items()})
    return config.data


@pytest.mark.parametrize(
    ("temperature", "ratio"), [(0.0, 1.0), (0.5, 16.0), (1.0, 4.0), (2.0, 2.0), (1e9, 1.0)]
)
def test_tasks_are_mixed_by_their_rows_to_the_inverse_of_the_temperature(temperature, ratio):
    weights = mixing_weights({"many": np.arange(40), "few": np.arange(10)}, temperature)
    assert list(weights) == ["many", "few"]
    assert weights["many"] / weights["few"] == pytest.approx(ratio)


def test_no_temperature_draws_tasks_as_no_weights_do():
    tasks = [Task("a", "segmentation"), Task("b", "detection"), Task("c", "detection")]
    rows = {"a": np.arange(500), "b": np.arange(3), "c": np.arange(20)}
    assert slots_per_type(tasks, mixing_weights(rows, 0.0), 9) == slots_per_type(tasks, None, 9)


def test_the_shares_of_tasks_are_of_the_whole_slots_of_their_type():
    tasks = [Task("a", "segmentation"), Task("b", "detection"), Task("c", "segmentation")]
    rows = {"a": np.arange(60), "b": np.arange(1), "c": np.arange(20)}
    weights = mixing_weights(rows, 1.0)
    mix = Mix(tuple(tasks), 8, (Stage(0, weights),))
    assert mix.slots == {"detection": 1, "segmentation": 7}
    assert mix.shares(mix.stages[0]) == pytest.approx(
        {"a": 7 / 8 * 3 / 4, "b": 1 / 8, "c": 7 / 8 / 4}
    )


def test_tasks_get_slots_in_exact_proportion_to_their_weights():
    # In steps of 4 slots: 3 of classification, 1 of segmentation.
    mix = Mix((A, B, C, D), 4, (Stage(0, {"a": 0.5, "b": 1.0, "c": 3.5, "d": 1.0}),))
    assert mix.slots == {"classification": 3, "segmentation": 1}
    assert mix.dealt(1000) == {"a": 300, "b": 600, "c": 2100, "d": 1000}
    # 32 ** .5 and 8 ** .5 are as 2 to 1, whatever floats make of them.
    rows = {"a": np.arange(32), "b": np.arange(8)}
    assert Mix((A, B), 3, (Stage(0, mixing_weights(rows, 2.0)),)).dealt(500) == {
        "a": 1000,
        "b": 500,
    }


def test_slots_of_a_stage_are_in_its_proportion_and_of_the_types_as_at_the_start():
    stages = (
        Stage(0, {"a": 1.0, "b": 1.0, "d": 2.0}),
        Stage(50, {"a": 1.0, "b": 4.0, "d": 100.0}),
        Stage(75, {"a": 3.0, "b": 1.0, "d": 0.01}),
    )
    mix = Mix((A, B, D), 4, stages)
    assert mix.slots == {"classification": 2, "segmentation": 2}
    ends = [mix.dealt(steps) for steps in (0, 50, 75, 175)]
    stage = [
        {id: after[id] - before[id] for id in "abd"} for before, after in itertools.pairwise(ends)
    ]
    assert stage == [
        {"a": 50, "b": 50, "d": 100},
        {"a": 10, "b": 40, "d": 50},
        {"a": 150, "b": 50, "d": 200},
    ]
    shares = [mix.shares(stage) for stage in stages]
    assert shares[1] == pytest.approx({"a": 0.1, "b": 0.4, "d": 0.5})


@given(
    st.lists(st.tuples(st.sampled_from(TYPES), WEIGHTS, WEIGHTS), min_size=1, max_size=9),
    st.integers(4, 20),
    st.integers(1, 30),
)
def test_every_slot_of_every_task_comes_once_in_its_order_and_near_its_share(drawn, size, change):
    tasks = tuple(Task(f"t{i}", type_) for i, (type_, _, _) in enumerate(drawn))
    stages = tuple(
        Stage(start, {task.id: of[which] for task, of in zip(tasks, drawn, strict=True)})
        for start, which in ((0, 1), (change, 2))
    )
    mix = Mix(tasks, size, stages)
    came = collections.Counter()
    for step in range(2 * change):
        assert mix.dealt(step) == {task.id: came[i] for i, task in enumerate(tasks)}
        batch = list(mix.of(step))
        types = [tasks[task].type for task, _ in batch]
        assert types == [type_ for type_, count in mix.slots.items() for _ in range(count)]
        for task, nth in batch:
            assert nth == came[task]
            came[task] += 1
    # Of n tasks whose shares are rounded one after the other, none is n slots off, in two stages.
    shares = [mix.shares(stage) for stage in stages]
    for i, task in enumerate(tasks):
        fair = size * change * sum(share[task.id] for share in shares)
        # Weights in hundredths of the least are up to .5 % off.
        assert abs(came[i] - fair) < 2 * len(tasks) + 0.01 * fair


def test_any_step_is_found_at_once_and_exactly():
    weights = {"a": 1.0, "b": 1e9, "c": 7.7e9}  # as a low temperature gives
    mix = Mix((A, B, C), 3, (Stage(0, weights),))
    late = 10**12
    dealt = mix.dealt(late)
    assert sum(dealt.values()) == 3 * late
    assert dealt["b"] == pytest.approx(3 * late / 8.7, abs=1e3)
    for task, nth in mix.of(late):
        assert nth == dealt["abc"[task]]
        dealt["abc"[task]] += 1
    assert dealt == mix.dealt(late + 1)


def test_explicit_weights_multiply_those_of_the_temperature():
    rows = {"a": np.arange(40), "b": np.arange(10)}
    (stage,) = stages_of(rows, data(temperature=1.0, weights={"b": 3.0}))
    assert stage == Stage(0, {"a": 40.0, "b": 30.0})
    (stage,) = stages_of(rows, data(weights={"b": 3.0}))
    assert stage == Stage(0, {"a": 1.0, "b": 3.0})


def test_a_schedule_has_a_stage_for_each_temperature():
    rows = {"a": np.arange(40), "b": np.arange(10)}
    stages = stages_of(rows, data(temperature=1.0, temperature_schedule="100=2, 250=0"))
    assert [stage.start for stage in stages] == [0, 100, 250]
    weights = [stage.weights or {} for stage in stages]
    ratios = [of_stage["a"] / of_stage["b"] for of_stage in weights]
    assert ratios == pytest.approx([4.0, 2.0, 1.0])


def test_a_weight_of_a_task_that_there_is_not_is_refused():
    with pytest.raises(UserError, match=r"data\.weights: the folder has no task 'organs'; .*organ"):
        stages_of({"organ": np.arange(3)}, data(weights={"organs": 2.0}))


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        ("100", r"'100' is not STEP=TEMPERATURE, such as 5000=2"),
        ("100=warm", r"'100=warm' is not STEP=TEMPERATURE"),
        ("0=1", r"'0=1' is not after step 0: give rising steps, above 0"),
        ("200=1,100=2", r"'100=2' is not after step 200"),
        ("100=0.05", r"'100=0\.05': give 0 .*, or 0\.1 or more"),
        ("100=inf", r"'100=inf': give 0"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_by_its_part(schedule, told):
    with pytest.raises(UserError, match=r"data\.temperature_schedule: " + told):
        temperatures(data(temperature_schedule=schedule))
