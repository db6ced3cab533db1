"""The official FM_UIA metrics, at original pixel size.

Scores are kept in two steps. `score_row` turns one answer into numbers that suffice for every
metric of its task; `summarise` turns the numbers of many rows into the task's metrics. So the
metrics of any subset of rows, a bootstrap sample for instance, need no image.

Where the official evaluator writes 0 for a metric that has no value (an AUC when a class is
absent), here the metric is undefined and a reason says why.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.stats import rankdata
from sklearn.metrics import f1_score, matthews_corrcoef

from usfm.evaluation.prediction import Answer, content
from usfm.tasks import Task

# The metrics of each task type; the first is the one that a task is compared by.
METRICS = {
    "classification": ("auc", "accuracy", "f1_macro", "f1_weighted", "mcc"),
    "detection": ("iou",),
    "regression": ("mre",),
    "segmentation": ("dsc", "hd"),
}
PRIMARY = {type_: names[0] for type_, names in METRICS.items()}
# In pixels; of all other metrics, which lie between -1 and 1, more is better.
LOWER_IS_BETTER = frozenset({"hd", "mre"})


class Undefined(ValueError):
    """A metric has no value on these rows; the message is the reason."""


def sign(metric: str) -> int:
    """+1 where a higher value is better, -1 where a lower one is."""
    return -1 if metric in LOWER_IS_BETTER else 1


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice coefficient of two boolean masks; 1 when both are empty."""
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * np.count_nonzero(a & b) / total if total else 1.0


def hausdorff(a: np.ndarray, b: np.ndarray) -> float:
    """Symmetric Hausdorff distance in pixels between the pixels of two boolean masks [H, W].

    0 when both are empty, the image's diagonal when one is.
    """
    if not a.any() or not b.any():
        return math.hypot(*a.shape) if a.any() or b.any() else 0.0
    # Both masks lie within the box round their union, so nothing outside it can be nearer.
    union = a | b
    rows, columns = (np.flatnonzero(union.any(axis=axis)) for axis in (1, 0))
    crop = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    a, b = a[crop], b[crop]
    to_a, to_b = (np.asarray(distance_transform_edt(~mask)) for mask in (a, b))
    return float(max(to_b[a].max(), to_a[b].max()))


def box_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two xyxy boxes [4]; 0 when the union is."""

    def area(box: np.ndarray) -> float:
        width, height = np.maximum(box[2:] - box[:2], 0)
        return float(width * height)

    overlap = area(np.concatenate([np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])]))
    union = area(a) + area(b) - overlap
    return overlap / union if union else 0.0


def auc(probs: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve: of class 1 when there are two, else macro one-vs-rest.

    Args:
        probs: [N, C] probabilities.
        labels: int [N] true classes.

    Raises:
        Undefined: a class does not occur among the labels.
    """
    absent = np.setdiff1d(np.arange(probs.shape[1]), labels)
    if absent.size:
        raise Undefined(f"class {', '.join(map(str, absent))} does not occur in the truth")
    classes = (1,) if probs.shape[1] == 2 else range(probs.shape[1])
    areas = []
    for c in classes:
        positive = labels == c
        n = np.count_nonzero(positive)
        ranks = rankdata(probs[:, c])[positive].sum()
        areas.append((ranks - n * (n + 1) / 2) / (n * (len(labels) - n)))
    return float(np.mean(areas))


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
        Segmentation: dsc and hd, means over the classes other than background. Detection: iou.
        Regression: mre over the points that are present. Classification: accuracy (0 or 1),
        prob_true, and label and prob_0 .. prob_C-1, from which all its metrics follow.

    Raises:
        ValueError: the answer is of another type or shape than the truth.
    """
    ours, theirs = content(task, predicted), content(task, true)
    if ours.shape != theirs.shape:
        raise ValueError(f"{task.id}: an answer of shape {ours.shape}, the truth {theirs.shape}")
    if task.type == "segmentation":
        pairs = [(ours == c, theirs == c) for c in range(1, task.num_classes)]
        return {
            "dsc": float(np.mean([dice(*pair) for pair in pairs])),
            "hd": float(np.mean([hausdorff(*pair) for pair in pairs])),
        }
    if task.type == "classification":
        label = int(theirs.argmax())
        right = float(ours.argmax() == label) if np.isfinite(ours).all() else math.nan
        probs = {f"prob_{c}": float(p) for c, p in enumerate(ours)}
        return {"accuracy": right, "prob_true": float(ours[label]), "label": float(label)} | probs
    scale = np.array([size[1], size[0]], np.float64)
    ours, theirs = ours.reshape(-1, 2) * scale, theirs.reshape(-1, 2) * scale
    if not np.isfinite(ours).all():
        return {PRIMARY[task.type]: math.nan}
    if task.type == "detection":
        return {"iou": box_iou(ours.reshape(4), theirs.reshape(4))}
    present = ~np.isnan(theirs).any(axis=1)
    return {"mre": float(np.linalg.norm((ours - theirs)[present], axis=1).mean())}


def columns(scored: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
    """The scores of rows by name: float64 [N] each."""
    return {name: np.array([scores[name] for scores in scored]) for name in scored[0]}


def metric_value(task: Task, metric: str, scores: Mapping[str, np.ndarray]) -> float:
    """One metric of a task over the rows whose scores (see `columns`) are given.

    Raises:
        Undefined: the metric has no value on these rows.
    """
    bad = np.any([~np.isfinite(column) for column in scores.values()], axis=0)
    if bad.any():
        raise Undefined(f"{bad.sum()} of {len(bad)} predictions are not finite numbers")
    if metric in scores:
        return float(scores[metric].mean())
    labels = scores["label"].astype(int)
    probs = np.stack([scores[f"prob_{c}"] for c in range(task.num_classes)], axis=1)
    if metric == "auc":
        return auc(probs, labels)
    predicted = probs.argmax(axis=1)
    if metric == "mcc":
        if len(np.unique(labels)) == 1:
            raise Undefined(f"only class {labels[0]} occurs in the truth")
        return float(matthews_corrcoef(labels, predicted))
    average = "macro" if metric == "f1_macro" else "weighted"
    return float(f1_score(labels, predicted, average=average, zero_division=0))


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
