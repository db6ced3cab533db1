"""Batches of an FM_UIA folder as the official baseline makes them, on one core: for input.py.

Argument: the folder. Files are decoded and resized by OpenCV, augmented and normalised by
Albumentations and collated row by row, as a PyTorch Dataset and DataLoader would in one worker:
each batch of one task that is drawn evenly, 20 rows, RGB at 256 x 256. Torch itself is not needed.
Says in one line what it is and how many rows a turn has; then, for every line it reads, takes a
turn and says its seconds and CPU seconds.
"""

import csv
import json
import os
import pathlib
import random
import sys
import time
from typing import Any

import albumentations as A  # pyrefly: ignore[missing-import]
import cv2
import numpy as np

BATCH, BATCHES, SIZE = 20, 8, 256
NOISE = 0.2  # probability of each of the two augmentations

Sample = dict[str, np.ndarray]


class Rows:
    """The rows of a task, each decoded, augmented and normalised when it is asked for."""

    def __init__(self, table: pathlib.Path):
        with table.open(newline="") as file:
            self.rows = list(csv.DictReader(file))
        self.folder, kind = table.parent, self.rows[0]["task_name"]
        self.kind = kind
        points = A.KeypointParams("xy", remove_invisible=False) if kind == "Regression" else None
        boxes = A.BboxParams("pascal_voc", label_fields=["labels"]) if kind == "detection" else None
        self.transform = A.Compose(
            [
                A.Resize(SIZE, SIZE),
                A.RandomBrightnessContrast(p=NOISE),
                A.GaussNoise(p=NOISE),
                A.Normalize(),
            ],
            keypoint_params=points,
            bbox_params=boxes,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row = self.rows[index]
        image = cv2.imread(str(self.folder / row["image_path"]))
        assert image is not None, row["image_path"]
        inputs: dict[str, Any] = {"image": cv2.cvtColor(image, cv2.COLOR_BGR2RGB)}
        if self.kind == "segmentation":
            path = str(self.folder / row["mask_path"])
            inputs["mask"] = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
        elif self.kind == "Regression":
            names = [name for name in row if name.startswith("point_")]
            inputs["keypoints"] = np.array([json.loads(row[name]) for name in names], np.float32)
        elif self.kind == "detection":
            edges = [float(row[name]) for name in ("x_min", "y_min", "x_max", "y_max")]
            inputs |= {"bboxes": np.array([edges], np.float32), "labels": [0]}
        found = self.transform(**inputs)
        sample = {"image": found["image"].transpose(2, 0, 1)}
        if self.kind == "classification":
            return sample | {"label": np.array(int(row["mask"]))}
        name = {"segmentation": "mask", "Regression": "keypoints", "detection": "bboxes"}[self.kind]
        return sample | {name: np.asarray(found[name])}


def collate(samples: list[Sample]) -> Sample:
    """Stacks the rows of a batch."""
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}


def main(root: str) -> None:
    """Takes a turn for every line of its input."""
    if hasattr(os, "sched_setaffinity"):  # on Linux
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    cv2.setNumThreads(0)
    tasks = [Rows(table) for table in sorted(pathlib.Path(root).glob("csv_files/*.csv"))]
    draw = random.Random(0)
    print(f"Albumentations {A.__version__} on OpenCV {cv2.__version__}", BATCH * BATCHES, sep="\t")
    sys.stdout.flush()
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(BATCHES):
            task = draw.choice(tasks)
            collate([task[draw.randrange(len(task))] for _ in range(BATCH)])
        print(time.perf_counter() - wall, time.process_time() - cpu, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
