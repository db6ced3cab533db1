"""Compares models with themselves: how often a study calls a gain or harm where there is none.

python tools/trained_nulls.py WORKDIR_A WORKDIR_B

Two studies of the same data with other seeds. What both trained alike, B's is judged as if a plan
had made it of A's: all together, as in a study. Prints a JSON object a gain, then their counts.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from usfm.study import cells
from usfm.study.gains import GAIN, HARM, Gain, gain, judge
from usfm.study.scores import Scores, read_scores
from usfm.tasks import Task


def null_gains(tasks: Sequence[Task], one: Scores, other: Scores) -> Iterator[Gain]:
    """Gains, not yet judged, of every model and task of one study in the other's runs of them."""
    of_id = {task.id: task for task in tasks}
    for (model, id), theirs in one.tables.items():
        if (ours := other.tables.get((model, id))) is None:
            continue
        again = dataclasses.replace(ours, model=f"{model} again")
        yield gain("again", 1.0, of_id[id], 0, theirs, again)


def main(one: pathlib.Path, other: pathlib.Path) -> None:
    """Prints the gains and the counts."""
    study = cells.read(one)
    scores = read_scores(study, one), read_scores(cells.read(other), other)
    found = judge(list(null_gains(study.tasks, *scores)))
    for of in found:
        told = {"gain": round(of.gain, 3), "p": of.p, "p_holm": of.p_holm, "verdict": of.verdict}
        print(json.dumps({"task": of.task, **told}))
    calls = [of.verdict for of in found]
    print(json.dumps({
        "nulls": len(found), "below_05": sum(of.p < 0.05 for of in found),
        "harm": calls.count(HARM), "gain": calls.count(GAIN),
    }))  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("one", type=pathlib.Path, help="workdir of a study")
    parser.add_argument("other", type=pathlib.Path, help="of one with other seeds")
    arguments = parser.parse_args()
    main(arguments.one, arguments.other)
