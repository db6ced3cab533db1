"""Answers of the model to rows of a folder, at original size."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from usfm.data.augment import normalise
from usfm.data.folder import Folder, Row
from usfm.data.image import read_image, resize_image
from usfm.data.progress import progress
from usfm.evaluation.prediction import Answer
from usfm.models.m2dino import M2DINO
from usfm.tasks import Task

# (params, uint8 images [S, n, H, W, C], task int32 [S]) -> what `answer` reads.
Program = Callable[..., Mapping[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A model with placed parameters, ready to answer.

    Attributes:
        programs: of each type of task, as programs_of makes them.
        tasks: that may be asked, in the model's order.
        params: the model's, on the mesh.
        mesh: with axes data and fsdp, over which images are spread.
        image_size: (height, width) that images are resized to.
        channels: 1 or 3, as trained.
        batch_size: images at once; brought to a multiple of the devices.
    """

    programs: Mapping[str, Program]
    tasks: tuple[Task, ...]
    params: Any
    mesh: Mesh
    image_size: tuple[int, int]
    channels: int
    batch_size: int

    def __call__(
        self, folder: Folder, rows: Mapping[str, Sequence[Row]]
    ) -> Iterator[tuple[Row, Answer]]:
        """Answers rows, given by task id, of a folder whose tasks are among the model's.

        Images are read ahead in threads; every batch has the same shape, so that one program
        serves all tasks of a type.
        """
        places = {task.id: place for place, task in enumerate(self.tasks)}
        devices = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        per_slot = -(-self.batch_size // devices)
        chunks = [
            (task_id, of_task[start : start + devices * per_slot])
            for task_id, of_task in rows.items()
            for start in range(0, len(of_task), devices * per_slot)
        ]

        def load(row: Row) -> np.ndarray:
            image = read_image(folder.image_file(row))
            return resize_image(image, self.image_size, self.channels)

        with ThreadPoolExecutor() as pool:
            ahead = [pool.submit(load, row) for row in chunks[0][1]] if chunks else []
            done = progress(chunks, len(chunks), "predicting")
            for number, (task_id, chunk) in enumerate(done):
                images = np.zeros((devices * per_slot, *self.image_size, self.channels), np.uint8)
                images[: len(chunk)] = [future.result() for future in ahead]
                if number + 1 < len(chunks):
                    ahead = [pool.submit(load, row) for row in chunks[number + 1][1]]
                task = self.tasks[places[task_id]]
                outputs = self.programs[task.type](
                    self.params,
                    images.reshape(devices, per_slot, *images.shape[1:]),
                    np.full(devices, places[task_id], np.int32),
                )
                outputs = {
                    name: np.asarray(value).reshape(-1, *value.shape[2:])
                    for name, value in outputs.items()
                }
                of_rows = [{k: v[i] for k, v in outputs.items()} for i in range(len(chunk))]
                answers = pool.map(functools.partial(answer, task), chunk, of_rows)
                yield from zip(chunk, answers, strict=True)


def make_predictor(
    config: ConfigDict,
    programs: Mapping[str, Program],
    tasks: tuple[Task, ...],
    params: Any,
    mesh: Mesh,
) -> Predictor:
    """A predictor of images as a config has them; the rest as Predictor takes it."""
    size = (config.data.image_size, config.data.image_size)
    batch_size = config.evaluate.batch_size
    return Predictor(programs, tasks, params, mesh, size, config.data.channels, batch_size)


def programs_of(model: M2DINO, mesh: Mesh) -> dict[str, Program]:
    """A program for each type of task of a model; models of equal tasks but for ids share them."""
    return {kind: _program(model, kind, mesh) for kind in model.types}


def _program(model: M2DINO, kind: str, mesh: Mesh) -> Program:
    def outputs(params: Any, images: jax.Array, task: jax.Array) -> Mapping[str, jax.Array]:
        def slot(image: jax.Array, task: jax.Array) -> Mapping[str, jax.Array]:
            key = jax.random.key(0)  # not drawn from outside of training
            maps, _ = model.encode(params, image, task, train=False, key=key)
            raw = model.decode(params, kind, maps, task)
            wanted = {"logits", "heat", "boxes"} if kind != "regression" else {"points"}
            return {name: value for name, value in raw.items() if name in wanted}

        return jax.vmap(slot)(normalise(images), task)

    slots = NamedSharding(mesh, P(("data", "fsdp")))
    return jax.jit(outputs, in_shardings=(None, slots, slots))


def answer(task: Task, row: Row, outputs: Mapping[str, np.ndarray]) -> Answer:
    """One image's answer from its outputs (see usfm/models/heads.py), at original size."""
    match task.type:
        case "segmentation":
            logits = np.ascontiguousarray(outputs["logits"][..., : task.num_classes])
            full = cv2.resize(logits, (row.width, row.height), interpolation=cv2.INTER_LINEAR)
            return Answer(mask=full.argmax(-1).astype(np.uint8))
        case "classification":
            logits = outputs["logits"][: task.num_classes]
            weights = np.exp(logits - logits.max())
            return Answer(probs=(weights / weights.sum()).astype(np.float32))
        case "detection":
            return best_box(outputs["heat"], outputs["boxes"])
        case _:
            return Answer(points=outputs["points"][: task.num_points].astype(np.float32))


def best_box(heat: np.ndarray, boxes: np.ndarray) -> Answer:
    """The box where the heat map is highest, as the cells around agree on it.

    Cells around a centre are trained to see the same box (losses.detection): their median is
    better than the one's (by .02 IoU on two ultrasound tasks).

    Args:
        heat: float32 [h, w], logits of a box's centre being in the cell.
        boxes: float32 [h, w, 4], the box that each cell sees.
    """
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    around = boxes[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].reshape(-1, 4)
    confidence = 1 / (1 + np.exp(-float(heat[y, x])))
    return Answer(
        box=np.clip(np.median(around, axis=0), 0, 1).astype(np.float32), confidence=confidence
    )
