"""evaluation_official.json: what the official FM_UIA evaluator says of the same answers.

Form and habits are those of evaluate.py in the challenge's repository
(github.com/lijiake2408/Foundation-Model-Challenge-for-Ultrasound-Image-Analysis, commit da95c2e),
whose results go to evaluation_results.json:

- rows without an answer are left out; a task without any scores 0 throughout;
- an AUC that has no value is 0;
- the F1 of single classes are numbered by what scikit-learn returns, the classes that are true or
  predicted: behind one that is neither, each stands one number too low, and the last are 0;
- DSC and HD are also given for the background;
- a landmark that is absent from the truth is taken to be at (0, 0).

Rows here are those that were scored, a part of the folder; there, the whole folder. Answers that
are not finite cannot be handed in, so that they are left out too. Two rows of one task and image
share the last answer there.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence

import numpy as np

from usfm.evaluation.metrics import Undefined, class_values, classified, columns, metric_value
from usfm.tasks import Task

# Our name and theirs, by task type.
NAMES = {
    "segmentation": {"dsc": "DSC", "hd": "HD"},
    "classification": {
        "auc": "AUC",
        "accuracy": "Accuracy",
        "f1_macro": "F1_macro",
        "f1_weighted": "F1_weighted",
        "mcc": "MCC",
    },
    "detection": {"iou": "IoU"},
    "regression": {"mre_official": "MRE"},
}


def official_report(scored: Mapping[Task, Sequence[Mapping[str, float]]]) -> dict:
    """The content of evaluation_official.json.

    Args:
        scored: what `score_row` says of the answered rows of each task.

    Returns:
        {type: {task id: {metric: value, "num_samples": rows, "per_class": ...}}}, the last where
        the type has classes.
    """
    report = {}
    for type_ in NAMES:
        tasks = [task for task in scored if task.type == type_]
        if tasks:
            report[type_] = {task.id: _of_task(task, scored[task]) for task in tasks}
    return report


def _of_task(task: Task, scored: Sequence[Mapping[str, float]]) -> dict:
    handed_in = [row for row in scored if all(map(math.isfinite, row.values()))]
    names = NAMES[task.type]
    entry = dict.fromkeys(names.values(), 0.0) | {"num_samples": len(handed_in)}
    has_classes = task.type in ("segmentation", "classification")
    if not handed_in:
        return entry | ({"per_class": {}} if has_classes else {})
    scores = columns(handed_in)
    for ours, theirs in names.items():
        with contextlib.suppress(Undefined):  # then it stays 0
            entry[theirs] = metric_value(task, ours, scores)
    if not has_classes:
        return entry
    of_classes = _segmented if task.type == "segmentation" else _classified
    per_class = {f"class_{c}": of_class for c, of_class in enumerate(of_classes(task, scores))}
    return entry | {"per_class": per_class}


def _segmented(task: Task, scores: Mapping[str, np.ndarray]) -> list[dict[str, float]]:
    return [
        {theirs: float(scores[f"{ours}_{c}"].mean()) for ours, theirs in NAMES[task.type].items()}
        for c in range(task.num_classes)
    ]


def _classified(task: Task, scores: Mapping[str, np.ndarray]) -> list[dict[str, float]]:
    labels, probs = classified(task, scores)
    classes = range(task.num_classes)
    f1 = class_values("f1", labels, probs, np.ones((1, len(labels))), classes)[0]
    occurring = f1[~np.isnan(f1)].tolist()
    padded = occurring + [0.0] * (task.num_classes - len(occurring))
    return [{"F1": value} for value in padded]
