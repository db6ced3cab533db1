"""A table of several seeds of one run beside the trivial predictor or another run's seeds.

python tools/compare_seeds.py runs/seed0 runs/seed1 runs/seed2
python tools/compare_seeds.py runs/seed0 runs/seed1 runs/seed2 --before runs/old0 runs/old1

The workdirs were scored on the same rows (--mode=evaluate). The interval is that of the difference
between means over seeds, by a bootstrap over groups of rows (patient, video or image).
"""

import argparse
import csv
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import numpy as np

from usfm import config as usfm_config
from usfm.data.folder import Folder, Row
from usfm.data.source import open_folder, open_splits, rows_in, training_rows
from usfm.evaluation import bootstrap, trivial
from usfm.evaluation.metrics import LOWER_IS_BETTER, METRICS, columns, metric_value, score_row
from usfm.evaluation.prediction import Answer, truth
from usfm.evaluation.table import number
from usfm.tasks import Task

SHOWN = {"classification": ("auc", "f1_macro")}
Columns = Mapping[str, np.ndarray]


def main(workdirs: Sequence[pathlib.Path], before: Sequence[pathlib.Path]) -> None:
    """Prints the table as Markdown."""
    config = usfm_config.read(workdirs[0] / "config.json")
    folder = open_folder(config, workdirs[0])
    splits = open_splits(config, folder)
    scored = rows_in(folder, splits, config.evaluate.part)
    trained = training_rows(folder, splits, config.data)
    seeds, old_seeds = ([_read(workdir) for workdir in runs] for runs in (workdirs, before))
    base = f"before, mean of {len(before)} seeds" if before else "trivial"
    print(
        f"| task | metric | n | mean of {len(seeds)} seeds (range) | {base} | difference [95 %] |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for task in folder.tasks:
        rows = scored[task.id]
        if not rows:
            continue
        ours = [columns([seed[task.id, row.key] for row in rows]) for seed in seeds]
        theirs = [columns([seed[task.id, row.key] for row in rows]) for seed in old_seeds]
        if not before:
            floor = trivial.fit(folder, task, [folder.rows[task.id][i] for i in trained[task.id]])
            theirs = [columns([_score(task, row, floor(row), folder) for row in rows])]
        groups = [splits.group(row) for row in rows]
        for metric in SHOWN.get(task.type, METRICS[task.type][:1]):
            values = [metric_value(task, metric, of_seed) for of_seed in ours]
            based = [metric_value(task, metric, of_seed) for of_seed in theirs]
            low, high = bootstrap.interval(_mean_gain(task, metric, ours, theirs), groups, seed=0)
            sure = " *" if low > 0 or high < 0 else ""
            gain = np.mean(values) - np.mean(based)
            cells = (
                task.id,
                f"{metric} px" if metric in LOWER_IS_BETTER else metric,
                str(len(rows)),
                _told(metric, values),
                _told(metric, based),
                f"{gain:+.3g} [{low:+.3g}, {high:+.3g}]{sure}",
            )
            print(f"| {' | '.join(cells)} |")
    print("\n\\* the interval excludes zero")


def _score(task: Task, row: Row, answer: Answer, folder: Folder) -> dict[str, float]:
    return score_row(task, (row.height, row.width), answer, truth(folder, task, row))


def _told(metric: str, values: Sequence[float]) -> str:
    """The mean, and the range where there is one."""
    mean = number(metric, float(np.mean(values)))
    if len(values) == 1:
        return mean
    return f"{mean} ({number(metric, min(values))} to {number(metric, max(values))})"


def _mean_gain(
    task: Task, metric: str, ours: Sequence[Columns], theirs: Sequence[Columns]
) -> Callable[[np.ndarray], np.ndarray]:
    # The mean over all pairs of seeds is the difference between the means.
    gains = [bootstrap.difference(task, metric, a, b) for a in ours for b in theirs]
    return lambda weights: np.mean([gain(weights) for gain in gains], axis=0)


def _read(workdir: pathlib.Path) -> dict[tuple[str, str], dict[str, float]]:
    """(task_id, row key) -> scores of a row, from evaluation_rows.csv."""
    scores: dict[tuple[str, str], dict[str, float]] = {}
    with (workdir / "evaluation_rows.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            row = scores.setdefault((line["task_id"], line["row_key"]), {})
            row[line["metric"]] = float(line["value"] or "nan")
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("workdirs", nargs="+", type=pathlib.Path)
    parser.add_argument("--before", nargs="+", type=pathlib.Path, default=[])
    arguments = parser.parse_args()
    main(arguments.workdirs, arguments.before)
