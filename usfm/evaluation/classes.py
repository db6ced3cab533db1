"""The metrics of a task's single classes."""

from collections.abc import Mapping, Sequence

import numpy as np

from usfm.evaluation.metrics import Undefined, check_finite, class_values, classified, columns
from usfm.tasks import Task

OF_CLASS = {
    "classification": ("auc", "f1", "sensitivity", "specificity"),
    "segmentation": ("dsc", "hd", "hd95", "nsd"),
}


def by_class(task: Task, scored: Sequence[Mapping[str, float]]) -> dict[str, dict]:
    """What each class of a classification, or of a segmentation but for its background, scores.

    Of a classification that is the class against all others.

    Args:
        task: of one of the types of OF_CLASS.
        scored: what `score_row` says of its rows.

    Returns:
        {class: {metric: value or None, "n": rows whose truth has the class, "undefined": {metric:
        reason}}}; empty where no row was scored or an answer is not finite. A segmentation's dsc
        is over all rows, so that those of the classes average to the task's; dsc_present is over
        the n rows that have the class, where agreement on its absence does not count.
    """
    scores = columns(scored) if scored else {}
    try:
        check_finite(scores)
    except Undefined:
        return {}
    if not scored:
        return {}
    report = _segmented if task.type == "segmentation" else _classified
    return report(task, scores)


def _segmented(task: Task, scores: Mapping[str, np.ndarray]) -> dict[str, dict]:
    report = {}
    for c in range(1, task.num_classes):
        values = {name: float(scores[f"{name}_{c}"].mean()) for name in OF_CLASS[task.type]}
        present = scores[f"dsc_{c}"][scores[f"true_{c}"] > 0]
        values["dsc_present"] = float(present.mean()) if present.size else np.nan
        report[str(c)] = _told(values, present.size)
    return report


def _classified(task: Task, scores: Mapping[str, np.ndarray]) -> dict[str, dict]:
    labels, probs = classified(task, scores)
    all_rows, classes = np.ones((1, len(labels))), range(task.num_classes)
    table = {
        name: class_values(name, labels, probs, all_rows, classes)[0]
        for name in OF_CLASS[task.type]
    }
    counts = np.bincount(labels, minlength=task.num_classes)
    return {
        str(c): _told({name: float(values[c]) for name, values in table.items()}, int(counts[c]))
        for c in classes
    }


def _told(values: Mapping[str, float], n: int) -> dict:
    """A class's entry: what has no value is None, with the reason."""
    reason = "no other class occurs in the truth" if n else "does not occur in the truth"
    undefined = {name: reason for name, value in values.items() if np.isnan(value)}
    kept = {name: None if name in undefined else value for name, value in values.items()}
    return {**kept, "n": n, "undefined": undefined}
