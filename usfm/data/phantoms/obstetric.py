"""Scenes of the uterus, the cervix and the fetus (second trimester, or at birth).

A scene is a function from random numbers to a Scene. Sizes are in mm; x runs to the right of the
probe's middle and z down from its face.
"""

import math

import numpy as np

from usfm.data.phantoms.bmode import Probe
from usfm.data.phantoms.scene import BONE, FAT, FLUID, Medium, Part, Scene
from usfm.data.phantoms.shapes import below, blob, both, rod, shell, wave

LIMB = Medium(-12.0, texture=3.0, septa=12.0)


def uterus(rng: np.random.Generator) -> Scene:
    """A round fibroid with its rim and shadow in the wall of the uterus, behind the bladder."""
    probe = Probe(
        220, 300, rng.uniform(125, 140), 3.5, 0.6, 50.0, gain=rng.uniform(-3, 3), cycles=2.5
    )
    tilt = rng.uniform(-0.3, 0.3)
    x, z = rng.uniform(-8, 8), rng.uniform(72, 82)
    size = rng.uniform(9, 17)
    place = rng.uniform(0, 2 * np.pi)
    at = (x + 27 * math.cos(place), z + 15 * math.sin(place))
    bladder = blob(x + rng.uniform(-12, 12), 30, rng.uniform(22, 34), rng.uniform(9, 13), tilt / 2)
    fibroid = blob(*at, size, size * rng.uniform(0.85, 1), rng.uniform(0, 3))
    parts = (
        Part(below(wave(rng, 13, 1.5, 70)), Medium(-3, texture=3, septa=10.0), rim=12),
        Part(bladder, FLUID, rim=16),
        Part(blob(x, z, 45, 25, tilt), Medium(-8, texture=1.5), rim=16),
        Part(blob(x, z, 27, 4, tilt), Medium(5, texture=2.0), rim=8),
        Part(shell(fibroid, 2.0), Medium(2)),
        Part(fibroid, Medium(-17, attenuation=1.0, texture=3.0), label=1, rim=14),
    )
    return Scene(probe, FAT, parts, grain=(8.0, 4.0))


def cervix(rng: np.random.Generator) -> Scene:
    """The cervical canal from inside the vagina: its inner opening, at the head, and its outer."""
    probe = Probe(
        190, 300, rng.uniform(62, 72), 5.5, 0.85, 12.0, gain=rng.uniform(-3, 3), cycles=2.5
    )
    angle, length = rng.uniform(-0.35, 0.25), rng.uniform(22, 34)
    outer = (rng.uniform(11, 18), rng.uniform(24, 34))
    inner = (outer[0] - length * math.cos(angle), outer[1] + length * math.sin(angle))
    middle = ((inner[0] + outer[0]) / 2, (inner[1] + outer[1]) / 2)
    head = blob(inner[0] - 20, inner[1] + 8, 19, 22)
    parts = (
        Part(below(wave(rng, 6, 0.7, 40)), Medium(-5, texture=3, septa=11.0), rim=10),
        Part(blob(inner[0] - 13, inner[1] + 4, 14, 20), FLUID, rim=10),
        Part(head, Medium(-12), rim=22),
        Part(both(shell(head, 2.0), head), Medium(8, attenuation=2.0)),
        Part(blob(*middle, length / 2, 9.5, -angle), Medium(-6, texture=1.0), rim=12),
        Part(rod(inner, outer, 5.0), Medium(2)),
        Part(rod(inner, outer, 1.6), Medium(-34), rim=14),
    )
    return Scene(probe, FAT, parts, (5.0, 2.0), points=(inner, outer))


def femur(rng: np.random.Generator) -> Scene:
    """The fetal femur, bright and slightly bowed above its shadow; its ends, from left to right."""
    probe = Probe(
        208, 320, rng.uniform(95, 110), 4.0, 0.6, 55.0, gain=rng.uniform(-3, 3), cycles=2.5, tgc=0.3
    )
    angle, half = rng.uniform(-0.45, 0.45), rng.uniform(13, 22)
    x, z = rng.uniform(-16, 16), rng.uniform(50, 64)
    reach = (half * math.cos(angle), half * math.sin(angle))
    ends = ((x - reach[0], z - reach[1]), (x + reach[0], z + reach[1]))
    hip = (x - 1.4 * reach[0], z - 1.4 * reach[1] + 3)
    knee = (x + 1.2 * reach[0], z + 1.2 * reach[1] + 2)
    wall = wave(rng, rng.uniform(22, 27), 2.0, 80)
    parts = (
        Part(below(wall), FLUID, rim=14),
        Part(
            below(wave(rng, rng.uniform(78, 84), 3.0, 90)),
            Medium(-6, texture=3.0, septa=8.0),
            rim=14,
        ),
        Part(blob(hip[0] - 20, hip[1] + 3, 26, 19, angle), LIMB, rim=10),
        Part(rod(hip, knee, 26), LIMB, rim=10),
        Part(rod(*ends, 1.6, bow=rng.uniform(0.5, 2.5)), BONE, rim=26),
    )
    return Scene(probe, Medium(-8, texture=3, septa=12.0), parts, (8.0, 3.0), points=ends)


def pelvis(rng: np.random.Generator) -> Scene:
    """Birth seen from the perineum: the pubic symphysis (1) and the fetal head (2)."""
    probe = Probe(
        200, 280, rng.uniform(105, 120), 3.5, 0.65, 40.0, gain=rng.uniform(-3, 3), cycles=2.5
    )
    bone = blob(
        rng.uniform(-26, -18), rng.uniform(20, 27), 12.5, rng.uniform(5.5, 7), rng.uniform(0.2, 0.8)
    )
    x, z = rng.uniform(-2, 16), rng.uniform(66, 78)
    head = blob(x, z, rng.uniform(34, 42), rng.uniform(27, 33), rng.uniform(-0.6, 0.6))
    parts = (
        Part(below(wave(rng, 8, 1.0, 60)), Medium(-5, texture=3, septa=11.0), rim=10),
        Part(head, Medium(-15, attenuation=0.6, texture=2.0), label=2),
        Part(both(shell(head, 3.0), head), Medium(9, attenuation=3.5), rim=28),
        Part(bone, Medium(-10, attenuation=1.2), label=1),
        Part(both(shell(bone, 2.0), bone), Medium(7, attenuation=1.2), rim=18),
    )
    return Scene(probe, FAT, parts, grain=(8.0, 3.0))
