"""A trained model as StableHLO programs and plain arrays, which usfm/exported.py reads."""

import io
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import export

from usfm.data.augment import normalise
from usfm.evaluation.files import write_atomically
from usfm.evaluation.predict import OUTPUTS
from usfm.models.functional import Params, path_name
from usfm.models.m2dino import M2DINO

PLATFORMS = ("cpu", "cuda", "tpu")


def export_model(
    model: M2DINO, params: Params, image_shape: tuple[int, int, int], output_dir: epath.PathLike
) -> None:
    """Writes model.json, params.npz and TYPE.stablehlo for each type of the model's tasks.

    A program takes (parameters by name, uint8 images [B, H, W, C] of any B, int32 index of the
    task) and gives what exported.Exported says, with the classes of the widest task. It normalises
    the images itself. Programs hold no parameters: all of them read the encoder's from one file.

    Args:
        model: what is exported.
        params: the model's.
        image_shape: (H, W, C) of the images.
        output_dir: made where it is missing.
    """
    output_dir = epath.Path(output_dir)
    by_name = {kind: _by_name(_read_by(kind, params)) for kind in model.types}
    arrays = {name: array for of_kind in by_name.values() for name, array in of_kind.items()}
    data = io.BytesIO()
    np.savez(data, **jax.device_get(arrays))
    write_atomically(output_dir / "params.npz", data.getvalue())
    for kind in model.types:
        program = _program(model, kind, by_name[kind], image_shape)
        write_atomically(output_dir / f"{kind}.stablehlo", bytes(program.serialize()))
    about = {
        "image_shape": image_shape,
        "tasks": {
            task.id: {"type": task.type, "size": task.size, "index": index}
            for index, task in enumerate(model.tasks)
        },
        "params": {kind: sorted(of_kind) for kind, of_kind in by_name.items()},
    }
    write_atomically(output_dir / "model.json", json.dumps(about, indent=2).encode() + b"\n")


def _program(
    model: M2DINO, kind: str, params: Mapping[str, jax.Array], image_shape: tuple[int, int, int]
) -> export.Exported:
    def outputs(
        params: Mapping[str, jax.Array], images: jax.Array, task: jax.Array
    ) -> dict[str, jax.Array]:
        nested, key = _nested(params), jax.random.key(0)  # not drawn from outside of training
        maps, _ = model.encode(nested, normalise(images), task, train=False, key=key)
        raw = model.decode(nested, kind, maps, task)
        return {name: raw[name] for name in OUTPUTS[kind]}

    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), dict(params))
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.uint8)
    task = jax.ShapeDtypeStruct((), jnp.int32)
    return export.export(jax.jit(outputs), platforms=PLATFORMS)(shapes, images, task)


def _read_by(kind: str, params: Params) -> Params:
    """The parameters that tasks of a type read."""
    shared = {name: params[name] for name in ("encoder", "task_embedding") if name in params}
    return shared | {room: {kind: params[room][kind]} for room in ("decoders", "heads")}


def _by_name(params: Params) -> dict[str, jax.Array]:
    """The leaves of nested parameters by their path; `_nested` is the inverse."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {path_name(path): leaf for path, leaf in leaves}


def _nested(by_name: Mapping[str, Any]) -> Params:
    nested: Params = {}
    for name, leaf in by_name.items():
        *rooms, last = name.split("/")
        inside = nested
        for room in rooms:
            inside = inside.setdefault(room, {})
        inside[last] = leaf
    return nested
