"""study.html: one self-contained page that says which tasks to train together."""

import html
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from etils import epath
from matplotlib.figure import Figure

import usfm
from usfm.evaluation.files import write_atomically
from usfm.evaluation.page import page, scrolled
from usfm.study.advise import Advice, recommended
from usfm.study.affinity import Affinity
from usfm.study.agreement import Agreement
from usfm.study.cells import Study
from usfm.study.claims import CONTRADICTED, SUPPORTED, Claim
from usfm.study.drawing import inline, svg
from usfm.study.figures import compared, draw_gains, draw_intervals, draw_scale, ordered
from usfm.study.matrices import draw_affinity, draw_routing
from usfm.study.tables import advice_table, bullets, gains_table, means_table, said
from usfm.study.transfer import Analysis
from usfm.study.words import agreed, answer, recommended_command, share, undecided

CONFIG = "configs/study.py"
PLANS = (
    "Plans: task_specific trains one model a task, which all gains are measured against; "
    "clinically_grouped one a clinical group; all_task one for all; advised the groups that "
    "the gradients of all_task suggest."
)
STYLE = """
.answer { color: var(--ink); font-size: 1.1rem; font-weight: 600; margin-top: 1rem;
  overflow-wrap: anywhere; }
.figure { background: #fff; padding: .6rem; margin: .6rem 0; }
.figure svg { width: auto; margin: 0 auto; }
.claim b { display: block; }
.verdict { font-weight: 650; color: var(--ink); }
pre { margin: 0; padding: .8rem; font-size: .85rem; }
"""
SIGNS = {SUPPORTED: "✓", CONTRADICTED: "✗"}

# Writes a figure, and returns it as HTML: of its name, itself and its caption.
Show = Callable[[str, Figure, str], str]


def write_report(
    workdir: epath.PathLike,
    study: Study,
    analysis: Analysis,
    *,
    affinities: Mapping[float, Affinity],
    agreement: Agreement,
    advice: Mapping[float, Advice],
    routing: np.ndarray | None,
) -> None:
    """Write WORKDIR/study.html, which needs no network, and its figures as figures/NAME.svg.

    Args:
        workdir: of the study.
        study: what was planned.
        analysis: what transfer.py found.
        affinities: fraction -> what the runs of all tasks recorded there.
        agreement: of the gains that these predict with those measured.
        advice: fraction -> what follows from it.
        routing: float [T, E], share of the tokens of each task of the study, in its order, that
            each expert serves; None where there are no experts.
    """
    workdir = epath.Path(workdir)

    def show(name: str, figure: Figure, caption: str) -> str:
        text = svg(figure)
        write_atomically(workdir / "figures" / f"{name}.svg", text.encode())
        label = html.escape(caption)
        return f"{scrolled(f'Figure {name}', inline(text, label), 'figure')}<p>{label}</p>"

    sections = [
        ("Claims of the paper", _claims(analysis.claims)),
        ("Gain of each task", _gains(study, analysis, show)),
        ("Gain and training rows", _scale(study, analysis, show)),
        ("Types and clinical groups", means_table(analysis)),
        ("Who helps whom", _affinities(affinities, show) + said(agreed(agreement))),
        ("Recommended plan", _plan(advice)),
        ("Routing", _routing(study, routing, show)),
        ("All gains", gains_table(analysis.gains)),
        ("What cannot be said", bullets(undecided(study, analysis, advice), "Nothing is open.")),
        ("What is missing", bullets(analysis.missing, "Nothing: every cell was scored.")),
    ]
    text = page(f"Study {workdir.name}", _lead(study, analysis, advice), sections, STYLE)
    write_atomically(workdir / "study.html", text.encode())


def _lead(study: Study, analysis: Analysis, advice: Mapping[float, Advice]) -> str:
    """The answers, and what was compared."""
    told = []
    for fraction in study.fractions:
        first, measured = answer(fraction, analysis.overall, advice.get(fraction))
        told.append(f'<p class="answer">{html.escape(first)}</p>{said(measured)}')
    seeds = len(study.seeds)
    scope = (
        f"{len(study.tasks)} tasks, {seeds} seed{'s' * (seeds != 1)}, usfm {usfm.__version__}. "
        f"{PLANS} A gain of +5 % is a metric 5 % better than that of the task's own model, or an "
        "error 5 % smaller. Brackets hold 95 % intervals."
    )
    return "".join(told) + said(scope)


def _claims(claims: Sequence[Claim]) -> str:
    if not claims:
        return said("No claim was put to the test.")
    cards = [
        f'<figure class="claim"><b>{html.escape(claim.text)}</b><span class="verdict">'
        f"{SIGNS.get(claim.verdict, '?')} {html.escape(claim.verdict)}</span>"
        f"<figcaption>{html.escape(claim.evidence)}</figcaption></figure>"
        for claim in claims
    ]
    return f'<div class="cards">{"".join(cards)}</div>'


def _gains(study: Study, analysis: Analysis, show: Show) -> str:
    if not compared(analysis.gains):
        return said(
            "No figure: no task was scored both alone and with others; see what is missing, below."
        )
    return show(
        "gains",
        draw_gains(study, analysis.gains),
        "Gain in %, by task, plan and share of the data. ●: the interval excludes zero, for this "
        "cell alone; in the table of all gains, verdicts allow for the number of comparisons. "
        "Colours end before the largest gains do. Alone: the plan trains no "
        "other task with it. –: not scored.",
    ) + show(
        "intervals",
        draw_intervals(study, analysis.gains),
        "Gains with their 95 % intervals. Hollow: too few seeds to decide. A number at "
        "the edge: a gain far from all others. Intervals that leave the frame are cut.",
    )


def _scale(study: Study, analysis: Analysis, show: Show) -> str:
    if not any(gain.training_rows > 0 for gain in compared(analysis.gains)):
        return said(
            "No figure: no task was scored both alone and with others; see what is missing, below."
        )
    figure = show(
        "training_rows",
        draw_scale(study, analysis.gains, analysis.break_evens),
        "Each point is a task at a share of the data. A line is drawn where the data tells a "
        "break-even: |, the training rows of a task at which it is neither better nor worse off; "
        "the bar is its 95 % interval. A number at the edge: a gain far from all others.",
    )
    pays = [
        f"{line.type}, {line.arm}: {'from' if line.slope > 0 else 'up to'} {line.rows:,.0f} "
        f"[{line.low:,.0f}, {line.high:,.0f}] training rows of a task it pays to train together."
        for line in analysis.break_evens
        if line.rows is not None
    ]
    return figure + bullets(pays, "No break-even is known.")


def _affinities(affinities: Mapping[float, Affinity], show: Show) -> str:
    if not affinities:
        return said(
            "No figure: no run of all tasks recorded the inner products of its gradients, as runs "
            "do from which a plan is to be advised."
        )
    return "".join(
        said(f"No figure at {share(fraction)}: it takes two tasks.")
        if len(affinity.tasks) < 2
        else f"<h3>At {html.escape(share(fraction))}</h3>"
        + show(
            f"affinity_{fraction:g}",
            draw_affinity(affinity),
            "Blue: a step of training along the row's task lowers the loss of the column's task; "
            "red: it raises it. Dot: the 95 % interval excludes zero. The tree joins tasks that "
            "help each other most first; what was not recorded is blank.",
        )
        for fraction, affinity in sorted(affinities.items())
    )


def _plan(advice: Mapping[float, Advice]) -> str:
    if not advice:
        return said("No plan is advised: that takes the recorded gradients of runs of all tasks.")
    return "".join(
        f"<h3>At {html.escape(share(fraction))}</h3>{advice_table(of_fraction)}"
        f"{_command(of_fraction, fraction)}"
        for fraction, of_fraction in sorted(advice.items())
    )


def _command(advice: Advice, fraction: float) -> str:
    text = recommended_command(CONFIG, recommended(advice), fraction)
    return scrolled("Command", f"<pre>{html.escape(text)}</pre>")


def _routing(study: Study, routing: np.ndarray | None, show: Show) -> str:
    if routing is None or not np.isfinite(routing).any():
        return said("No figure: the models have no experts, or logged no routing.")
    tasks = ordered(study.tasks)
    order = [study.tasks.index(task) for task in tasks]
    return show(
        "routing",
        draw_routing([task.id for task in tasks], routing[order]),
        "Share of each task's tokens that each expert serves, in %.",
    )
