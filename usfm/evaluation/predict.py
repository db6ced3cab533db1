"""Answers of the model to rows of a folder, at original size."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from usfm.data.augment import normalise
from usfm.data.folder import Folder, Row
from usfm.evaluation.images import Unreadable, read_batches
from usfm.evaluation.prediction import Answer
from usfm.evaluation.views import ONE_VIEW, Views, averaged, mirrored
from usfm.models.m2dino import M2DINO
from usfm.tasks import Task

# (params, uint8 images [S, n, H, W, C] of each scale, task int32 [S], whether to mirror them too)
# -> what `answer` reads.
Program = Callable[..., Mapping[str, jax.Array]]
# XLA's, for the compilation of a program; None = its own.
Options = dict[str, Any] | None
# Of a type's outputs, those that say the answer.
OUTPUTS = {
    "classification": ("logits",),
    "detection": ("heat", "boxes"),
    "regression": ("points",),
    "segmentation": ("logits",),
}


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
        views: how often each image is looked at.
    """

    programs: Mapping[str, Program]
    tasks: tuple[Task, ...]
    params: Any
    mesh: Mesh
    image_size: tuple[int, int]
    channels: int
    batch_size: int
    views: Views = ONE_VIEW

    def __call__(
        self,
        folder: Folder,
        rows: Mapping[str, Sequence[Row]],
        unreadable: Unreadable | None = None,
    ) -> Iterator[tuple[Row, Answer]]:
        """Answers rows, given by task id, of a folder whose tasks are among the model's.

        Images are read ahead in threads; every batch has the same shape, so that one program
        serves all tasks of a type. Rows that cannot be read are what read_batches makes of them.
        """
        size = self.slots * self.per_slot
        batches = read_batches(
            folder,
            [
                of_task[i : i + size]
                for of_task in rows.values()
                for i in range(0, len(of_task), size)
            ],
            sizes=self.views.sizes(self.image_size),
            channels=self.channels,
            batch_size=size,
            what="predicting",
            unreadable=unreadable,
        )
        tasks = {task.id: task for task in self.tasks}
        with ThreadPoolExecutor() as pool:
            for chunk, images in batches:
                task = tasks[chunk[0].task_id]
                outputs = self.outputs(task, images)
                of_rows = [{k: v[i] for k, v in outputs.items()} for i in range(len(chunk))]
                sizes = [(row.height, row.width) for row in chunk]
                answers = pool.map(functools.partial(answer, task), sizes, of_rows)
                yield from zip(chunk, answers, strict=True)

    @property
    def slots(self) -> int:
        """The devices that images are spread over."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    @property
    def per_slot(self) -> int:
        """Images of a batch on each of them."""
        return -(-self.batch_size // self.slots)

    def outputs(self, task: Task, images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """What the model says of a batch of slots * per_slot images, before `answer` reads it.

        Args:
            task: one of the model's.
            images: uint8 [B, H, W, C], of each scale of the views.
        """
        shape = (self.slots, self.per_slot)
        outputs = self.programs[task.type](
            self.params,
            tuple(image.reshape(*shape, *image.shape[1:]) for image in images),
            np.full(self.slots, self.tasks.index(task), np.int32),
            self.views.flip and task.flip_ok,
        )
        return {name: np.asarray(v).reshape(-1, *v.shape[2:]) for name, v in outputs.items()}


def make_predictor(
    config: ConfigDict,
    programs: Mapping[str, Program],
    tasks: tuple[Task, ...],
    params: Any,
    mesh: Mesh,
) -> Predictor:
    """A predictor of images as a config has them; the rest as Predictor takes it."""
    size = (config.data.image_size, config.data.image_size)
    views = Views(tuple(config.predict.scales), config.predict.flip)
    batch_size = config.evaluate.batch_size
    return Predictor(programs, tasks, params, mesh, size, config.data.channels, batch_size, views)


def programs_of(model: M2DINO, mesh: Mesh, options: Options = None) -> dict[str, Program]:
    """A program for each type of task of a model; models of equal tasks but for ids share them."""
    return {kind: _program(model, kind, mesh, options) for kind in model.types}


def _program(model: M2DINO, kind: str, mesh: Mesh, options: Options) -> Program:
    def look(params: Any, images: jax.Array, task: jax.Array) -> dict[str, jax.Array]:
        def slot(image: jax.Array, task: jax.Array) -> dict[str, jax.Array]:
            key = jax.random.key(0)  # not drawn from outside of training
            maps, _ = model.encode(params, image, task, train=False, key=key)
            raw = model.decode(params, kind, maps, task)
            return {name: raw[name] for name in OUTPUTS[kind]}

        return jax.vmap(slot)(images, task)

    def outputs(
        params: Any, images: tuple[jax.Array, ...], task: jax.Array, mirror: bool
    ) -> dict[str, jax.Array]:
        views = []
        for scaled in map(normalise, images):
            views.append(look(params, scaled, task))
            if mirror:
                views.append(mirrored(kind, look(params, jnp.flip(scaled, -2), task)))
        return averaged(kind, views) if len(views) > 1 else views[0]

    slots = NamedSharding(mesh, P(("data", "fsdp")))
    return jax.jit(
        outputs,
        in_shardings=(None, slots, slots),
        static_argnums=3,
        compiler_options=options,
    )


def answer(task: Task, size: tuple[int, int], outputs: Mapping[str, np.ndarray]) -> Answer:
    """One image's answer from its outputs (see usfm/models/heads.py).

    Args:
        task: what was asked.
        size: (height, width) of the original image.
        outputs: of that image, without a leading axis.
    """
    match task.type:
        case "segmentation":
            logits = np.ascontiguousarray(outputs["logits"][..., : task.num_classes])
            full = cv2.resize(logits, size[::-1], interpolation=cv2.INTER_LINEAR)
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
