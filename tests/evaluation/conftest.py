"""A small folder with one task of each type, its rows known without reading a CSV."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image

from usfm.data.folder import Fault, Folder, Row
from usfm.evaluation.predict import Predictor, programs_of
from usfm.evaluation.prediction import Answer
from usfm.models.m2dino import M2DINO
from usfm.tasks import TYPES, Task

SIZES = ((24, 32), (40, 20), (31, 33), (16, 48), (25, 25), (30, 60))


def _row(task_id: str, index: int, image_path: str, **fields: Any) -> Row:
    height, width = SIZES[index]
    empty: dict[str, Any] = {"mask_path": "", "label": None, "box": None, "points": ()}
    return Row(
        task_id=task_id,
        index=index,
        key=image_path,
        csv=f"{task_id}.csv",
        line=index + 2,
        image_path=image_path,
        height=height,
        width=width,
        content=f"{task_id}{index}",
        **(empty | fields),
    )


@pytest.fixture
def folder(tmp_path) -> Folder:
    root = tmp_path / "data"
    generator = np.random.default_rng(7)
    rows = {"classes": [], "mask": [], "spots": [], "where": []}
    (root / "Segmentation/MASKS").mkdir(parents=True)
    for i, (height, width) in enumerate(SIZES):
        low = generator.uniform(0, 0.5, 2) * (width, height)
        high = low + generator.uniform(0.1, 0.5, 2) * (width, height)
        pixels = generator.uniform(0, 1, (3, 2)) * (width, height)
        points: list[tuple[float, float] | None] = [(x, y) for x, y in pixels]
        if i == 1:
            points[2] = None
        mask = np.zeros((height, width), np.uint8)
        mask[3 : 3 + height // 2, 2 : 2 + width // 3] = 1
        if i % 2:
            mask[-6:, -8:] = 2
        mask_path = f"../Segmentation/MASKS/{i}.png"
        Image.fromarray(mask).save(root / mask_path.removeprefix("../"))
        of_task = {
            "classes": {"label": i % 3},
            "mask": {"mask_path": mask_path, "mask_content": f"m{i}"},
            "spots": {"points": tuple(points)},
            "where": {"box": (*low, *high)},
        }
        for task_id, fields in of_task.items():
            rows[task_id].append(_row(task_id, i, f"../Images/{task_id}/{i}.png", **fields))
    tasks = (
        Task("classes", "classification", num_classes=3),
        Task("mask", "segmentation", num_classes=3),
        Task("spots", "regression", num_points=3),
        Task("where", "detection", num_classes=1),
    )
    return Folder((root,), tasks, {task_id: tuple(of_task) for task_id, of_task in rows.items()})


@pytest.fixture
def guesses(folder):
    """An arbitrary but fixed answer of the right form to each row of `folder`, by task."""
    generator = np.random.default_rng(3)

    def guess(task, row):
        if task.type == "segmentation":
            return Answer(mask=generator.integers(0, 3, (row.height, row.width), dtype=np.uint8))
        if task.type == "classification":
            return Answer(probs=generator.dirichlet(np.ones(3)).astype(np.float32))
        if task.type == "detection":
            box = np.sort(generator.uniform(0, 1, (2, 2)), axis=0)
            return Answer(box=box.ravel().astype(np.float32))
        return Answer(points=generator.uniform(0, 1, (3, 2)).astype(np.float32))

    return [(row, guess(task, row)) for task in folder.tasks for row in folder.rows[task.id]]


@pytest.fixture
def damaged(folder) -> Folder:
    """The same folder, read with two faults in one row and one in another skipped."""
    faults = [("a.csv", 3, "x_min"), ("a.csv", 3, "y_min"), ("b.csv", 3, "mask")]
    skipped = tuple(Fault(*place, "is not a number", "correct it") for place in faults)
    return dataclasses.replace(folder, skipped=skipped)


@functools.cache
def fresh(model):
    return jax.jit(model.init)(jax.random.key(0))


@pytest.fixture
def make_fresh_predictor(small_folder):
    """Makes a predictor with fresh parameters on so many devices."""
    model = M2DINO(small_folder.tasks, variant="tiny", decoder_width=dict.fromkeys(TYPES, 8))

    def make(devices, batch_size):
        devices = jax.devices()[:devices]
        mesh = jax.make_mesh(
            (len(devices), 1, 1),
            ("data", "fsdp", "expert"),
            axis_types=(AxisType.Auto,) * 3,
            devices=devices,
        )
        placed = jax.device_put(fresh(model), NamedSharding(mesh, P()))
        programs = programs_of(model, mesh)
        return Predictor(programs, model.tasks, placed, mesh, (32, 32), 1, batch_size)

    return make
