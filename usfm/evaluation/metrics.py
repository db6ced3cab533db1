"""The metrics of each task type, at original pixel size; docs/metrics.md lists them.

Scores are kept in two steps. `score_row` turns one answer into numbers that suffice for every
metric of its task; `summarise` turns the numbers of many rows into the task's metrics. So the
metrics of any subset of rows, a bootstrap sample for instance, need no image.

Where the official evaluator writes 0 for a metric that has no value (an AUC when a class is
absent), here the metric is undefined and a reason says why; official.py keeps its habits.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from usfm.evaluation import masks, weighted
from usfm.evaluation.prediction import Answer, content
from usfm.tasks import Task

# The metrics of each task type; the first is the one that a task is compared by.
METRICS = {
    "classification": (
        *("auc", "accuracy", "f1_macro", "f1_weighted", "mcc"),
        *("sensitivity", "specificity", "ece"),
    ),
    "detection": ("iou", "average_precision"),
    "regression": ("mre", "pck"),
    "segmentation": ("dsc", "hd", "hd95", "nsd"),
}
PRIMARY = {type_: names[0] for type_, names in METRICS.items()}
IN_PIXELS = frozenset({"hd", "hd95", "mre"})  # of the original image
# Of all other metrics, which lie between -1 and 1, more is better.
LOWER_IS_BETTER = IN_PIXELS | {"ece"}
# A landmark is correct within this share of the image's longer side (Yang & Ramanan 2013, PAMI 35,
# take the side of the box round a person; two or three landmarks span no box).
PCK_SHARE = 0.05
# A box is right from this IoU on, for average precision (Everingham et al. 2010, IJCV 88).
RIGHT_IOU = 0.5


_OF_COUNTS = {
    "f1_macro": weighted.f1_macro,
    "f1_weighted": weighted.f1_weighted,
    "mcc": weighted.mcc,
}
_OF_CLASS_COUNTS = {
    "f1": weighted.f1,
    "sensitivity": weighted.sensitivity,
    "specificity": weighted.specificity,
}


class Undefined(ValueError):
    """A metric has no value on these rows; the message is the reason."""


def sign(metric: str) -> int:
    """+1 where a higher value is better, -1 where a lower one is."""
    return -1 if metric in LOWER_IS_BETTER else 1


def score_row(
    task: Task, size: tuple[int, int], predicted: Answer, true: Answer
) -> dict[str, float]:
    """Score one answer.

    Args:
        task: what was asked.
        size: height and width of the original image.
        predicted: the answer; one that is not finite scores NaN.
        true: the truth.

    Returns:
        Segmentation: see masks.compare. Detection: iou, and the answer's confidence where it has
        one. Regression: mre and pck over the points that are present, and mre_official, which
        takes the others to be at (0, 0). Classification: accuracy (0 or 1), prob_true, and label
        and prob_0 .. prob_C-1, from which all its metrics follow.

    Raises:
        ValueError: the answer is of another type or shape than the truth.
    """
    ours, theirs = content(task, predicted), content(task, true)
    if ours.shape != theirs.shape:
        raise ValueError(f"{task.id}: an answer of shape {ours.shape}, the truth {theirs.shape}")
    if task.type == "segmentation":
        return masks.compare(ours, theirs, task.num_classes)
    if task.type == "classification":
        label = int(theirs.argmax())
        right = float(ours.argmax() == label) if np.isfinite(ours).all() else math.nan
        probs = {f"prob_{c}": float(p) for c, p in enumerate(ours)}
        return {"accuracy": right, "prob_true": float(ours[label]), "label": float(label)} | probs
    said, wanted = (
        [(x * size[1], y * size[0]) for x, y in array.reshape(-1, 2).tolist()]
        for array in (ours, theirs)
    )
    if task.type == "detection":
        sure = predicted.confidence
        iou = box_iou(said, wanted) if np.isfinite(ours).all() else math.nan
        return {"iou": iou} if sure is None else {"iou": iou, "confidence": float(sure)}
    return _score_points(said, wanted, PCK_SHARE * max(size))


def box_iou(a: Sequence[tuple[float, float]], b: Sequence[tuple[float, float]]) -> float:
    """Intersection over union of two boxes, given by two corners; 0 when the union is."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(right - left, 0.0) * max(bottom - top, 0.0)

    ((x0, y0), (x1, y1)), ((u0, v0), (u1, v1)) = a, b
    overlap = area(max(x0, u0), max(y0, v0), min(x1, u1), min(y1, v1))
    union = area(x0, y0, x1, y1) + area(u0, v0, u1, v1) - overlap
    return overlap / union if union else 0.0


def _score_points(
    ours: Sequence[tuple[float, float]], theirs: Sequence[tuple[float, float]], near: float
) -> dict[str, float]:
    """Scores of landmarks in pixels; NaN where ours are not finite. NaN marks what theirs lack."""
    if not all(math.isfinite(value) for point in ours for value in point):
        return dict.fromkeys(("mre", "pck", "mre_official"), math.nan)
    # math.dist, because a row's few points would wait for numpy ten times as long.
    errors = [math.dist(*pair) for pair in zip(ours, theirs, strict=True)]
    present = [error for error in errors if not math.isnan(error)]
    absent = [math.hypot(*a) for a, error in zip(ours, errors, strict=True) if math.isnan(error)]
    return {
        "mre": sum(present) / len(present),
        "pck": sum(error <= near for error in present) / len(present),
        "mre_official": (sum(present) + sum(absent)) / len(errors),
    }


def columns(scored: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
    """The scores of rows by name: float64 [N] each."""
    return {name: np.array([scores[name] for scores in scored]) for name in scored[0]}


def metric_values(
    task: Task, metric: str, scores: Mapping[str, np.ndarray], weights: np.ndarray
) -> np.ndarray:
    """One metric of a task for each of B weightings of its N rows (see weighted.py).

    Args:
        task: what was asked.
        metric: one of METRICS, or a score of rows, for its mean.
        scores: of the rows; see `columns`.
        weights: float64 [B, N].

    Returns:
        float64 [B], NaN where the metric has no value.
    """
    if metric in scores:
        return weighted.mean(scores[metric], weights)
    if metric == "average_precision":
        right = scores["iou"] >= RIGHT_IOU
        return weighted.average_precision(scores["confidence"], right, weights)
    labels, probs = classified(task, scores)
    if metric == "ece":
        right = probs.argmax(axis=1) == labels
        return weighted.calibration_error(probs.max(axis=1), right, weights)
    if metric in ("auc", "sensitivity", "specificity"):
        # Of two classes that of the second, as the official AUC; of more the mean over all.
        classes = (1,) if task.num_classes == 2 else range(task.num_classes)
        return class_values(metric, labels, probs, weights, classes).mean(axis=1)
    counts = weighted.confusion(labels, probs.argmax(axis=1), task.num_classes, weights)
    return _OF_COUNTS[metric](counts)


def classified(task: Task, scores: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Labels int [N] and probabilities float64 [N, C] of classification rows."""
    probs = [scores[f"prob_{c}"] for c in range(task.num_classes)]
    return scores["label"].astype(int), np.stack(probs, axis=1)


def class_values(
    metric: str,
    labels: np.ndarray,
    probs: np.ndarray,
    weights: np.ndarray,
    classes: Sequence[int],
) -> np.ndarray:
    """A metric of each of some classes against the others: float64 [B, classes].

    Args:
        metric: auc, f1, sensitivity or specificity.
        labels: int [N].
        probs: float64 [N, C].
        weights: float64 [B, N].
        classes: which.
    """
    if metric == "auc":
        return np.stack([weighted.auc(probs[:, c], labels == c, weights) for c in classes], axis=1)
    counts = weighted.confusion(labels, probs.argmax(axis=1), probs.shape[1], weights)
    return _OF_CLASS_COUNTS[metric](counts)[:, classes]


def metric_value(task: Task, metric: str, scores: Mapping[str, np.ndarray]) -> float:
    """One metric of a task over the rows whose scores (see `columns`) are given.

    Raises:
        Undefined: the metric has no value on these rows.
    """
    check_finite(scores)
    if metric == "average_precision" and "confidence" not in scores:
        raise Undefined("the answers carry no confidence")
    rows = len(next(iter(scores.values())))
    value = float(metric_values(task, metric, scores, np.ones((1, rows)))[0])
    if not math.isnan(value):
        return value
    labels = scores["label"].astype(int)
    if metric in ("mcc", "specificity"):
        raise Undefined(f"only class {labels[0]} occurs in the truth")
    absent = np.setdiff1d(np.arange(task.num_classes), labels)
    raise Undefined(f"class {', '.join(map(str, absent))} does not occur in the truth")


def check_finite(scores: Mapping[str, np.ndarray]) -> None:
    """Raises Undefined where a prediction is not finite."""
    bad = np.any([~np.isfinite(column) for column in scores.values()], axis=0)
    if bad.any():
        raise Undefined(f"{bad.sum()} of {len(bad)} predictions are not finite numbers")


def summarise(task: Task, scored: Sequence[Mapping[str, float]]) -> dict:
    """The metrics of a task over its scored rows.

    Returns:
        {metric: value, or None where undefined, "n": rows, "undefined": {metric: reason}}.
    """
    values: dict[str, float | None] = {}
    undefined: dict[str, str] = {}
    scores = columns(scored) if scored else {}
    for metric in METRICS[task.type]:
        try:
            if not scored:
                raise Undefined("no row was scored")
            values[metric] = metric_value(task, metric, scores)
        except Undefined as reason:
            values[metric] = None
            undefined[metric] = str(reason)
    return {**values, "n": len(scored), "undefined": undefined}
