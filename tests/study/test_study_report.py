"""The page of a study: that it says what was found, of any study, to anyone, without a network."""

import dataclasses
import math
import re
import shlex
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from usfm.study import plan as study_plan
from usfm.study.advise import ALONE, CLINICAL, UNKNOWN, Advice, TaskAdvice, recommended
from usfm.study.affinity import Affinity
from usfm.study.agreement import Agreement
from usfm.study.break_even import BreakEven, break_evens
from usfm.study.cells import Study
from usfm.study.claims import claims
from usfm.study.estimate import ROWS, SEEDS, Estimate
from usfm.study.gains import Gain, judge
from usfm.study.grouping import Grouping
from usfm.study.means import consistency, means
from usfm.study.report import write_report
from usfm.study.transfer import Analysis
from usfm.study.words import answer, recommended_command
from usfm.tasks import Task, plans

TASKS = (
    Task("cyst", "segmentation", 2, group="breast"),
    Task("kind", "classification", 3, group="breast"),
    Task("lung", "segmentation", 2, group="lung"),
    Task("tip", "regression", num_points=2, group="lung"),
)
METRIC = {"segmentation": "dsc", "classification": "auc", "detection": "iou", "regression": "mre"}
NOTHING = Analysis((), (), (), (), (), (), (), ())


def make_study(tasks=TASKS, fractions=(0.25, 1.0), names=("clinically_grouped", "all_task")):
    tasks = tuple(sorted(tasks, key=lambda task: task.id))
    made = {name: getattr(plans, name)(tasks) for name in ("task_specific", *names)}
    rows = {task.id: 100 * 3 ** (i % 4) for i, task in enumerate(tasks)}
    return Study(
        tasks=tasks,
        fractions=fractions,
        seeds=(0, 1, 2),
        methods=("sum",),
        models=("tiny",),
        partitions={name: dict.fromkeys(fractions, plan) for name, plan in made.items()},
        training_rows={f: {id: int(f * n) for id, n in rows.items()} for f in fractions},
    )


def make_gains(study):
    """Gains that grow with the training rows, of errors that differ from one to the next."""
    rng = np.random.default_rng(0)
    found = []
    for arm in study.arms[1:]:
        for fraction in study.fractions:
            for task in study.tasks:
                rows = study.training_rows[fraction][task.id]
                value = float(0.1 * np.log10(rows / 100) + rng.normal(0, 0.02))
                shifts = rng.normal(0, rng.choice([0.0005, 0.005]), (2, 3))
                shifts -= shifts.mean(1, keepdims=True)
                sources = [(SEEDS, f"{arm}{fraction}{task.id}"), (ROWS, task.id)]
                estimate = Estimate(value, dict(zip(sources, shifts, strict=True)))
                found.append(
                    Gain(
                        arm=study.label(arm),
                        fraction=fraction,
                        task=task.id,
                        type=task.type,
                        group=task.group or task.id,
                        training_rows=rows,
                        test_rows=40,
                        seeds=3,
                        metric=METRIC[task.type],
                        baseline=0.7,
                        value=0.7 * (1 + value),
                        gain=value,
                        **dict.fromkeys(("low", "high", "p", "p_holm"), math.nan),
                        verdict="undecided",
                        estimate=estimate,
                    )
                )
    return judge(found)


def analysis_of(gains, missing=()):
    groups = means(gains, "group")
    return Analysis(
        gains=tuple(gains),
        type_means=means(gains, "type"),
        group_means=groups,
        overall=means(gains, None),
        consistency=consistency(groups),
        break_evens=break_evens(gains, 50, 0),
        claims=claims(gains),
        missing=tuple(missing),
    )


def make_affinity(tasks):
    rng = np.random.default_rng(1)
    n = len(tasks)
    group = np.array([hash_of(task.group) for task in tasks])
    score = 1e-3 * (group[:, None] == group) + rng.normal(0, 4e-4, (n, n))
    half = np.full((n, n), 5e-4)
    ids, steps = tuple(task.id for task in tasks), np.full((n, n), 200)
    return Affinity(ids, steps, score, half, np.ones(n), score, score, half)


def hash_of(text):
    return sum(map(ord, text))


def make_advice(study):
    """Groups by clinical group; the last task is not known well enough."""
    parts = plans.clinically_grouped(study.tasks[:-1]).parts.values()
    groups = {id: part for part in parts for id in part}
    lines = []
    for task in study.tasks:
        group = groups.get(task.id, (task.id,))
        choice = CLINICAL if len(group) > 1 else ALONE if task.id in groups else UNKNOWN
        lines.append(TaskAdvice(task.id, choice, group, 4e-4, 4e-4, -1e-4, 1e-3, 0.93))
    grouping = Grouping(tuple(parts), 1.0, (), -math.inf)
    return Advice(
        study.tasks, make_affinity(study.tasks), tuple(lines), grouping, 900, 3, 500, {}, None
    )


@pytest.fixture(scope="module")
def study():
    return make_study()


@pytest.fixture(scope="module")
def analysis(study):
    return analysis_of(make_gains(study), ["lung at 25 %: seed 2 was stopped"])


UNPREDICTED = Agreement(0, math.nan, math.nan)


def write(workdir, study, analysis, affinities=(), advice=(), routing=None, agreement=UNPREDICTED):
    write_report(
        workdir,
        study,
        analysis,
        affinities=dict(affinities),
        agreement=agreement,
        advice=dict(advice),
        routing=routing,
    )
    return (workdir / "study.html").read_text()


def everything(study):
    return {
        "affinities": dict.fromkeys(study.fractions, make_affinity(study.tasks)),
        "advice": dict.fromkeys(study.fractions, make_advice(study)),
        "agreement": Agreement(40, -0.31, 0.9),
        "routing": np.full((len(study.tasks), 4), 0.25),
    }


@pytest.fixture(scope="module")
def workdir(study, analysis, tmp_path_factory):
    """Of a study of which everything is known."""
    path = tmp_path_factory.mktemp("written") / "study"
    path.mkdir()
    write(path, study, analysis, **everything(study))
    return path


def test_page_says_what_was_found(workdir, study, analysis, parse):
    page = parse((workdir / "study.html").read_text())
    assert "At 25 % of the data, train together cyst + kind; train lung alone" in page.sections[""]
    assert "too little is known of tip" in page.sections[""]
    assert "Measured, mean over tasks: " in page.sections[""]
    for claim in analysis.claims:
        assert claim.text in page.sections["Claims of the paper"]
        assert claim.evidence in page.sections["Claims of the paper"]
    for section in ("Gain of each task", "Who helps whom", "Routing", "All gains"):
        assert all(task.id in page.sections[section] for task in study.tasks)
    assert "rank alike by −0.31 (Spearman); a perfect" in page.sections["Who helps whom"]
    assert f"{len(analysis.gains)} gains" in page.sections["All gains"]
    assert "seed 2 was stopped" in page.sections["What is missing"]
    assert "Whom to train tip with, at 25 % of the data" in page.sections["What cannot be said"]


def test_figures_are_files_that_stand_alone(workdir, parse):
    page = parse((workdir / "study.html").read_text())
    names = sorted(path.name for path in (workdir / "figures").iterdir())
    assert names == [
        *("affinity_0.25.svg", "affinity_1.svg", "gains.svg", "intervals.svg", "routing.svg"),
        "training_rows.svg",
    ]
    assert len(page.figures) == len(names)
    for name in names:
        root = ET.fromstring((workdir / "figures" / name).read_text())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_page_needs_no_network_and_no_scripts(workdir):
    text = (workdir / "study.html").read_text()
    assert "://" not in text
    assert re.findall(r"@import|<script|<link|<img|<iframe| on\w+=", text) == []
    links = re.findall(r'(?:href|src)="([^"]*)"|url\(([^)]*)\)', text)
    assert all((link or url).startswith(("#", "data:image/png;")) for link, url in links)


def test_same_study_gives_the_same_bytes(workdir, tmp_path, study, analysis):
    again = tmp_path / "study"
    again.mkdir()
    write(again, study, analysis, **everything(study))
    first, second = (
        {path.name: path.read_bytes() for path in where.rglob("*.*")} for where in (workdir, again)
    )
    assert first == second
    assert len(first) == 7


def test_text_is_escaped_and_is_no_formula(tmp_path, parse):
    names = {"cyst": "<b>&$x^2$", "kind": '"><i>', "lung": "_肺"}
    tasks = [dataclasses.replace(t, id=names.get(t.id, t.id), group="<u>") for t in TASKS]
    study = make_study(tasks)
    workdir = tmp_path / "a <run>"
    workdir.mkdir()
    analysis = analysis_of(make_gains(study), ["<em>"])
    text = write(workdir, study, analysis, **everything(study))
    assert re.findall(r"<b>&|<i>|<u>|<em>|<run>", text) == []
    page = parse(text)
    for section in ("Gain of each task", "Who helps whom", "Routing", "All gains"):
        assert all(task.id in page.sections[section] for task in study.tasks)
    assert "<em>" in page.sections["What is missing"]


def test_cells_whose_interval_excludes_zero_are_marked(workdir, analysis):
    text = (workdir / "figures/gains.svg").read_text()
    sure = [gain for gain in analysis.gains if gain.low > 0 or gain.high < 0]
    assert 0 < len(sure) < len(analysis.gains)
    assert len(re.findall(r">[+−][\d.]+ ●<", text)) == len(sure)


def test_a_gain_far_from_all_others_is_a_number_at_the_edge(tmp_path, study, analysis):
    first, *others = analysis.gains
    far = dataclasses.replace(first, gain=-0.8, low=-0.9, high=-0.7)
    write(tmp_path, study, dataclasses.replace(analysis, gains=(far, *others)))
    for name in ("intervals", "training_rows"):
        text = (tmp_path / f"figures/{name}.svg").read_text()
        assert text.count(">−80.0 %<") == 1
        assert ">−60<" not in text  # which an axis that reached so far would have


def test_empty_study_says_why_there_is_nothing(tmp_path, study, parse):
    page = parse(write(tmp_path, study, NOTHING))
    assert page.figures == []
    assert not (tmp_path / "figures").exists()
    assert "no plan is known to beat one model a task" in page.sections[""]
    for section, reason in {
        "Claims of the paper": "No claim was put to the test",
        "Gain of each task": "no task was scored both alone and with others",
        "Gain and training rows": "no task was scored both alone and with others",
        "Who helps whom": "no run of all tasks recorded",
        "Recommended plan": "No plan is advised",
        "Routing": "no experts",
        "All gains": "no task has a gain",
        "What cannot be said": "Nothing is open",
        "What is missing": "every cell was scored",
    }.items():
        assert reason in page.sections[section]


@pytest.mark.parametrize(
    "study",
    [
        make_study(fractions=(1.0,), names=("all_task",)),
        make_study(TASKS[:1]),
        make_study(TASKS[:2], names=("all_task",)),
    ],
    ids=["one fraction and plan", "one task", "two tasks"],
)
def test_small_studies_have_a_page(tmp_path, study, parse):
    page = parse(write(tmp_path, study, analysis_of(make_gains(study)), **everything(study)))
    assert page.figures


def test_tasks_that_a_plan_trains_alone_are_told_apart_from_unsure_ones(
    tmp_path, study, analysis, parse
):
    first, *others = (dataclasses.replace(gain, verdict="gain") for gain in analysis.gains)
    zero = dict.fromkeys(("gain", "low", "high"), 0.0)
    first = dataclasses.replace(first, verdict="no call", estimate=Estimate(0.0, {}), **zero)
    shown = dataclasses.replace(analysis, gains=(first, *others))
    page = parse(write(tmp_path, study, shown))
    assert (tmp_path / "figures/gains.svg").read_text().count(">alone<") == 1
    assert "neither gain nor harm" not in page.sections["What cannot be said"]
    page = parse(write(tmp_path, study, dataclasses.replace(analysis, gains=(first,))))
    assert page.figures == []


def test_gains_without_numbers_or_intervals_are_shown_as_such(tmp_path, study, analysis, parse):
    nothing = dict.fromkeys(("low", "high", "p", "p_holm"), math.nan) | {"verdict": "undecided"}
    gains = [dataclasses.replace(gain, seeds=1, **nothing) for gain in analysis.gains]
    gains[0] = dataclasses.replace(gains[0], gain=math.nan, value=math.nan)
    page = parse(write(tmp_path, study, dataclasses.replace(analysis, gains=tuple(gains))))
    assert "●" not in (tmp_path / "figures/gains.svg").read_text()
    assert "of unknown error" in page.sections["All gains"]
    assert "1 seed being too few" in page.sections["What cannot be said"]
    none = [dataclasses.replace(gain, gain=math.nan) for gain in gains]
    page = parse(write(tmp_path, study, dataclasses.replace(analysis, gains=tuple(none))))
    assert page.figures == []


def test_affinities_and_routing_may_be_unknown(tmp_path, study, parse):
    unknown = np.full((4, 4), math.nan)
    affinity = dataclasses.replace(
        make_affinity(study.tasks), lookahead=unknown, lookahead_interval=unknown
    )
    page = parse(write(tmp_path, study, NOTHING, affinities={0.25: affinity}, routing=unknown))
    assert len(page.figures) == 1
    assert "No figure" in page.sections["Routing"]
    some = unknown.copy()
    some[1] = 0.25
    assert len(parse(write(tmp_path, study, NOTHING, routing=some)).figures) == 1


def test_break_evens_are_told_with_their_direction(tmp_path, study, analysis, parse):
    lines = [
        BreakEven("all_task", "segmentation", 2, 0.1, 0.05, 0.2, 340.0, 120.0, 900.0),
        BreakEven("all_task", "regression", 2, -0.1, -0.2, -0.05, 50.0, 20.0, 90.0),
        BreakEven("clinically_grouped", "regression", 1, reason="too few"),
    ]
    page = parse(write(tmp_path, study, dataclasses.replace(analysis, break_evens=tuple(lines))))
    told = page.sections["Gain and training rows"]
    assert "segmentation, all_task: from 340 [120, 900] training rows" in told
    assert "regression, all_task: up to 50 [20, 90] training rows" in told
    assert (
        "Break-even of clinically_grouped, regression: too few."
        in (page.sections["What cannot be said"])
    )


def test_without_advice_the_best_measured_plan_is_named_where_it_is_sure(study, analysis):
    (first, *_) = analysis.overall
    sure = dataclasses.replace(first, fraction=0.25, gain=0.05, low=0.01, high=0.09)
    said, measured = answer(0.25, [sure], None)
    assert said == (
        f"At 25 % of the data, {sure.arm} is the best plan that was measured, "
        "+5.0 % [+1.0 %, +9.0 %]."
    )
    assert sure.arm in measured
    unsure = dataclasses.replace(sure, low=-0.01)
    assert "no plan is known" in answer(0.25, [unsure], None)[0]
    assert answer(1.0, [unsure], None)[1] == "Nothing was measured."


def test_advice_that_did_harm_is_not_repeated(study, analysis):
    advice = make_advice(study)
    said, measured = answer(0.25, analysis.overall, advice)
    assert "train together cyst + kind" in said
    assert measured.endswith("was not tried.")
    tried = dataclasses.replace(analysis.overall[0], arm="advised", fraction=0.25, gain=-0.05)
    unsure = dataclasses.replace(tried, low=-0.11, high=0.01)
    said, measured = answer(0.25, [unsure], advice)
    assert "train together cyst + kind" in said
    assert measured.endswith("advised −5.0 % [−11.0 %, +1.0 %].")
    harmful = dataclasses.replace(tried, low=-0.09, high=-0.01)
    assert "no plan is known to beat" in answer(0.25, [harmful], advice)[0]


def test_recommended_command_gives_back_the_plan(study):
    plan = recommended(make_advice(study))
    command = recommended_command("configs/study.py", plan, 0.25)
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:3] == ["python", "-m", "usfm.main"]
    flags = dict(word.split("=", 1) for word in words[3:])
    assert flags["--config"] == "configs/study.py"
    assert flags["--config.study.plans"] == "advised"
    assert flags["--config.study.fractions"] == "0.25"
    found = study_plan.partitions(flags["--config.study.partitions"], study.tasks)["advised"]
    assert list(found.parts.values()) == list(plan.parts.values())


def test_page_is_drawn_by_a_browser(workdir, check_drawn):
    check_drawn(workdir / "study.html", len(list((workdir / "figures").iterdir())))
