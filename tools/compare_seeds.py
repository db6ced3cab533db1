"""A table of several seeds of one run beside the trivial predictor, with paired intervals.

python tools/compare_seeds.py runs/seed0 runs/seed1 runs/seed2

The workdirs were scored on the same rows (--mode=evaluate). The interval is that of the mean over
seeds minus the trivial predictor, by a bootstrap over groups of rows (patient, video or image).
"""

import csv
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import numpy as np

from usfm import config as usfm_config
from usfm.data.source import open_folder, open_splits, rows_in, training_rows
from usfm.evaluation import trivial
from usfm.evaluation.interval import difference, paired_interval
from usfm.evaluation.metrics import LOWER_IS_BETTER, METRICS, columns, metric_value, score_row
from usfm.evaluation.prediction import truth
from usfm.evaluation.table import number
from usfm.tasks import Task

SHOWN = {"classification": ("auc", "f1_macro")}
Columns = Mapping[str, np.ndarray]


def main(workdirs: Sequence[pathlib.Path]) -> None:
    """Prints the table as Markdown."""
    config = usfm_config.read(workdirs[0] / "config.json")
    folder = open_folder(config, workdirs[0])
    splits = open_splits(config, folder)
    scored = rows_in(folder, splits, config.evaluate.part)
    trained = training_rows(folder, splits, config.data.fraction)
    seeds = [_read(workdir) for workdir in workdirs]
    print(
        f"| task | metric | n | mean of {len(seeds)} seeds (range) | trivial | difference [95 %] |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for task in folder.tasks:
        rows = scored[task.id]
        if not rows:
            continue
        floor = trivial.fit(folder, task, [folder.rows[task.id][i] for i in trained[task.id]])
        theirs = columns(
            [
                score_row(task, (row.height, row.width), floor(row), truth(folder, task, row))
                for row in rows
            ]
        )
        ours = [columns([seed[task.id, row.key] for row in rows]) for seed in seeds]
        groups = [splits.group(row) for row in rows]
        for metric in SHOWN.get(task.type, METRICS[task.type][:1]):
            values = [metric_value(task, metric, of_seed) for of_seed in ours]
            low, high = paired_interval(_mean_gain(task, metric, ours, theirs), groups, seed=0)
            sure = " *" if low > 0 or high < 0 else ""
            base = metric_value(task, metric, theirs)
            cells = (
                task.id,
                f"{metric} px" if metric in LOWER_IS_BETTER else metric,
                str(len(rows)),
                f"{number(metric, float(np.mean(values)))} "
                f"({number(metric, min(values))} to {number(metric, max(values))})",
                number(metric, base),
                f"{np.mean(values) - base:+.3g} [{low:+.3g}, {high:+.3g}]{sure}",
            )
            print(f"| {' | '.join(cells)} |")
    print("\n\\* the interval excludes zero")


def _mean_gain(
    task: Task, metric: str, ours: Sequence[Columns], theirs: Columns
) -> Callable[[np.ndarray], float]:
    gains = [difference(task, metric, of_seed, theirs) for of_seed in ours]
    return lambda index: float(np.mean([gain(index) for gain in gains]))


def _read(workdir: pathlib.Path) -> dict[tuple[str, str], dict[str, float]]:
    """(task_id, row key) -> scores of a row, from evaluation_rows.csv."""
    scores: dict[tuple[str, str], dict[str, float]] = {}
    with (workdir / "evaluation_rows.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            row = scores.setdefault((line["task_id"], line["row_key"]), {})
            row[line["metric"]] = float(line["value"] or "nan")
    return scores


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main([pathlib.Path(argument) for argument in sys.argv[1:]])
