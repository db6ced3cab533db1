"""Planted groups of tasks, found or not according to the noise of their recorded gradients."""

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from usfm.errors import UserError
from usfm.study.advise import (
    ALL,
    ALONE,
    CLINICAL,
    FOUND,
    UNKNOWN,
    advise,
    recommended,
    run_advise,
)
from usfm.study.affinity import affinity
from usfm.study.calibration import Measured, fit
from usfm.study.describe import describe
from usfm.study.grouping import labels_of
from usfm.study.level import level
from usfm.study.stability import join, stability
from usfm.tasks import Task
from usfm.tasks.plans import clinically_grouped
from usfm.training.record import Record

# a to c and d to f agree, g contradicts a to c, h has nothing to do with anybody.
PLANTED = np.array([0, 0, 0, 1, 1, 1, 2, 3])
NAMES = tuple("abcdefgh")
TASKS = tuple(
    Task(name, "classification", num_classes=2, group=group)
    for name, group in zip(NAMES, ["x", "x", "x", "y", "y", "z", "z", "z"], strict=True)
)
ROWS: dict[str, int] = dict.fromkeys(NAMES, 100)


def planted(noise: float, seed: int, *, steps=200, absent: str = "") -> dict[str, np.ndarray]:
    """A record of gradients in 64 dimensions: their group's direction, their own, and noise."""
    rng = np.random.default_rng(seed)
    axes = np.eye(64)
    mean = axes[PLANTED] + 0.5 * axes[10 : 10 + len(NAMES)]
    mean[6] = -axes[0] + 0.5 * axes[16]
    halves = mean + noise * rng.normal(size=(2, steps, len(NAMES), 64))
    gradient = halves.mean(0)
    present = rng.random((steps, len(NAMES))) < 0.8
    present[:, [name in absent for name in NAMES]] = False
    both = present[:, :, None] & present[:, None, :]
    record = {
        "tasks": np.array(NAMES),
        "groups": np.array(["early", "late"]),
        "step": np.arange(1, steps + 1),
        "learning_rate": np.full(steps, 1e-3, np.float32),
        "losses": np.where(present, 0.7, 0).astype(np.float32),
        "present": present,
    }
    gramian = np.where(both, gradient @ gradient.swapaxes(1, 2), 0)
    norms = np.where(present, (halves[0] * halves[1]).sum(-1), np.nan)
    for prefix in ("", "preconditioned_"):
        record[f"{prefix}gramian"] = np.stack([0.5 * gramian] * 2, 1).astype(np.float32)
        record[f"{prefix}square_norm"] = np.stack([0.5 * norms] * 2, 1).astype(np.float32)
    return record


@pytest.fixture(scope="module")
def clear():
    return advise([planted(0.3, 0)], TASKS, ROWS)


def by_task(advice):
    return {line.task: line for line in advice.lines}


def test_planted_groups_are_found_and_the_contradicting_task_is_kept_apart(clear):
    assert adjusted_rand_score(PLANTED, labels_of(clear.grouping.parts, NAMES)) == 1
    lines = by_task(clear)
    assert [lines[name].choice for name in "abcdefgh"] == [CLINICAL] * 3 + [FOUND] * 3 + [ALONE] * 2
    assert recommended(clear).parts == {
        "x": ("a", "b", "c"),
        "with_d": ("d", "e", "f"),
        "g": ("g",),
        "h": ("h",),
    }
    # One step along a partner takes lr / loss off: the product of the mean gradients is 1.
    assert lines["a"].gain == pytest.approx(1e-3 / 0.7, rel=0.15)
    assert lines["a"].gain / lines["a"].own == pytest.approx(1 / 1.25, rel=0.15)
    assert lines["g"].gain == 0 > lines["g"].all_gain
    assert lines["a"].all_gain < lines["a"].gain == lines["a"].clinical_gain
    assert min(line.agreement for line in clear.lines) > 0.95


def test_where_noise_hides_the_groups_the_evidence_is_not_enough():
    advice = advise([planted(8.0, 0)], TASKS, ROWS)
    assert [line.choice for line in advice.lines].count(UNKNOWN) >= 6
    assert {FOUND, CLINICAL, ALL} & {line.choice for line in advice.lines} == set()
    assert set(recommended(advice).parts) == set(NAMES)


def test_large_gradients_of_the_first_steps_do_not_drown_the_rest(clear):
    record = planted(0.3, 0)
    size = np.where(np.arange(200) < 10, 20, 1)[:, None, None]
    for name in ("preconditioned_gramian", "preconditioned_square_norm"):
        record[name] = record[name] * (size[..., None] if name.endswith("gramian") else size) ** 2
    plain = affinity(record, preconditioned=True)
    assert plain.lookahead[0, 1] < plain.lookahead_interval[0, 1]
    drowned, plainly = by_task(advise([record], TASKS, ROWS)), by_task(clear)
    assert [line.choice for line in drowned.values()] == [line.choice for line in clear.lines]
    assert drowned["a"].gain == pytest.approx(plainly["a"].gain, rel=0.01)
    levelled = affinity(level(planted(0.3, 0)), preconditioned=True)
    raw = affinity(planted(0.3, 0), preconditioned=True)
    np.testing.assert_allclose(levelled.lookahead, raw.lookahead, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 50])
def test_a_record_of_few_steps_is_no_evidence(steps):
    advice = advise([planted(0.01, 0, steps=steps)], TASKS, ROWS)
    assert {line.choice for line in advice.lines} == {UNKNOWN}


def test_a_task_that_was_never_present_is_not_advised_on_and_does_not_disturb():
    lines = by_task(advise([planted(0.3, 0, absent="b")], TASKS, ROWS))
    assert lines["b"].choice == UNKNOWN
    assert lines["b"].group == ("b",)
    assert lines["a"].group == ("a", "c")
    assert (lines["d"].choice, lines["h"].choice) == (FOUND, ALONE)


def test_all_agreeing_are_advised_to_be_together():
    record = planted(0.3, 0)
    keep = [0, 1, 2]
    record["tasks"] = record["tasks"][keep]
    for name in ("losses", "present"):
        record[name] = record[name][:, keep]
    for prefix in ("", "preconditioned_"):
        record[f"{prefix}gramian"] = record[f"{prefix}gramian"][:, :, :3, :3]
        record[f"{prefix}square_norm"] = record[f"{prefix}square_norm"][:, :, keep]
    advice = advise([record], TASKS[:3], ROWS)
    assert [line.choice for line in advice.lines] == [ALL] * 3
    assert recommended(advice).parts == {"all": ("a", "b", "c")}


def test_a_seed_gives_the_same_and_order_of_tasks_does_not_matter(clear):
    assert advise([planted(0.3, 0)], TASKS[::-1], ROWS) == clear


def test_pairs_are_together_in_as_many_resamples_as_noise_leaves_them():
    clear, hidden = (stability([planted(noise, 0)]) for noise in (0.3, 1.5))
    groups = PLANTED[:, None] == PLANTED
    assert (clear.together == groups).mean() > 0.95
    assert (np.diagonal(hidden.together) == 1).all()
    assert 0 < hidden.together[0, 1] < 1
    assert (hidden.agreement(PLANTED) <= clear.agreement(PLANTED)).all()
    again = stability([planted(1.5, 0)])
    np.testing.assert_array_equal(again.partitions, hidden.partitions)


def test_the_steps_that_were_enough_grow_with_noise():
    quiet, noisy = (stability([planted(noise, 0)]).steps for noise in (0.1, 0.6))
    assert quiet is not None
    assert noisy is None or noisy > quiet


def test_seeds_that_disagree_leave_doubt():
    one, other = planted(0.3, 0), planted(0.3, 1)
    for prefix in ("", "preconditioned_"):
        other[f"{prefix}gramian"][:, :, [0, 1], [1, 0]] *= -1  # a and b contradict each other here
    agreeing = advise([one, planted(0.3, 1)], TASKS, ROWS)
    doubtful = advise([one, other], TASKS, ROWS)
    assert by_task(agreeing)["a"].choice == CLINICAL
    assert by_task(doubtful)["a"].agreement < by_task(agreeing)["a"].agreement
    assert by_task(doubtful)["d"].choice == FOUND
    assert doubtful.seeds == 2
    assert agreeing.steps == len(join([one, other])["step"]) == 400


def test_measured_gains_make_gains_of_the_metric(clear):
    groups = [(*part,) for part in clinically_grouped(TASKS).parts.values()]
    together: dict[tuple[str, ...], float] = {("a", "b", "c"): 0.2, ("d", "e"): 0.2}
    measured = [
        Measured(task, group, together.get(group, -0.1)) for group in groups for task in group
    ]
    advice = advise([planted(0.3, 0)], TASKS, ROWS, measured=measured)
    assert advice.predictor is not None
    assert by_task(advice)["a"].choice == CLINICAL
    assert 0.1 < by_task(advice)["a"].gain < 0.25
    assert by_task(advice)["g"].choice == ALONE
    # Of what the gradients alone leave open, measured harm can decide.
    noisy = advise([planted(0.0, 0)], TASKS, ROWS)
    harm = [Measured(task.id, tuple(t.id for t in TASKS), -0.2 - 0.01 * n)
            for n, task in enumerate(TASKS)]  # fmt: skip
    harmed = advise([planted(0.0, 0)], TASKS, ROWS, measured=harm)
    assert harmed.predictor is not None
    assert {line.choice for line in harmed.lines} == {ALONE}
    assert {line.choice for line in noisy.lines} != {ALONE}
    assert "gain: relative change of the metric" in describe(advice)
    assert "relative change" not in describe(clear)


def test_the_table_says_what_is_advised_and_how_sure(clear):
    lines = describe(clear).splitlines()
    assert " ".join(lines[0].split()) == "task rows advice gain own steps clinical all sure with"
    assert lines[2].startswith("a      100  clinical group  +1.")
    assert lines[2].endswith("100%  b, c")
    assert lines[9].split()[:4] == ["h", "100", "alone", "+0.0e+00"]
    assert "200 steps were recorded, of 1 seed(s); the best partition is the same" in lines[-1]
    unsettled = dataclasses.replace(clear, enough_steps=None)
    assert describe(unsettled).endswith("the best partition changed until the last of them")


def test_a_run_is_advised_on_from_its_workdir(tmp_path, clear):
    with pytest.raises(UserError, match=r"train with --config\.multitask\.record=True"):
        run_advise(tmp_path, TASKS, ROWS)
    record = planted(0.3, 0)
    steps = {n: v for n, v in record.items() if n not in ("tasks", "groups", "step")}
    writer = Record(tmp_path / "gramians", NAMES, ["early", "late"], 0)
    for step in range(200):
        values = {name: value[step] for name, value in steps.items()}
        metrics = {name: values.pop(name) for name in ("losses", "present")}
        writer.add(step + 1, {**metrics, "record": values})
        if step in (99, 199):
            writer.write(step + 1)
    assert run_advise(tmp_path, TASKS, ROWS) == clear


def test_records_of_other_tasks_are_told():
    record = planted(0.3, 0, steps=4)
    with pytest.raises(UserError, match="the record is of a, b, c, d, e, f, g, h, not of a, b;"):
        advise([record], TASKS[:2], ROWS)
    other = {**record, "tasks": np.array([*"abcdefgi"])}
    with pytest.raises(UserError, match=r"records of different tasks: .*; give runs of the same"):
        advise([record, other], TASKS, ROWS)


def test_a_fitted_gain_is_the_surer_the_more_was_measured_nearby():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(400, 3))
    gain = 0.1 + table @ [0.2, 0.0, -0.1] + rng.normal(0, 0.3, 400)
    predictor = fit(table, gain)
    middle, far = np.zeros(3), np.full(3, 10.0)
    # The standard error of a mean of 400, and of a slope 10 units from the middle in each of three.
    assert predictor.doubt(middle) == pytest.approx(0.3 / 20, rel=0.2)
    assert predictor.doubt(far) == pytest.approx(0.3 / 20 * np.sqrt(1 + 300), rel=0.2)
    assert fit(table[:50], gain[:50]).doubt(middle) > 2 * predictor.doubt(middle)
    assert abs(predictor(far) - 1.1) < 3 * predictor.doubt(far)
