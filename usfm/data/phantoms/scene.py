"""What lies in front of the probe: shapes filled with tissue, and what is asked of them.

The same shapes are evaluated on the grid of the beams, for the physics, and at the pixel centres,
for the mask, so that the labels are exact by construction.
"""

import dataclasses

import cv2
import numpy as np

from usfm.data.phantoms import bmode
from usfm.data.phantoms.shapes import Shape


@dataclasses.dataclass(frozen=True)
class Medium:
    """A tissue.

    Attributes:
        echo: scattered power, dB; 0 is the parenchyma that a scanner shows mid-grey.
        attenuation: dB/(cm MHz), one way.
        texture: standard deviation of slow changes of the echo, dB.
        septa: extra echo of the thin bright sheets running through it, dB.
    """

    echo: float
    attenuation: float = 0.5
    texture: float = 1.0
    septa: float = 0.0


FLUID = Medium(-60.0, attenuation=0.02, texture=0.0)
BLOOD = Medium(-38.0, attenuation=0.15, texture=0.0)
BONE = Medium(16.0, attenuation=18.0)
AIR = Medium(-25.0, attenuation=6.0)
FASCIA = Medium(12.0, texture=2.0)
SKIN = Medium(6.0)
FAT = Medium(-17.0, septa=20.0)
MUSCLE = Medium(-18.0, septa=20.0)


@dataclasses.dataclass(frozen=True)
class Part:
    """A shape filled with a medium.

    Attributes:
        shape: its signed distance.
        medium: what fills it.
        label: class id in the mask; None leaves the class of what it is painted over.
        rim: amplitude of the specular echo of its edge, dB, where the beam meets it head on.
    """

    shape: Shape
    medium: Medium
    label: int | None = None
    rim: float | None = None


@dataclasses.dataclass(frozen=True)
class Scene:
    """One image to be made, with everything that is true of it.

    Attributes:
        probe: what it is seen with.
        background: fills what no part covers.
        parts: painted in this order.
        grain: size (x, z) of the texture, mm.
        label: class id of a classification task.
        points: landmarks (x, z) of a regression task, mm.
        upside_down: mask and landmarks are those of the image upside down.
    """

    probe: bmode.Probe
    background: Medium
    parts: tuple[Part, ...]
    grain: tuple[float, float] = (3.0, 1.5)
    label: int | None = None
    points: tuple[tuple[float, float], ...] = ()
    upside_down: bool = False


def fields(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Echogenicity (dB), specular amplitude and attenuation on the beam grid, float32 each."""
    probe = scene.probe
    x, z = bmode.beam_grid(probe)
    slow, sheets = texture(scene, x, z, rng)
    attenuation = np.full_like(x, scene.background.attenuation)
    echo = np.full_like(x, scene.background.echo)
    slowness = np.full_like(x, scene.background.texture)
    septa = np.full_like(x, scene.background.septa)
    specular = np.zeros_like(x)
    step = probe.depth / probe.samples
    for part in scene.parts:
        distance = part.shape(x, z)
        inside = distance < 0
        echo[inside] = part.medium.echo
        attenuation[inside] = part.medium.attenuation
        slowness[inside] = part.medium.texture
        septa[inside] = part.medium.septa
        specular[inside] = 0
        if part.rim is not None:
            # A smooth interface is bright only where the beam meets it head on, that is where
            # the distance changes along the beam as fast as the beam runs.
            facing = np.clip(np.abs(np.gradient(distance, step, axis=0)), 0, 1) ** 4
            near = np.exp(-((distance / (0.7 * step)) ** 2))
            specular += near * facing * 10 ** (part.rim / 20)
    # The probe does not touch the skin equally well everywhere.
    knots = rng.standard_normal((1, 9), np.float32) * 1.2
    contact = cv2.resize(knots, (probe.beams, 1), interpolation=cv2.INTER_CUBIC)
    return echo + slowness * slow + septa * sheets + contact, specular, attenuation


def texture(
    scene: Scene, x: np.ndarray, z: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Slow changes (about unit variance) and sheets (0..1) of the scene's grain at points in mm."""
    grain_x, grain_z = scene.grain
    column = (x - x.min()) / np.float32(grain_x) + 1
    row = (z - z.min()) / np.float32(grain_z) + 1
    lattice = rng.standard_normal((int(row.max()) + 3, int(column.max()) + 3, 2), np.float32)
    noise = cv2.remap(lattice, column, row, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    return noise[..., 0], np.exp(-((noise[..., 1] / 0.15) ** 2))


def image(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The displayed B-mode image of a scene, uint8 [height, width]."""
    echo, specular, attenuation = fields(scene, rng)
    amplitude = bmode.envelope(scene.probe, echo, specular, attenuation, rng)
    return bmode.scan_convert(scene.probe, bmode.compress(scene.probe, amplitude))


def class_mask(scene: Scene) -> np.ndarray:
    """The class of every pixel, by the shape its centre lies in; uint8 [height, width]."""
    x, z = bmode.pixel_grid(scene.probe)
    mask = np.zeros(x.shape, np.uint8)
    for part in scene.parts:
        if part.label is not None:
            mask[part.shape(x, z) < 0] = part.label
    mask[~bmode.in_view(scene.probe, x, z)] = 0
    return np.ascontiguousarray(mask[::-1]) if scene.upside_down else mask


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(x_min, y_min, x_max, y_max) round what is not 0; the maxima are exclusive."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def landmarks(scene: Scene) -> tuple[tuple[float, float], ...]:
    """The scene's points in pixels of its image."""
    points = tuple(bmode.to_pixels(scene.probe, *point) for point in scene.points)
    if scene.upside_down:
        points = tuple((x, scene.probe.height - y) for x, y in points)
    return points
