"""What a study trains: cells shared by plans, and the config of each."""

import dataclasses
import itertools

import pytest

from usfm import checks
from usfm import config as usfm_config
from usfm.data.splits import make_splits
from usfm.errors import UserError
from usfm.study import cells
from usfm.study.cells import Arm, Cell
from usfm.study.plan import as_text, config_of, describe, partitions, plan
from usfm.study.run import prepare


@pytest.fixture
def config():
    config = usfm_config.study(usfm_config.debug(usfm_config.base()))
    config.data.root = "/nowhere"
    config.data.val_fraction = 0.0
    config.study.update(fractions=(0.5, 1.0), seeds=(0, 1))
    return config


def test_checkpoints_of_a_study_lie_in_its_workdir(config, tmp_path):
    config.checkpoint.directory = "gs://bucket/study"
    with pytest.raises(UserError, match=r"checkpoint\.directory=gs://bucket/study: the runs of a"):
        prepare(config, tmp_path)


@pytest.fixture
def folder(small_folder):
    """Six tasks, of which seg and det are of one clinical group."""
    grouped = {"seg": "pelvis", "det": "pelvis"}
    tasks = tuple(
        dataclasses.replace(task, group=grouped.get(task.id, task.id))
        for task in small_folder.tasks
    )
    return dataclasses.replace(small_folder, tasks=tasks)


@pytest.fixture
def study(config, folder):
    return plan(config, folder, make_splits(folder, val_fraction=0.0))


def test_plans_share_what_they_train_alike(study):
    found = study.cells()
    # Six tasks alone (four of them groups of their own too), one pair, and all: twice, twice.
    assert len(found) == (6 + 1 + 1) * 2 * 2
    assert len({cell.name for cell in found}) == len(found)
    grouped, alone = Arm("clinically_grouped", "sum", "tiny"), Arm("task_specific", "sum", "tiny")
    assert study.cell(grouped, 0.5, 1, "organ") == study.cell(alone, 0.5, 1, "organ")
    assert study.cell(grouped, 0.5, 1, "seg") == Cell(("det", "seg"), 0.5, 1, "sum", "tiny")
    assert study.cell(grouped, 0.5, 1, "seg") in found
    assert study.training_rows == {0.5: {t.id: 4 for t in study.tasks}, 1.0: {
        t.id: 7 for t in study.tasks}}  # fmt: skip


def test_cells_of_equal_shapes_stand_together(study):
    shapes = [study.shape(cell) for cell in study.cells()]
    changes = sum(a != b for a, b in itertools.pairwise(shapes))
    assert changes == len(set(shapes)) - 1


def test_methods_and_models_are_axes_but_single_tasks_have_no_method(config, folder):
    config.study.update(plans=("task_specific", "all_task"), methods=("sum", "pcgrad"))
    config.study.models = ("tiny", "vits16")
    study = plan(config, folder, make_splits(folder, val_fraction=0.0))
    assert [study.label(arm) for arm in study.arms] == [
        f"{name}/{model}"
        for model in ("tiny", "vits16")
        for name in ("task_specific", "all_task/sum", "all_task/pcgrad")
    ]
    pcgrad = Arm("all_task", "pcgrad", "vits16")
    assert study.baseline(pcgrad) == Arm("task_specific", "sum", "vits16")
    assert study.cell(pcgrad, 1.0, 0, "seg").method == "pcgrad"
    assert len(study.cells()) == (6 + 2) * 2 * 2 * 2


def test_a_study_is_read_as_it_was_written(study, tmp_path):
    cells.write(study, tmp_path)
    assert cells.read(tmp_path) == study


def test_the_config_of_a_cell_is_an_ordinary_one(config, study, tmp_path):
    pair, everything = Cell(("det", "seg"), 0.5, 1, "sum", "tiny"), study.cells()[-1]
    of_pair = config_of(config, study, pair, tmp_path / "splits.csv")
    checks.check(of_pair)
    assert "study" not in of_pair
    assert of_pair.tasks == "task:det,task:seg"
    assert (of_pair.data.fraction, of_pair.train.seed) == (0.5, 1)
    assert of_pair.data.splits_file == str(tmp_path / "splits.csv")
    assert of_pair.train.slots == 2  # one a task, whatever the plan
    assert not of_pair.multitask.record
    assert config_of(config, study, everything, tmp_path).train.slots == 6
    # What the advised plan is found from.
    assert config_of(config, study, everything, tmp_path).multitask.record
    config.study.slots_per_task = 0
    assert config_of(config, study, pair, tmp_path).train.slots == config.train.slots


def test_a_plan_of_ones_own_is_text_there_and_back(config, folder):
    config.study.partitions = "mine: seg+det | organ+plane | pts2 | pts3; other: seg | " + (
        "det+organ+plane+pts2+pts3"
    )
    config.study.plans = ("mine",)
    study = plan(config, folder, make_splits(folder, val_fraction=0.0))
    mine = study.partitions["mine"][1.0]
    assert sorted(mine.parts.values()) == [("det", "seg"), ("organ", "plane"), ("pts2",), ("pts3",)]
    assert partitions(as_text(mine), folder.tasks)["mine"] == mine
    assert list(study.partitions) == ["task_specific", "mine"]
    assert not study.is_open


def test_the_advised_plan_is_open_until_it_is_found_and_may_be_given(config, folder, study):
    assert study.is_open
    config.study.partitions = "advised: seg+det+organ+plane+pts2+pts3"
    config.study.plans = ("advised",)
    given = plan(config, folder, make_splits(folder, val_fraction=0.0))
    assert not given.is_open
    assert not any(given.records(cell) for cell in given.cells())


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("fractions", (), r"study\.fractions=\(\): give one or more"),
        ("fractions", (1.0, 1.0), "each once"),
        ("fractions", (0.0, 1.0), r"shares above 0, up to 1"),
        ("seeds", (1, 1), r"study\.seeds=\(1, 1\)"),
        ("plans", ("all_tsak",), "no plan 'all_tsak'; did you mean 'all_task'"),
        ("plans", ("advised",), "found from what 'all_task' records: add"),
        ("partitions", "seg | det", r"write 'NAME: task\+task \| task'"),
        ("partitions", "mine: seg | det", "'organ' is in no part"),
        ("partitions", "mine: seg | seg | det+organ+plane+pts2+pts3", "'seg' is given 2 times"),
    ],
)
def test_what_cannot_be_is_told(config, folder, field, value, told):
    config.study[field] = value
    with pytest.raises(UserError, match=told):
        plan(config, folder, make_splits(folder, val_fraction=0.0))


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("train.seconds", 2.0, r"train\.seconds=2: .* give --config\.train\.steps"),
        ("data.temperature", 2.0, r"temperature is set: .* --config\.data\.temperature=0"),
        ("data.temperature_schedule", "9=1", r"schedule is set: .*\.temperature_schedule=''"),
        (
            "data.weights",
            {"seg": 2.0},
            r"data\.weights is set: .* give --config\.data\.weights=\{\}",
        ),
    ],
)
def test_what_would_make_runs_unequal_is_refused(config, folder, field, value, told):
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=told):
        plan(config, folder, make_splits(folder, val_fraction=0.0))


def test_the_plan_is_told_with_its_time(study):
    seconds = {"classification": 0.1, "detection": 0.2, "regression": 0.3, "segmentation": 0.4}
    text = describe(study, seconds, steps=100)
    # 3 rounds of all tasks but for groups of one: 32 runs; 100 steps of (2 * 1.4 + .6) s, 4 times.
    assert "32 different runs of 100 steps: about 23 minutes" in text
    assert "task_specific          6 models a fraction and seed" in text
