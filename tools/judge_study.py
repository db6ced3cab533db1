"""Judges what a study of planted phantoms found by their truth; prints one JSON object a fraction.

python tools/judge_study.py WORKDIR ROOT/planted.json

    ari             adjusted Rand index of the planted groups with the advisor's best partition
    advised_ari     with the plan that was advised, where what was not sure is alone
    together        the groups of that plan
    pairs_auc       how often a pair of one planted group has more affinity than a pair of two
    pairs, spearman, ceiling   of gains as affinities predict them with those measured
    harmed, gained  calls of negative transfer and of gain: [arm, task, gain]
    clashed         those of harmed in a cell that trains the task with one that contradicts it
    between         those of gained whose cell has no other task of its group
"""

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import numpy as np
from sklearn.metrics import adjusted_rand_score, roc_auc_score

from usfm.study import cells
from usfm.study.advise import recommended
from usfm.study.agreement import agreement
from usfm.study.gains import GAIN, HARM, gains
from usfm.study.grouping import labels_of
from usfm.study.run import advise_study
from usfm.study.scores import read_scores


def main(workdir: pathlib.Path, truth: pathlib.Path) -> None:
    """Prints the verdicts."""
    planted = json.loads(truth.read_text())
    study = cells.read(workdir)
    scores, advices = read_scores(study, workdir), advise_study(study, workdir)
    of_group = planted["groups"] if planted["relatedness"] else {id: id for id in planted["groups"]}
    ids = [task.id for task in study.tasks]
    groups = np.unique([str(of_group[id]) for id in ids], return_inverse=True)[1]
    clash = {frozenset(pair) for pair in planted["conflicts"]}
    found, _ = gains(study, scores)
    for fraction, advice in advices.items():
        plan = recommended(advice)
        agreed = agreement(study, scores, {fraction: advice.affinity})
        above = np.triu_indices(len(ids), 1)
        mutual = (advice.affinity.lookahead + advice.affinity.lookahead.T)[above]
        related = groups[above[0]] == groups[above[1]]
        arms = {study.label(arm): arm for arm in study.arms}
        calls: dict[str, list] = {name: [] for name in ("harmed", "gained", "clashed", "between")}
        for gain in (gain for gain in found if gain.fraction == fraction):
            cell = study.cell(arms[gain.arm], fraction, study.seeds[0], gain.task)
            others = [id for id in cell.tasks if id != gain.task]
            call = [gain.arm, gain.task, round(gain.gain, 3)]
            if gain.verdict == HARM:
                calls["harmed"].append(call)
                if any(frozenset((gain.task, id)) in clash for id in others):
                    calls["clashed"].append(call)
            if gain.verdict == GAIN:
                calls["gained"].append(call)
                if all(of_group[id] != of_group[gain.task] for id in others):
                    calls["between"].append(call)
        verdict = {
            "fraction": fraction,
            "ari": _rand(groups, labels_of(advice.grouping.parts, ids)),
            "advised_ari": _rand(groups, labels_of(plan.parts.values(), ids)),
            "together": [part for part in plan.parts.values() if len(part) > 1],
            "pairs_auc": float(roc_auc_score(related, mutual)) if related.any() else None,
            "pairs": agreed.pairs,
            "spearman": agreed.spearman,
            "ceiling": agreed.ceiling,
        }
        print(json.dumps(verdict | calls))


def _rand(one: np.ndarray, other: np.ndarray) -> float:
    return float(adjusted_rand_score(one, other))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", type=pathlib.Path, help="of the study")
    parser.add_argument("truth", type=pathlib.Path, help="planted.json of its data")
    arguments = parser.parse_args()
    main(arguments.workdir, arguments.truth)
