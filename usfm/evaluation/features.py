"""Features of images from the encoder alone, without any decoder or head."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from usfm.data.augment import normalise
from usfm.data.folder import Folder, Row
from usfm.evaluation.images import Unreadable, read_batches
from usfm.evaluation.predict import Options
from usfm.models.m2dino import M2DINO


@dataclasses.dataclass(frozen=True)
class Features:
    """What the encoder says of one image (M2DINO.features), float32 after the final norm.

    Attributes:
        dense: [h, w, D], a patch of 16 x 16 pixels of the resized image each.
        cls: [D], of the CLS token.
        mean: [D], of the patches.
    """

    dense: np.ndarray
    cls: np.ndarray
    mean: np.ndarray


NAMES = tuple(field.name for field in dataclasses.fields(Features))


@dataclasses.dataclass(frozen=True)
class Extractor:
    """An encoder with placed parameters.

    Attributes:
        program: as program_of makes it.
        params: the model's, on the mesh.
        mesh: with axes data and fsdp, over which images are spread.
        image_size: (height, width) that images are resized to.
        channels: 1 or 3, as trained.
        batch_size: images at once; brought to a multiple of the devices.
        task: index of the task whose features are wanted; None = of no task in particular.
    """

    program: Callable[..., Mapping[str, jax.Array]]
    params: Any
    mesh: Mesh
    image_size: tuple[int, int]
    channels: int
    batch_size: int
    task: int | None = None

    def __call__(
        self, folder: Folder, rows: Sequence[Row], unreadable: Unreadable | None = None
    ) -> Iterator[tuple[Row, Features]]:
        """The features of the images of rows; see read_batches for what cannot be read."""
        devices = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        size = -(-self.batch_size // devices) * devices
        batches = read_batches(
            folder,
            [rows[start : start + size] for start in range(0, len(rows), size)],
            sizes=[self.image_size],
            channels=self.channels,
            batch_size=size,
            what="encoding",
            unreadable=unreadable,
        )
        for chunk, (images,) in batches:
            yield from zip(chunk, self.of_batch(images), strict=False)

    def of_batch(self, images: np.ndarray) -> list[Features]:
        """The features of uint8 [B, H, W, C], B a multiple of the devices."""
        task = None if self.task is None else np.int32(self.task)
        found = jax.device_get(self.program(self.params, images, task))
        return [Features(**{k: v[i] for k, v in found.items()}) for i in range(len(images))]


def program_of(
    model: M2DINO, mesh: Mesh, options: Options = None
) -> Callable[..., Mapping[str, jax.Array]]:
    """(params, uint8 images [B, H, W, C], task int32 [] or None) -> model.features of them."""

    def features(params: Any, images: jax.Array, task: jax.Array | None) -> dict[str, jax.Array]:
        return model.features(params, normalise(images), task)

    spread = NamedSharding(mesh, P(("data", "fsdp")))
    return jax.jit(features, in_shardings=(None, spread, None), compiler_options=options)
