"""Tables and lists of study.html."""

import html
import math
from collections.abc import Sequence

from usfm.evaluation.page import folded, table
from usfm.evaluation.table import number
from usfm.study.advise import Advice
from usfm.study.gains import Gain
from usfm.study.transfer import Analysis
from usfm.study.words import interval, percent, share


def said(text: str) -> str:
    """Plain text as a paragraph."""
    return f"<p>{html.escape(text)}</p>"


def bullets(sentences: Sequence[str], otherwise: str) -> str:
    """Sentences as a list; `otherwise` where there is none."""
    if not sentences:
        return said(otherwise)
    return f"<ul>{''.join(f'<li>{html.escape(sentence)}</li>' for sentence in sentences)}</ul>"


def means_table(analysis: Analysis) -> str:
    """Mean gains of types and clinical groups, and how far those of groups lie apart."""
    rows = [
        _row([kind, mean.of, mean.arm, share(mean.fraction)], [str(mean.tasks), interval(mean)])
        for kind, means in (("type", analysis.type_means), ("group", analysis.group_means))
        for mean in means
    ]
    if not rows:
        return said("No table: no task has a gain.")
    spread = [
        f"Spread of the groups' means, {line.arm} at {share(line.fraction)}: "
        f"{100 * line.spread:.1f} points [{100 * line.low:.1f}, {100 * line.high:.1f}]."
        for line in analysis.consistency
    ]
    shown = table("Mean gains", ["", "of", "plan", "data", "tasks", "mean gain"], rows, 2)
    return folded(f"{len(rows)} means", shown) + (bullets(spread, "") if spread else "")


def advice_table(advice: Advice) -> str:
    """What is advised of each task, and why."""
    measured = advice.predictor is not None
    rows = [
        _row(
            [line.task, line.choice, " + ".join(task for task in line.group if task != line.task)],
            [
                *(
                    percent(gain) if measured else f"{gain:+.1e}".replace("-", "−")
                    for gain in (line.gain, line.clinical_gain, line.all_gain)
                ),
                f"{100 * line.agreement:.0f} %",
            ],
        )
        for line in advice.lines
    ]
    unit = (
        "Gains are those expected, learned from those measured."
        if measured
        else "Help is the share of the task's loss that a step along its partners takes off."
    )
    gain = "gain" if measured else "help"
    head = ["task", "advice", "together with", gain, f"{gain} in its clinical group"]
    shown = table("Advice", [*head, f"{gain} with all", "sureness"], rows, 4)
    why = f"{unit} Sureness: how often resampled steps and seeds lead to the same advice."
    return said(why) + folded(f"{len(rows)} tasks", shown)


def gains_table(gains: Sequence[Gain]) -> str:
    """All that is known of each gain."""
    if not gains:
        return said("No table: no task has a gain.")
    head = ["task", "type", "group", "plan", "data", "verdict", "metric", "own model", "plan's"]
    head += ["gain", "p (Holm)", "training rows", "test rows", "seeds"]
    rows = [_row(*_told(gain)) for gain in sorted(gains, key=lambda g: (g.fraction, g.task, g.arm))]
    return folded(f"{len(rows)} gains", table("All gains", head, rows, 7))


def _told(gain: Gain) -> tuple[list[str], list[str]]:
    baseline, value = (
        number(gain.metric, v if math.isfinite(v) else None) for v in (gain.baseline, gain.value)
    )
    p = f"{gain.p_holm:.2g}" if math.isfinite(gain.p_holm) else "–"
    data = f"{100 * gain.fraction:g} %"
    return (
        [gain.task, gain.type, gain.group, gain.arm, data, gain.verdict, gain.metric],
        [baseline, value, interval(gain), p]
        + [f"{count:,}" for count in (gain.training_rows, gain.test_rows, gain.seeds)],
    )


def _row(texts: Sequence[str], numbers: Sequence[str]) -> str:
    cells = [f"<td>{html.escape(text)}</td>" for text in texts]
    cells += [f'<td class="number">{html.escape(text)}</td>' for text in numbers]
    return f"<tr>{''.join(cells)}</tr>"
