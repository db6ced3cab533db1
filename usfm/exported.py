"""Answers from an exported model (tools/export_model.py), with JAX and NumPy alone.

The folder of such a model and this file are all that is needed, and flatbuffers, in which
jax.export writes: this file imports nothing of usfm, and may be copied beside the folder.

    model = load("exported")
    answers = model("breast_lesion", images)  # uint8 [B, *model.image_shape], any B
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import export


@dataclasses.dataclass(frozen=True)
class Exported:
    """A model as it was exported.

    Attributes:
        tasks: id -> its "type", "size" (classes or points) and "index", as the programs know it.
        image_shape: (H, W, C) of the images; C is 1 (grey) or 3 (RGB).
        programs: type of task -> its program, (params, images, index of the task) -> outputs.
        params: type of task -> what its program reads, by name.
    """

    tasks: Mapping[str, Mapping[str, Any]]
    image_shape: tuple[int, int, int]
    programs: Mapping[str, Callable[..., Mapping[str, jax.Array]]]
    params: Mapping[str, Mapping[str, jax.Array]]

    def __call__(self, task: str, images: np.ndarray) -> dict[str, np.ndarray]:
        """The raw answers to images, all asked one task.

        Args:
            task: the id of one of `tasks`.
            images: uint8 [B, *image_shape], resized to that shape and nothing more.

        Returns:
            float32, for a task of size C or K: segmentation "logits" [B, H, W, C]; classification
            "logits" [B, C]; detection "heat" [B, h, w], logits of a box's centre being in a cell,
            and "boxes" [B, h, w, 4], the x_min, y_min, x_max, y_max that each cell sees;
            regression "points" [B, K, 2] as x, y. Coordinates are relative to width and height.
        """
        asked = self.tasks[task]
        kind = asked["type"]
        index = np.int32(asked["index"])
        found = self.programs[kind](self.params[kind], np.asarray(images), index)
        found = {name: np.asarray(array) for name, array in found.items()}
        if "logits" in found:  # tasks of a type share a program that is as wide as the widest
            found["logits"] = found["logits"][..., : asked["size"]]
        if "points" in found:
            found["points"] = found["points"][:, : asked["size"]]
        return found


def load(folder: str | pathlib.Path) -> Exported:
    """Reads what tools/export_model.py wrote; runs on a CPU, an NVIDIA GPU or a TPU."""
    folder = pathlib.Path(folder)
    about = json.loads((folder / "model.json").read_text())
    with np.load(folder / "params.npz") as file:
        arrays = {name: jax.device_put(file[name]) for name in file.files}
    kinds = sorted({task["type"] for task in about["tasks"].values()})
    files = {kind: folder / f"{kind}.stablehlo" for kind in kinds}
    programs = {
        kind: jax.jit(export.deserialize(bytearray(file.read_bytes())).call)
        for kind, file in files.items()
    }
    params = {kind: {name: arrays[name] for name in about["params"][kind]} for kind in kinds}
    return Exported(about["tasks"], tuple(about["image_shape"]), programs, params)
