"""Augmentation on the device: one pure function of (batch, key), compiled into the training step.

The only file of usfm/data that imports JAX.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from usfm.data.slots import IGNORE

# Ranges at strength 1.
ROTATION = math.pi / 12
SCALE = 0.2
SHIFT = 0.1  # of the image's side
GAMMA = 1.5
CONTRAST = 0.2
BRIGHTNESS = 0.1  # of full scale
SPECKLE = 0.1  # standard deviation, relative

DRAWS = 9  # of an image: 5 for its geometry, 4 for its colours
KEPT_AREA = 0.5  # of a box that has to stay in the picture

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Batch = Mapping[str, jax.Array]


def augment(
    batch: Batch, key: jax.Array, *, strength: float, flip_ok: jax.Array
) -> dict[str, jax.Array]:
    """Moves and recolours every image of a batch at random, its labels with it.

    Geometry: a mirroring where the task allows it, and one affine resampling (rotation, scale,
    shift) of image (bilinear, black outside), mask (nearest, 255 outside), box and points. A
    point that leaves the image is no longer valid. A box becomes the box of the ellipse that
    filled it: corners would overstate a turned lesion by up to half its area (Kalra et al.,
    "Towards Rotation Invariance in Object Detection", ICCV 2021). Where less than half of a box
    would be left in the picture, the image keeps its place. Then gamma, contrast, brightness and
    multiplicative noise.

    Args:
        batch: as usfm/data/slots.py describes it, on the device.
        key: random key of the step.
        strength: from 0 (no change) to 1 (rotation up to 15 degrees, scale by up to 20 %, shift
            by up to 10 %, gamma from 0.67 to 1.5).
        flip_ok: bool [T], whether a mirrored image of a task keeps its label.

    Returns:
        The batch, image as float32 [S, n, H, W, C] in [0, 255].
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength of augmentation is {strength}; give a number from 0 to 1")
    if strength == 0:
        return {**batch, "image": batch["image"].astype(jnp.float32)}
    slots, images, height, width = batch["image"].shape[:4]
    # All of an image's chance in one draw: every further one costs half a second to compile.
    bits = jax.random.bits(key, (slots, images, DRAWS + height * width))
    draws = bits[..., :DRAWS].astype(jnp.float32) / 2.0**31 - 1  # even in [-1, 1]
    noise = bits[..., DRAWS:].reshape(slots, images, height, width)
    may_flip = flip_ok[batch["task"]][:, None]
    matrix, shift = _geometry(draws, may_flip, height / width, strength)
    moved = dict(batch)
    if "box" in batch:
        box = _move_box(batch["box"], matrix, shift)
        moved["box"] = jnp.clip(box, 0, 1)
        fits = _area(moved["box"]) >= KEPT_AREA * _area(box)
        matrix = jnp.where(fits[..., None, None], matrix, jnp.eye(2))
        shift = jnp.where(fits[..., None], shift, 0.0)
        there = fits & (_area(batch["box"]) > 0)
        moved["box"] = jnp.where(there[..., None], moved["box"], batch["box"])
    if "points" in batch:
        points = _move(batch["points"], matrix[..., None, :, :], shift[..., None, :])
        inside = jnp.all((points >= 0) & (points <= 1), axis=-1)
        moved["points_valid"] = batch["points_valid"] & inside
        moved["points"] = jnp.where(moved["points_valid"][..., None], points, 0.0)
    image, mask = _resample(batch["image"], batch.get("mask"), matrix, shift)
    if mask is not None:
        moved["mask"] = mask
    return moved | {"image": _recolour(image, draws, noise, strength)}


def normalise(image: jax.Array) -> jax.Array:
    """Brings images to what ImageNet-trained encoders expect.

    Args:
        image: [..., H, W, C] in [0, 255], any dtype; grey (C = 1) or RGB.

    Returns:
        float32 [..., H, W, 3] of about zero mean and unit deviation; grey is replicated.
    """
    scaled = image.astype(jnp.float32) / 255
    return (scaled - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)


def _geometry(
    draws: jax.Array, may_flip: jax.Array, aspect: float, strength: float
) -> tuple[jax.Array, jax.Array]:
    """Makes matrices [S, n, 2, 2] and shifts [S, n, 2] of the map u -> M (u - 1/2) + 1/2 + t.

    u is x, y as pixel / size; aspect is height / width.
    """
    angle = draws[..., 0] * strength * ROTATION
    scale = (1 + SCALE) ** (draws[..., 1] * strength)
    mirror = jnp.where((draws[..., 2] < 0) & may_flip, -1.0, 1.0)
    cos, sin = scale * jnp.cos(angle), scale * jnp.sin(angle)
    # A turn of the picture in pixels, written for sides of length 1.
    matrix = jnp.stack(
        [
            jnp.stack([cos * mirror, -sin * aspect], axis=-1),
            jnp.stack([sin * mirror / aspect, cos], axis=-1),
        ],
        axis=-2,
    )
    return matrix, draws[..., 3:5] * strength * SHIFT


def _move(points: jax.Array, matrix: jax.Array, shift: jax.Array) -> jax.Array:
    # No einsum: accelerators would round the coordinates to bfloat16.
    return jnp.sum(matrix * (points - 0.5)[..., None, :], axis=-1) + 0.5 + shift


def _move_box(box: jax.Array, matrix: jax.Array, shift: jax.Array) -> jax.Array:
    """The boxes of the moved ellipses that fill boxes [S, n, 4]."""
    low, high = box[..., :2], box[..., 2:]
    centre = _move((low + high) / 2, matrix, shift)
    half = jnp.linalg.norm(matrix * ((high - low) / 2)[..., None, :], axis=-1)
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def _area(box: jax.Array) -> jax.Array:
    return (box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1])


def _resample(
    image: jax.Array, mask: jax.Array | None, matrix: jax.Array, shift: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """Image [S, n, H, W, C] as float32 and mask [S, n, H, W] as seen after the map."""
    height, width = image.shape[2:4]
    inverse = _inverse(matrix)
    x = (jnp.arange(width) + 0.5) / width - 0.5
    y = (jnp.arange(height) + 0.5) / height - 0.5
    x = x - shift[..., 0, None]
    y = y - shift[..., 1, None]

    def source(row, size):
        """Where the result's pixels come from, in pixels from the one before the image."""
        across = inverse[..., row, 0, None] * x
        down = inverse[..., row, 1, None] * y
        place = (across[..., None, :] + down[..., None] + 0.5) * size + 0.5
        return jnp.clip(place, 0, size + 1)

    column, line = source(0, width), source(1, height)
    first_column = jnp.minimum(column.astype(jnp.int32), width)
    first_line = jnp.minimum(line.astype(jnp.int32), height)
    index = (first_line * (width + 1) + first_column).reshape(*line.shape[:2], -1)
    odd_column, odd_line = (1 - jnp.abs(1 - place % 2) for place in (column, line))

    def neighbours(pixels, outside):
        packed = _pack(pixels, outside)
        found = jnp.take_along_axis(packed, index, axis=-1, mode="promise_in_bounds")
        return found.reshape(line.shape)

    planes = [neighbours(image[..., channel], 0) for channel in range(image.shape[-1])]
    moved = jnp.stack([_bilinear(plane, odd_column, odd_line) for plane in planes], axis=-1)
    if mask is None:
        return moved, None
    nearest = 8 * (odd_column >= 0.5).astype(jnp.uint32) + 16 * (odd_line >= 0.5)
    return moved, (neighbours(mask, IGNORE) >> nearest & 255).astype(jnp.uint8)


def _inverse(matrix: jax.Array) -> jax.Array:
    (a, b), (c, d) = ([matrix[..., i, j] for j in (0, 1)] for i in (0, 1))
    adjugate = jnp.stack([jnp.stack([d, -b], axis=-1), jnp.stack([-c, a], axis=-1)], axis=-2)
    return adjugate / (a * d - b * c)[..., None, None]


def _pack(image: jax.Array, outside: int) -> jax.Array:
    """Puts four neighbours of a uint8 image [..., H, W] in one number: one gather, not four.

    They lie by the parity of their place, not left and right, above and below: the weight of an
    odd neighbour has no jump at whole places, where XLA may round one place up and down at once.

    Returns:
        uint32 [..., (H + 1) * (W + 1)], starting above and left of the image. Bytes from the
        lowest: even line and column, odd column, odd line, both odd.
    """
    around = [(0, 0)] * (image.ndim - 2) + [(1, 1), (1, 1)]
    image = jnp.pad(image, around, constant_values=outside).astype(jnp.uint32)
    height, width = image.shape[-2:]
    line = jnp.arange(height - 1, dtype=jnp.uint32)[:, None] % 2 * 16
    column = jnp.arange(width - 1, dtype=jnp.uint32) % 2 * 8
    image = image[..., :-1, :] << line | image[..., 1:, :] << 16 - line
    image = image[..., :-1] << column | image[..., 1:] << 8 - column
    return image.reshape(*image.shape[:-2], -1)


def _bilinear(packed: jax.Array, odd_column: jax.Array, odd_line: jax.Array) -> jax.Array:
    a, b, c, d = ((packed >> shift & 255).astype(jnp.float32) for shift in (0, 8, 16, 24))
    even = a + (b - a) * odd_column
    odd = c + (d - c) * odd_column
    return even + (odd - even) * odd_line


def _recolour(image: jax.Array, draws: jax.Array, noise: jax.Array, strength: float) -> jax.Array:
    """Gamma, contrast, brightness and multiplicative noise on images [S, n, H, W, C]."""
    gamma, contrast, brightness, speckle = jnp.moveaxis(
        strength * draws[..., 5:, None, None, None], 2, 0
    )
    image = jnp.power(image / 255, GAMMA**gamma)
    # The sum of four random bytes is close to normal, and much cheaper.
    total = (noise & 255) + (noise >> 8 & 255) + (noise >> 16 & 255) + (noise >> 24)
    normal = (total[..., None].astype(jnp.float32) - 510) / 147.8
    image = image * (1 + normal * SPECKLE * jnp.abs(speckle))
    image = (image - 0.5) * (1 + CONTRAST * contrast) + 0.5 + BRIGHTNESS * brightness
    return jnp.clip(image, 0, 1) * 255
