"""Where an image's content goes: moves of image, mask, box and points, and a probe's sector.

Coordinates are x, y as pixel / size, from the image's upper left corner. What is drawn at random
comes as numbers from -1 to 1.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from usfm.data.slots import IGNORE

# Ranges at strength 1.
ROTATION = math.pi / 12
SCALE = 0.2
SHIFT = 0.1  # of the image's side
OPENING = 0.6  # of a sector: by how much its half width grows from the image's top to its bottom
OFFSET = 0.1  # of a sector from the middle, of the image's side

HALF_WIDTH = 0.7  # of a sector at the image's bottom: without an opening it holds the whole image

MOVE_DRAWS = 5  # of an image
SECTOR_DRAWS = 2


@dataclasses.dataclass(frozen=True)
class Move:
    """The map u -> M (u - 1/2) + 1/2 + t of each image.

    Attributes:
        matrix: M, float32 [S, n, 2, 2].
        shift: t, float32 [S, n, 2].
    """

    matrix: jax.Array
    shift: jax.Array

    def where(self, made: jax.Array) -> "Move":
        """The same where `made`, bool [S, n], and no move elsewhere."""
        return Move(
            jnp.where(made[..., None, None], self.matrix, jnp.eye(2)),
            jnp.where(made[..., None], self.shift, 0.0),
        )


@dataclasses.dataclass(frozen=True)
class Sector:
    """The field of view of a probe above each image: a fan that ends in an arc at its bottom.

    Attributes:
        opening: growth of its half width from the image's top to its bottom; 0 = the whole image.
            float32 [S, n].
        offset: of its axis from the image's middle, float32 [S, n].
    """

    opening: jax.Array
    offset: jax.Array

    def where(self, used: jax.Array) -> "Sector":
        """The same where `used`, bool [S, n], and the whole image elsewhere."""
        return Sector(jnp.where(used, self.opening, 0.0), self.offset)

    def margin(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """How far inside places [S, n, ...] lie, about, in image sides; negative outside."""
        after = (..., *[None] * (x.ndim - 2))
        opening, across = self.opening[after], x - 0.5 - self.offset[after]
        up = 1 - y
        sides = HALF_WIDTH - opening * up - jnp.abs(across)
        # The arc about the fan's apex touches the image's bottom, HALF_WIDTH / opening below it.
        arc = up - opening * (across**2 + up**2) / (2 * HALF_WIDTH)
        return jnp.minimum(sides, arc)

    def seen(self, height: int, width: int) -> jax.Array:
        """How much is seen of each pixel, from 0 to 1: float32 [S, n, H, W]."""
        x, y = pixel_centres(height, width)
        margin = self.margin(x[None, None, None, :], y[None, None, :, None])
        # Soft edges: no pixel is seen on one device and not on another.
        return jnp.clip(margin * height + 0.5, 0, 1)


def random_move(draws: jax.Array, may_flip: jax.Array, aspect: float, strength: jax.Array) -> Move:
    """Makes moves by rotation, scale, shift and mirroring.

    Args:
        draws: [S, n, MOVE_DRAWS].
        may_flip: bool [S, 1], where mirroring is allowed.
        aspect: height / width of the images.
        strength: [S, 1].
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
    return Move(matrix, draws[..., 3:5] * strength[..., None] * SHIFT)


def random_sector(draws: jax.Array, strength: jax.Array) -> Sector:
    """Makes sectors of draws [S, n, SECTOR_DRAWS] at strength [S, 1]; half are whole images."""
    opening, offset = jnp.moveaxis(draws * strength[..., None], -1, 0)
    return Sector(OPENING * jnp.maximum(opening, 0), OFFSET * offset)


def move_points(points: jax.Array, move: Move) -> jax.Array:
    """Where points [S, n, K, 2] go."""
    return _moved(points, move.matrix[..., None, :, :], move.shift[..., None, :])


def move_box(box: jax.Array, move: Move) -> jax.Array:
    """The boxes of the moved ellipses that fill boxes [S, n, 4]."""
    low, high = box[..., :2], box[..., 2:]
    centre = _moved((low + high) / 2, move.matrix, move.shift)
    half = jnp.linalg.norm(move.matrix * ((high - low) / 2)[..., None, :], axis=-1)
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def area(box: jax.Array) -> jax.Array:
    """Of boxes [..., 4]."""
    return (box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1])


def pixel_centres(height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """The x [W] and the y [H] of an image's pixels."""
    return (jnp.arange(width) + 0.5) / width, (jnp.arange(height) + 0.5) / height


def resample(
    image: jax.Array, mask: jax.Array | None, move: Move
) -> tuple[jax.Array, jax.Array | None]:
    """Image [S, n, H, W, C] as float32 and mask [S, n, H, W] as seen after the move.

    The image is bilinear and black outside, the mask nearest and IGNORE outside.
    """
    height, width = image.shape[2:4]
    inverse = _inverse(move.matrix)
    x, y = pixel_centres(height, width)
    x = x - 0.5 - move.shift[..., 0, None]
    y = y - 0.5 - move.shift[..., 1, None]

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


def _moved(points: jax.Array, matrix: jax.Array, shift: jax.Array) -> jax.Array:
    # No einsum: accelerators would round the coordinates to bfloat16.
    return jnp.sum(matrix * (points - 0.5)[..., None, :], axis=-1) + 0.5 + shift


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
