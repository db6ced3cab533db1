"""Anatomies: families of images that look alike, for tasks whose relatedness is planted.

An image of an anatomy has four cells, two beside two. A target lies in one of them and two
companions in two others, in front of a deep wall. Strength, size and place are drawn anew for every
image, for the companions as for the target: only its form tells the target, and which form that is
has to be learned. Lengths are in mm; x runs to the right of the probe's middle and z down from its
face.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from usfm.data.phantoms.bmode import Probe
from usfm.data.phantoms.scene import FASCIA, Medium, Part, Scene
from usfm.data.phantoms.shapes import band, below, blob, wave

DEPTH = 38.0
SIDES = (-7.5, 7.5)  # x of the cells' middles
DEPTHS = (10.0, 24.0)  # z of them
SIZES = (3.0, 4.4, 6.2)  # half the longest axis
JITTER = 1.2
PULSE = 0.6  # length, µs: as fine as the pixels and no finer, for that would cost time

STRENGTHS = (0.6, 1.0)  # of the contrast

# What can be asked of a target, and how many answers there are. All combinations are equally
# frequent. Only the side is another in the mirror.
ASPECTS = {
    "side": len(SIDES),
    "depth": len(DEPTHS),
    "strength": len(STRENGTHS),
    "size": len(SIZES),
}


@dataclasses.dataclass(frozen=True)
class Form:
    """What tells one kind of structure from another, whatever its strength, size and place.

    Attributes:
        sign: 1 where it is brighter than the tissue, -1 where it is darker.
        flat: its height / its width.
        core: size of a middle of the opposite echo, as a share of the whole; 0 for none.
    """

    sign: int
    flat: float = 0.9
    core: float = 0.0


# A small model has to learn them from a thousand images of 64 pixels: so they are few and plain.
FORMS = (
    Form(1),
    Form(-1),
    Form(1, flat=0.35),
    Form(-1, flat=0.35),
    Form(1, flat=2.8),
    Form(-1, flat=2.8),
    Form(1, core=0.6),
    Form(-1, core=0.6),
)


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """What the images of one family have in common.

    Attributes:
        probe: they are seen with.
        tissue: round the structures.
        grain: size (x, z) of its texture, mm.
        sheets: depths of the fasciae that run through it, mm.
        forms: of the target and its two companions.
        wall: what is deeper than all of them.
    """

    probe: Probe
    tissue: Medium
    grain: tuple[float, float]
    sheets: tuple[float, ...]
    forms: tuple[Form, Form, Form]
    wall: Medium


def draw_anatomy(rng: np.random.Generator, target: int) -> Anatomy:
    """Draws an anatomy whose target has FORMS[target], and other forms for the companions."""
    others = rng.choice([k for k in range(len(FORMS)) if k != target], 2, replace=False)
    forms = tuple(_vary(FORMS[k], rng) for k in (target, *others))
    return Anatomy(
        probe=_draw_probe(rng),
        tissue=Medium(rng.uniform(-9, 4), texture=rng.uniform(0.5, 2), septa=rng.uniform(0, 14)),
        grain=(rng.uniform(3, 12), rng.uniform(1.2, 4)),
        sheets=tuple(rng.uniform(3, 30, rng.integers(0, 4)).tolist()),
        forms=(forms[0], forms[1], forms[2]),
        wall=Medium(float(rng.choice((-26.0, 14.0))), attenuation=rng.uniform(0.5, 3)),
    )


def blend(own: Anatomy, shared: Anatomy, share: float, rng: np.random.Generator) -> Anatomy:
    """Each trait of the shared anatomy with probability `share`, else the task's own."""
    names = [field.name for field in dataclasses.fields(Anatomy)]
    taken = [name for name, draw in zip(names, rng.random(len(names)), strict=True) if draw < share]
    return dataclasses.replace(own, **{name: getattr(shared, name) for name in taken})


def draw_scene(
    anatomy: Anatomy,
    levels: Mapping[str, int],
    *,
    num_classes: int,
    difficulty: float,
    patient: np.random.Generator,
    rng: np.random.Generator,
) -> Scene:
    """Draws an image of an anatomy.

    Args:
        anatomy: of the image.
        levels: of every one of ASPECTS, for the target.
        num_classes: of the mask: 1 is the target, 2 and 3 its companions, 4 the wall.
        difficulty: from 0 to 1; takes contrast away and adds texture.
        patient: of what the images of one patient share: the gain, and how the companions look.
        rng: of the rest.

    Returns:
        The scene without a label. Its points are the target's left and right end and the middle
        of the first companion.
    """
    contrast = 18.0 - 12.0 * difficulty
    tissue = dataclasses.replace(anatomy.tissue, texture=anatomy.tissue.texture + 3.0 * difficulty)
    probe = dataclasses.replace(anatomy.probe, gain=patient.uniform(-4, 4))
    cell = levels["side"], levels["depth"]
    free = [(i, k) for i in (0, 1) for k in (0, 1) if (i, k) != cell]
    cells = [cell, *(free[k] for k in rng.permutation(3)[:2])]
    looks = [(levels["strength"], levels["size"])]
    looks += [(int(patient.integers(2)), int(patient.integers(len(SIZES)))) for _ in (1, 2)]
    parts = [Part(band(wave(rng, z, 0.6, 40), 0.6), FASCIA, rim=10) for z in anatomy.sheets]
    wall = below(wave(rng, 33.0, 0.6, 40))
    parts.append(Part(wall, anatomy.wall, label=4 if num_classes > 4 else None, rim=14))
    points = []
    for k, (form, (side, depth), (strength, size)) in enumerate(
        zip(anatomy.forms, cells, looks, strict=True)
    ):
        middle = SIDES[side] + rng.uniform(-JITTER, JITTER), DEPTHS[depth] + rng.uniform(-1, 1)
        above = form.sign * (contrast * STRENGTHS[strength] + rng.uniform(-1, 1))
        axis, angle = SIZES[size] * rng.uniform(0.92, 1.08), rng.uniform(-0.35, 0.35)
        label = k + 1 if k + 1 < num_classes else None
        parts += _structure(form, middle, axis, angle, tissue.echo, above, label)
        points += _ends(form, middle, axis, angle) if k == 0 else [middle]
    return Scene(probe, tissue, tuple(parts), anatomy.grain, points=tuple(points[:3]))


def _vary(form: Form, rng: np.random.Generator) -> Form:
    return dataclasses.replace(
        form, flat=form.flat * rng.uniform(0.9, 1.1), core=form.core * rng.uniform(0.9, 1.1)
    )


def _draw_probe(rng: np.random.Generator) -> Probe:
    """A linear or a curved array; the whole of the four cells is in the view of either."""
    side, frequency = int(rng.integers(64, 97)), rng.uniform(4.5, 7.0)
    height, half_angle, radius = side, 0.0, 0.0
    if rng.random() < 0.5:
        height, half_angle, radius = round(0.76 * side), 0.32, 45.0
    return Probe(
        height, side, DEPTH, frequency, half_angle, radius, cycles=PULSE * frequency, beams=48
    )


def _half_axes(form: Form, axis: float) -> tuple[float, float]:
    """Half the width and half the height of a structure that reaches `axis` mm at most."""
    return axis * min(1.0, 1 / form.flat), axis * min(1.0, form.flat)


def _structure(
    form: Form,
    middle: tuple[float, float],
    axis: float,
    angle: float,
    tissue: float,
    above: float,
    label: int | None,
) -> list[Part]:
    """The parts of a structure whose echo lies `above` dB above that of the tissue."""
    a, b = _half_axes(form, axis)
    parts = [Part(blob(*middle, a, b, angle), Medium(tissue + above), label)]
    if form.core:
        core = blob(*middle, a * form.core, b * form.core, angle)
        parts.append(Part(core, Medium(tissue - above)))
    return parts


def _ends(
    form: Form, middle: tuple[float, float], axis: float, angle: float
) -> list[tuple[float, float]]:
    """Where the axis that is level at angle 0 leaves a structure, on the left and the right."""
    a, _ = _half_axes(form, axis)
    along, down = a * math.cos(angle), a * math.sin(angle)
    x, z = middle
    return [(x - along, z - down), (x + along, z + down)]
