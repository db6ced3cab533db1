"""Scenes of the breast, neck, chest and abdomen of adults.

A scene is a function from random numbers to a Scene. Sizes are in mm; x runs to the right of the
probe's middle and z down from its face.
"""

import math

import numpy as np

from usfm.data.phantoms.bmode import Probe
from usfm.data.phantoms.scene import (
    AIR,
    BLOOD,
    BONE,
    FASCIA,
    FAT,
    MUSCLE,
    SKIN,
    Medium,
    Part,
    Scene,
)
from usfm.data.phantoms.shapes import (
    band,
    below,
    blob,
    both,
    half_plane,
    outside,
    ray,
    rod,
    shell,
    wave,
)


def breast(rng: np.random.Generator) -> Scene:
    """A smooth oval lesion wider than tall (0), or a spiculated one with a shadow (1)."""
    probe = Probe(200, 256, rng.uniform(34, 42), 8.0, gain=rng.uniform(-4, 2))
    malignant = bool(rng.integers(2))
    x, z = rng.uniform(-11, 11), rng.uniform(13, 20)
    size = rng.uniform(4.5, 7.5)
    if malignant:
        waves = [(int(k), rng.uniform(0.06, 0.16), rng.uniform(0, 6.3)) for k in (3, 7, 11)]
        shape = blob(x, z, size * rng.uniform(0.8, 1.0), size, 0.0, waves)
        lesion = Part(shape, Medium(-20, attenuation=1.3, texture=2.0), label=1)
        halo = Part(blob(x, z, size * 1.35, size * 1.35, 0.0, waves), Medium(2, septa=8.0))
        around = (halo, lesion)
    else:
        flat = rng.uniform(0.5, 0.7)
        shape = blob(x, z, size * 1.3, size * 1.3 * flat, rng.uniform(-0.25, 0.25))
        around = (Part(shape, Medium(-20, attenuation=0.2), label=1, rim=12),)
    fat = below(wave(rng, 1.6, 0.1, 30))
    gland = below(wave(rng, rng.uniform(5, 8), 0.9, 25))
    muscle = wave(rng, rng.uniform(0.74, 0.84) * probe.depth, 0.8, 45)
    layers = (
        Part(fat, FAT, rim=8),
        Part(gland, Medium(-4, texture=4.0, septa=11.0)),
        Part(below(muscle), MUSCLE),
        Part(band(muscle, 0.5), FASCIA, rim=14),
    )
    return Scene(probe, SKIN, (*layers, *around), grain=(7.0, 1.5), label=int(malignant))


def carotid(rng: np.random.Generator) -> Scene:
    """The common carotid artery across, round and thick-walled, with or without the flat vein."""
    probe = Probe(224, 224, rng.uniform(34, 42), 7.5, gain=rng.uniform(-4, 2))
    x, z, radius = rng.uniform(-8, 8), rng.uniform(16, 23), rng.uniform(3.2, 5.0)
    lumen = blob(x, z, radius, radius * rng.uniform(0.9, 1.0), rng.uniform(0, 3))
    side = rng.choice((-1, 1))
    muscle = wave(rng, rng.uniform(3, 4.5), 0.4, 40)
    sheath = wave(rng, rng.uniform(9, 10.5), 0.7, 45)
    parts = [
        Part(below(muscle), MUSCLE, rim=12),
        Part(band(muscle, 0.4), FASCIA),
        Part(below(sheath), Medium(-12, texture=2.5, septa=16.0)),
        Part(band(sheath, 0.5), FASCIA, rim=12),
        Part(blob(x - side * 14, z + 1, 9, 6), Medium(0, texture=0.8), rim=6),
    ]
    if rng.random() < 0.6:
        vein = blob(x + side * (radius + 6), z - 3, 5, rng.uniform(1.5, 2.5), side * 0.3)
        parts.append(Part(vein, BLOOD, rim=6))
    parts += [Part(shell(lumen, 1.4), Medium(3)), Part(lumen, BLOOD, label=1, rim=20)]
    return Scene(probe, SKIN, tuple(parts), grain=(7.0, 1.2))


def thyroid(rng: np.random.Generator) -> Scene:
    """A hypoechoic nodule in one lobe, beside the trachea with its ring and its shadow."""
    probe = Probe(200, 280, rng.uniform(32, 38), 8.0, gain=rng.uniform(-4, 2))
    side = rng.choice((-1, 1))
    middle = -side * rng.uniform(9, 13)
    lobe_x, lobe_z = middle + side * rng.uniform(14.5, 16), rng.uniform(16, 18)
    a, b = rng.uniform(3.0, 5.0), rng.uniform(2.6, 4.2)
    x, z = lobe_x + rng.uniform(-3.5, 3.5), lobe_z + rng.uniform(-2.5, 2.5)
    nodule = blob(x, z, a, b, rng.uniform(0, 3), [(3, 0.06, rng.uniform(0, 6))])
    trachea = blob(middle, 20, 8.5, 8.5)
    straps = wave(rng, rng.uniform(3.5, 4.5), 0.3, 40)
    capsule = wave(rng, rng.uniform(8, 9), 0.5, 50)
    parts = [
        Part(below(straps), MUSCLE, rim=10),
        Part(band(straps, 0.4), FASCIA),
        Part(below(capsule), Medium(-12, texture=2.5, septa=15.0)),
        Part(blob(middle, 13, 14, 3.2), Medium(2, texture=0.8)),
        Part(blob(lobe_x, lobe_z, 10.5, 7.5, -side * 0.2), Medium(1, texture=0.8), rim=10),
        Part(blob(lobe_x + side * 12, lobe_z + 2, 3.6, 3.4), BLOOD, rim=16),
        Part(trachea, AIR, rim=16),
        Part(shell(trachea, 1.2), Medium(4)),
        Part(nodule, Medium(-15, attenuation=0.4), label=1, rim=8),
    ]
    if rng.random() < 0.4:
        parts.append(Part(blob(x + a / 4, z - b / 4, 0.6, 0.5), BONE, rim=14))
    return Scene(probe, SKIN, tuple(parts), grain=(7.0, 1.2))


def lung(rng: np.random.Generator) -> Scene:
    """Aerated lung with A-lines, echoes of the pleura (0); or wet lung with B-lines (1)."""
    probe = Probe(212, 280, rng.uniform(85, 105), 4.0, 0.5, 55.0, gain=rng.uniform(0, 5), focus=0.3)
    wet = bool(rng.integers(2))
    depth = rng.uniform(17, 24)
    pleura = wave(rng, depth, 0.6, 60)
    # The ribs on both sides hide what lies behind them.
    gap, shift = rng.uniform(22, 30), rng.uniform(-6, 6)
    parts = [
        Part(below(wave(rng, depth / 2, 0.8, 40)), MUSCLE, rim=10),
        Part(below(pleura), Medium(-17, attenuation=0.65, texture=2.0)),
    ]
    if wet:
        for _ in range(rng.integers(2, 5)):
            angle = shift / 75 + rng.uniform(-0.22, 0.22)
            streak = both(ray(-probe.radius, angle, rng.uniform(0.02, 0.045)), below(pleura))
            parts.append(Part(streak, Medium(1, attenuation=0.45, texture=2.0)))
    else:
        for echo in range(2, int(probe.depth / depth) + 1):
            line = wave(rng, depth * echo, 0.5, 60)
            parts.append(Part(band(line, 1.0), Medium(2.0 - 3 * echo), rim=24 - 5 * echo))
    parts.append(Part(band(pleura, 1.0), Medium(12.0), rim=20))
    for x in (shift - gap, shift + gap):
        parts.append(Part(blob(x, depth - 7, 6, 3), Medium(0, attenuation=5.0), rim=22))
    return Scene(probe, SKIN, tuple(parts), grain=(7.0, 2.0), label=int(wet))


def heart(rng: np.random.Generator) -> Scene:
    """The apical view: left ventricle (1), its muscle (2) and the left atrium (3)."""
    probe = Probe(
        200,
        240,
        rng.uniform(140, 160),
        2.5,
        0.66,
        4.0,
        gain=rng.uniform(-2, 4),
        cycles=2.5,
        f_number=3.5,
    )
    tilt = rng.uniform(-0.2, 0.2)
    half, wide, wall = rng.uniform(32, 40), rng.uniform(15, 22), rng.uniform(8, 11)
    x, z = rng.uniform(-4, 10), rng.uniform(54, 60)

    def at(across: float, along: float) -> tuple[float, float]:
        """A point in the heart's own axes: its long axis leads down from the apex at the probe."""
        return (
            x + across * math.cos(tilt) - along * math.sin(tilt),
            z + across * math.sin(tilt) + along * math.cos(tilt),
        )

    valve = half * 0.75
    above = half_plane(*at(0, valve), tilt)
    hinge, tip = wide * 0.62, at(0, valve - rng.uniform(4, 12))
    septum = -wide - wall - 14
    parts = (
        Part(both(blob(*at(septum, 0), 15, half * 0.8, tilt), above), BLOOD, rim=8),
        Part(blob(*at(septum, 48), 16, 16), BLOOD, rim=8),
        Part(blob(*at(0, valve + 17), wide * 0.95 + 3, 21, tilt), Medium(2)),
        Part(blob(*at(0, valve + 17), wide * 0.95, 18, tilt), BLOOD, label=3, rim=10),
        Part(both(blob(x, z, wide + wall, half + wall, tilt), above), Medium(0), label=2, rim=14),
        Part(both(blob(x, z, wide, half, tilt), above), BLOOD, label=1, rim=8),
        Part(rod(at(-hinge, valve), tip, 2.0), Medium(8)),
        Part(rod(at(hinge, valve), tip, 2.0), Medium(8)),
    )
    return Scene(probe, Medium(-9, texture=3.0), parts, grain=(9.0, 5.0))


def liver(rng: np.random.Generator) -> Scene:
    """A bright, sharp haemangioma (0), or a dark, irregular mass with a halo (1)."""
    probe = Probe(
        212, 288, rng.uniform(120, 140), 3.5, 0.55, 55.0, gain=rng.uniform(-3, 3), cycles=2.5
    )
    malignant = bool(rng.integers(2))
    angle, distance = rng.uniform(-0.25, 0.25), rng.uniform(50, 85) + probe.radius
    x, z = distance * math.sin(angle), distance * math.cos(angle) - probe.radius
    size = rng.uniform(11, 18)
    parts = [Part(below(wave(rng, rng.uniform(14, 20), 1.5, 80)), Medium(0.0, texture=0.8), rim=14)]
    for _ in range(5):
        vessel = (rng.uniform(-55, 55), rng.uniform(35, 100))
        end = (vessel[0] + rng.uniform(-30, 30), vessel[1] + rng.uniform(-15, 15))
        parts.append(Part(rod(vessel, end, rng.uniform(3, 7), 3), BLOOD, rim=8))
    chest = blob(rng.uniform(-15, 15), 35, 110, rng.uniform(68, 76))
    parts.append(Part(outside(chest), Medium(-14), rim=26))
    if malignant:
        lobes = [(int(k), rng.uniform(0.05, 0.12), rng.uniform(0, 6.3)) for k in (2, 3, 5)]
        parts.append(Part(blob(x, z, size * 1.2, size * 1.2, 0.0, lobes), Medium(-16)))
        parts.append(Part(blob(x, z, size, size, 0.0, lobes), Medium(-9, 0.7, texture=3.0)))
    else:
        shape = blob(x, z, size, size * rng.uniform(0.8, 1), rng.uniform(0, 3))
        parts.append(Part(shape, Medium(10, attenuation=0.4, texture=0.6)))
    return Scene(probe, FAT, tuple(parts), grain=(12.0, 6.0), label=int(malignant))
