"""Shapes in millimetres, as signed distances.

A shape is a function of x (to the right) and z (downwards) that gives the distance to its edge, in
mm, negative inside. x and z are float32 arrays, and so is the answer as long as sizes are plain
floats (a numpy float64 would make it, and the work, twice as large).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]
Curve = Callable[[np.ndarray], np.ndarray]


def blob(
    x0: float,
    z0: float,
    a: float,
    b: float,
    angle: float = 0.0,
    lobes: Sequence[tuple[int, float, float]] = (),
) -> Shape:
    """An ellipse with half axes a and b, its radius changed by lobes (order, share, phase)."""
    cos, sin = math.cos(angle), math.sin(angle)

    def distance(x: np.ndarray, z: np.ndarray) -> np.ndarray:
        u = ((x - x0) * cos + (z - z0) * sin) / a
        v = ((z - z0) * cos - (x - x0) * sin) / b
        reach = np.maximum(np.hypot(u, v), 1e-6)
        size = np.maximum(np.hypot(u * a, v * b), 1e-6)
        if not lobes:
            return size - size / reach
        turn = np.arctan2(v, u)
        swell = 1 + sum(share * np.cos(order * turn + phase) for order, share, phase in lobes)
        return size - size / reach * swell

    return distance


def rod(
    start: tuple[float, float], end: tuple[float, float], thickness: float, bow: float = 0.0
) -> Shape:
    """A bar with round ends from start to end, its middle bowed upwards by `bow` mm."""
    length = math.dist(start, end)
    cos, sin = (end[0] - start[0]) / length, (end[1] - start[1]) / length

    def distance(x: np.ndarray, z: np.ndarray) -> np.ndarray:
        along = (x - start[0]) * cos + (z - start[1]) * sin
        across = (z - start[1]) * cos - (x - start[0]) * sin
        part = np.clip(along / length, 0, 1)
        across = across + bow * 4 * part * (1 - part)
        return np.hypot(along - part * length, across) - thickness / 2

    return distance


def wave(rng: np.random.Generator, z0: float, height: float, length: float) -> Curve:
    """A depth that wavers round z0 by about `height` mm along x."""
    slow, fast = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)
    return lambda x: (
        z0
        + height * np.sin(x * (2 * np.pi / length) + slow)
        + height / 3 * np.sin(x * (6 * np.pi / length) + fast)
    )


def below(curve: Curve) -> Shape:
    """All that is deeper than a curve."""
    return lambda x, z: curve(x) - z


def band(curve: Curve, thickness: float) -> Shape:
    """A sheet along a curve."""
    return lambda x, z: np.abs(z - curve(x)) - thickness / 2


def ray(z0: float, angle: float, opening: float) -> Shape:
    """A streak from (0, z0) downwards, turned by `angle` to the right, 2 * `opening` rad wide."""
    cos, sin = math.cos(angle), math.sin(angle)
    return lambda x, z: np.abs(x * cos - (z - z0) * sin) - opening * np.hypot(x, z - z0)


def half_plane(x0: float, z0: float, angle: float) -> Shape:
    """All above the line through (x0, z0) that is turned by `angle` from the horizontal."""
    cos, sin = math.cos(angle), math.sin(angle)
    return lambda x, z: (z - z0) * cos - (x - x0) * sin


def outside(shape: Shape) -> Shape:
    """All but the shape."""
    return lambda x, z: -shape(x, z)


def both(one: Shape, other: Shape) -> Shape:
    """What two shapes share."""
    return lambda x, z: np.maximum(one(x, z), other(x, z))


def shell(shape: Shape, thickness: float) -> Shape:
    """A wall of a thickness along the edge of a shape."""
    return lambda x, z: np.abs(shape(x, z)) - thickness / 2
