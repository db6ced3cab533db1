"""Scores a submission row by row with SimpleITK and scikit-learn: for metrics.py, and for tests.

Arguments: an FM_UIA folder and a submission. The official metrics are computed in the way of the
official evaluator: masks class by class with numpy and SimpleITK's Hausdorff filter, the rest row
by row in Python, then scikit-learn once a task. The others ("all") are written as users of these
libraries would. Rows whose prediction is missing are left out.

Says in one line what it is; then, for every line it reads: "TYPE official" or "TYPE all" scores the
rows of that type, which are in memory, and says how many seconds that took, by the clock and of all
cores; "files official" and "files all" read all rows first. "json" says the results, in the
official form, to which those of the other metrics are added.
"""

import collections
import csv
import itertools
import json
import math
import pathlib
import sys
import time
from typing import Any

import cv2
import medpy.metric.binary  # pyrefly: ignore[missing-import]
import numpy as np
import scipy.ndimage
import SimpleITK as sitk  # pyrefly: ignore[missing-import]
import sklearn
from sklearn import metrics

TYPES = ("segmentation", "classification", "detection", "Regression")
BINS, NSD_TOLERANCE, PCK_SHARE = 15, 2.0, 0.05

Rows = dict[str, list[tuple[Any, Any, Any]]]  # task id -> (prediction, truth, row of the CSV)


def load(root: pathlib.Path, submission: pathlib.Path) -> dict[str, Rows]:
    """Predictions and truths of all rows, by type and task."""
    answers: dict[tuple[str, str], dict] = {}
    for type_ in TYPES[1:]:
        file = submission / f"{type_.lower()}_predictions.json"
        for entry in json.loads(file.read_text()) if file.exists() else ():
            answers[entry["task_id"], entry["image_path"]] = entry
    loaded: dict[str, Rows] = {type_: collections.defaultdict(list) for type_ in TYPES}
    for table in sorted(root.glob("csv_files/*.csv")):
        with table.open(newline="") as file:
            for row in csv.DictReader(file):
                type_, task = row["task_name"], row["task_id"]
                if type_ == "segmentation":
                    path = submission / row["mask_path"].replace("../", "")
                    if path.exists():
                        true = grey(table.parent / row["mask_path"])
                        loaded[type_][task].append((grey(path), true, row))
                elif (answer := answers.get((task, row["image_path"]))) is not None:
                    loaded[type_][task].append((answer, row, table.parent / row["image_path"]))
    return loaded


def grey(path: pathlib.Path) -> np.ndarray:
    """A mask as it is stored."""
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert mask is not None, path
    return mask


def segmentation(task: str, rows: list, everything: bool) -> dict:
    """DSC and HD of every class, and of those but the background HD95 and NSD."""
    classes = int(rows[0][2]["num_classes"])
    table = {c: [] for c in range(classes)}
    for ours, theirs, _ in rows:
        diagonal = math.hypot(*theirs.shape)
        for c in range(classes):
            a, b = (ours == c).astype(np.uint8), (theirs == c).astype(np.uint8)
            n_a, n_b = a.sum(), b.sum()
            scores = {
                "DSC": 2.0 * (a * b).sum() / (n_a + n_b) if n_a + n_b else 1.0,
                "HD": hausdorff(a, b) if n_a and n_b else diagonal if n_a or n_b else 0.0,
            }
            if everything and c:
                if n_a and n_b:
                    scores["HD95"] = medpy.metric.binary.hd95(a, b)
                    scores["NSD"] = surface_dice(a, b)
                else:
                    scores["HD95"] = diagonal if n_a or n_b else 0.0
                    scores["NSD"] = 0.0 if n_a or n_b else 1.0
            table[c].append(scores)
    per_class = {
        f"class_{c}": {name: float(np.mean([row[name] for row in of])) for name in of[0]}
        for c, of in table.items()
    }
    inner = [per_class[f"class_{c}"] for c in range(1, classes)]
    means = {name: float(np.mean([scores[name] for scores in inner])) for name in inner[0]}
    return means | {"num_samples": len(rows), "per_class": per_class}


def hausdorff(a: np.ndarray, b: np.ndarray) -> float:
    """The filter that the official evaluator calls."""
    found = sitk.HausdorffDistanceImageFilter()
    found.Execute(sitk.GetImageFromArray(a * 255), sitk.GetImageFromArray(b * 255))
    return found.GetHausdorffDistance()


def surface_dice(a: np.ndarray, b: np.ndarray) -> float:
    """Normalised surface distance, from SimpleITK's distances to the pixels of each surface."""
    a, b = (mask ^ scipy.ndimage.binary_erosion(mask).astype(np.uint8) for mask in (a, b))
    to_a, to_b = (
        sitk.GetArrayFromImage(
            sitk.SignedMaurerDistanceMap(
                sitk.GetImageFromArray(surface), squaredDistance=False, useImageSpacing=False
            )
        )
        for surface in (a, b)
    )
    within = (to_b[a > 0] <= NSD_TOLERANCE).sum() + (to_a[b > 0] <= NSD_TOLERANCE).sum()
    return float(within / (a.sum() + b.sum()))


def classification(task: str, rows: list, everything: bool) -> dict:
    """Accuracy, F1, MCC and AUC; and sensitivity, specificity and calibration error."""
    classes = int(rows[0][1]["num_classes"])
    labels, predicted, probs = [], [], []
    for answer, row, _ in rows:
        labels.append(int(row["mask"]))
        predicted.append(answer["predicted_class"])
        probs.append(answer["predicted_probs"])
    true, said, sure = np.array(labels), np.array(predicted), np.array(probs)
    area = 0.0
    if len(set(labels)) == classes:
        of_probs = sure[:, 1] if classes == 2 else sure
        area = float(metrics.roc_auc_score(true, of_probs, average="macro", multi_class="ovr"))
    single = metrics.f1_score(true, said, average=None, zero_division=0)
    report = {
        "AUC": area,
        "Accuracy": float(np.mean(true == said)),
        "F1_macro": float(metrics.f1_score(true, said, average="macro", zero_division=0)),
        "F1_weighted": float(metrics.f1_score(true, said, average="weighted", zero_division=0)),
        "MCC": float(metrics.matthews_corrcoef(true, said)),
        "num_samples": len(rows),
        "per_class": {
            f"class_{c}": {"F1": float(single[c]) if c < len(single) else 0.0}
            for c in range(classes)
        },
    }
    if everything:
        chosen = [1] if classes == 2 else range(classes)
        pairs = [(true == c, said == c) for c in chosen]
        report["sensitivity"] = float(np.mean([metrics.recall_score(t, s) for t, s in pairs]))
        report["specificity"] = float(np.mean([metrics.recall_score(~t, ~s) for t, s in pairs]))
        highest, edges = sure.max(axis=1), np.linspace(0, 1, BINS + 1)
        gap = 0.0
        for low, high in itertools.pairwise(edges):
            held = (highest > low) & (highest <= high)
            if held.any():
                gap += held.mean() * abs((true == said)[held].mean() - highest[held].mean())
        report["ECE"] = float(gap)
    return report


def detection(task: str, rows: list, everything: bool) -> dict:
    """Mean IoU. Its form holds no confidence, so that average precision is timed on the IoU."""
    overlaps = []
    for answer, row, _ in rows:
        x0, y0, x1, y1 = answer["bbox_pixels"]
        u0, v0, u1, v1 = (float(row[name]) for name in ("x_min", "y_min", "x_max", "y_max"))
        overlap = max(0, min(x1, u1) - max(x0, u0)) * max(0, min(y1, v1) - max(y0, v0))
        union = (x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - overlap
        overlaps.append(overlap / union if union else 0.0)
    if everything:
        right = np.array(overlaps) >= 0.5
        metrics.average_precision_score(right, overlaps) if right.any() else 0.0
    return {"IoU": float(np.mean(overlaps)), "num_samples": len(rows)}


def regression(task: str, rows: list, everything: bool) -> dict:
    """Mean radial error, absent points at (0, 0); and the share of points that are near."""
    errors, near = [], []
    for answer, row, _ in rows:
        names = [f"point_{k}_xy" for k in range(1, int(row["num_classes"]) + 1)]
        true = np.array([json.loads(row[name]) if row[name] else [0, 0] for name in names])
        said = np.array(answer["predicted_points_pixels"]).reshape(-1, 2)
        distances = np.sqrt(np.sum((said - true) ** 2, axis=1))
        errors.append(np.mean(distances))
        if everything:
            # The side of the image follows from what was handed in.
            shares = np.reshape(answer["predicted_points_normalized"], (-1, 2))
            side = np.nanmax(said / np.where(shares == 0, np.nan, shares))
            near.append(np.mean(distances <= PCK_SHARE * side))
    report = {"MRE": float(np.mean(errors)), "num_samples": len(rows)}
    return report | ({"PCK": float(np.mean(near))} if everything else {})


SCORE = dict(zip(TYPES, (segmentation, classification, detection, regression), strict=True))


def score(loaded: dict[str, Rows], types: tuple[str, ...], everything: bool) -> dict:
    """Results by type and task, in the official form."""
    return {
        type_.lower(): {
            task: SCORE[type_](task, rows, everything) for task, rows in loaded[type_].items()
        }
        for type_ in types
        if loaded[type_]
    }


def main(root: pathlib.Path, submission: pathlib.Path) -> None:
    """Takes a turn for every line of its input."""
    loaded = load(root, submission)
    print(f"SimpleITK {sitk.__version__}, scikit-learn {sklearn.__version__}", flush=True)
    for line in sys.stdin:
        what, _, how = line.strip().partition(" ")
        if what == "json":
            print(json.dumps(score(loaded, TYPES, True)), flush=True)
            continue
        began = time.perf_counter(), time.process_time()
        if what == "files":
            score(load(root, submission), TYPES, how == "all")
        else:
            score(loaded, (what,), how == "all")
        print(time.perf_counter() - began[0], time.process_time() - began[1], flush=True)


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))
