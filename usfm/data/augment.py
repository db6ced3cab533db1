"""Augmentation on the device: one pure function of (batch, key), compiled into the training step.

Only this file of usfm/data and the two it calls, geometry.py and appearance.py, import JAX.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from usfm.data import appearance, geometry
from usfm.data.slots import IGNORE
from usfm.tasks import Task

KEPT_AREA = 0.5  # of a box that has to stay in the picture

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Batch = Mapping[str, jax.Array]


def strengths(data: ConfigDict, tasks: Sequence[Task]) -> np.ndarray:
    """The strength for each task, float32 [T]: its type's share of data.augment."""
    shares = [data.augment_by_type[task.type] for task in tasks]
    return np.float32(data.augment) * np.array(shares, np.float32)


def augment(
    batch: Batch, key: jax.Array, *, strength: np.ndarray, flip_ok: jax.Array
) -> dict[str, jax.Array]:
    """Moves and recolours every image of a batch at random, its labels with it.

    Geometry: a mirroring where the task allows it, and one affine resampling (rotation, scale,
    shift) of image (bilinear, black outside), mask (nearest, 255 outside), box and points. A
    point that leaves the image is no longer valid. A box becomes the box of the ellipse that
    filled it: corners would overstate a turned lesion by up to half its area (Kalra et al.,
    "Towards Rotation Invariance in Object Detection", ICCV 2021). Where less than half of a box
    would be left in the picture, the image keeps its place.

    Field of view: half of the images are cut to a sector, as another probe would see them, black
    outside. What cannot be seen is not asked for: there masks are 255 and points not valid, as
    outside the image. An image whose box would be cut stays whole, since a box has no such mark,
    and its visible rest is not what was annotated.

    Appearance: gamma, blur, gain by depth, an acoustic shadow, speckle, contrast and brightness.
    Labels stay: what lies in a shadow is still there.

    Args:
        batch: as usfm/data/slots.py describes it, on the device.
        key: random key of the step.
        strength: of each task, float [T], from 0 (no change) to 1 (rotation up to 15 degrees, scale
            by up to 20 %, shift by up to 10 %, gamma from 0.67 to 1.5; geometry.py and
            appearance.py have all ranges).
        flip_ok: bool [T], whether a mirrored image of a task keeps its label.

    Returns:
        The batch, image as float32 [S, n, H, W, C] in [0, 255].
    """
    if not ((strength >= 0) & (strength <= 1)).all():
        raise ValueError(f"strength of augmentation is {strength}; give numbers from 0 to 1")
    if not strength.any():
        return {**batch, "image": batch["image"].astype(jnp.float32)}
    slots, images, height, width = batch["image"].shape[:4]
    # All of an image's chance in one draw: every further one costs half a second to compile.
    counts = geometry.MOVE_DRAWS, geometry.SECTOR_DRAWS, appearance.DRAWS
    bits = jax.random.bits(key, (slots, images, sum(counts) + height * width))
    draws, noise = jnp.split(bits, [sum(counts)], axis=-1)
    draws = draws.astype(jnp.float32) / 2.0**31 - 1  # even in [-1, 1]
    of_move, of_sector, of_colours = jnp.split(draws, np.cumsum(counts)[:-1], axis=-1)

    by_slot = jnp.asarray(strength)[batch["task"]][:, None]
    may_flip = flip_ok[batch["task"]][:, None] & (by_slot > 0)
    move = geometry.random_move(of_move, may_flip, height / width, by_slot)
    sector = geometry.random_sector(of_sector, by_slot)
    moved = dict(batch)
    if "box" in batch:
        there = geometry.area(batch["box"]) > 0
        whole = geometry.move_box(batch["box"], move)
        box = jnp.clip(whole, 0, 1)
        fits = geometry.area(box) >= KEPT_AREA * geometry.area(whole)
        move = move.where(fits)
        box = jnp.where((there & fits)[..., None], box, batch["box"])
        at_corners = sector.margin(box[..., None, 0::2], box[..., 1::2, None])
        sector = sector.where(~there | jnp.all(at_corners >= 0, axis=(-2, -1)))
        moved["box"] = box
    if "points" in batch:
        points = geometry.move_points(batch["points"], move)
        inside = jnp.all((points >= 0) & (points <= 1), axis=-1)
        inside &= sector.margin(points[..., 0], points[..., 1]) >= 0
        moved["points_valid"] = batch["points_valid"] & inside
        moved["points"] = jnp.where(moved["points_valid"][..., None], points, 0.0)
    seen = sector.seen(height, width)
    image, mask = geometry.resample(batch["image"], batch.get("mask"), move)
    if mask is not None:
        moved["mask"] = jnp.where(seen >= 0.5, mask, IGNORE).astype(jnp.uint8)
    noise = noise.reshape(slots, images, height, width)
    image = appearance.recolour(image * seen[..., None], of_colours, noise, by_slot)
    return moved | {"image": image}


def normalise(image: jax.Array) -> jax.Array:
    """Brings images to what ImageNet-trained encoders expect.

    Args:
        image: [..., H, W, C] in [0, 255], any dtype; grey (C = 1) or RGB.

    Returns:
        float32 [..., H, W, 3] of about zero mean and unit deviation; grey is replicated.
    """
    scaled = image.astype(jnp.float32) / 255
    return (scaled - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)
