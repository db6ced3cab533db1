"""Phantom tasks whose relatedness is known: two that agree, and two that contradict each other.

All four show the same kind of image, one lesion in speckle at 64 x 64 pixels, drawn anew for each
task. lesion_echo and lesion_echo_again ask the same question, whether the lesion is brighter than
the tissue. lesion_point asks for its centre, lesion_upside for the mirror image of its centre, top
for bottom: heads are separate, but a type's decoder is shared, and what it says of a place cannot
serve both. The second of each pair has a third of the images.
"""

import dataclasses

import numpy as np

from usfm.data.phantoms.bmode import Probe
from usfm.data.phantoms.catalogue import Phantom
from usfm.data.phantoms.scene import Medium, Part, Scene
from usfm.data.phantoms.shapes import blob
from usfm.tasks import Task

DEPTH = 32.0  # mm, and as wide
AGREEING = ("lesion_echo", "lesion_echo_again")
CONTRADICTING = ("lesion_point", "lesion_upside")
FEW = 1 / 3  # the images of the second of a pair, beside the first's


def lesion(rng: np.random.Generator) -> Scene:
    """One lesion, darker (0) or brighter (1) than the tissue, with its centre."""
    probe = Probe(64, 64, DEPTH, 7.5, beams=64, gain=rng.uniform(-3, 3))
    x, z = rng.uniform(-9, 9), rng.uniform(8, 24)
    shape = blob(x, z, rng.uniform(3, 6), rng.uniform(2.5, 4.5), rng.uniform(-0.5, 0.5))
    bright = int(rng.integers(2))
    echo = (-11.0, 3.0)[bright] + rng.uniform(-3, 3)
    part = Part(shape, Medium(echo, texture=3.0), label=1)
    tissue = Medium(-4.0, texture=3.0)
    return Scene(probe, tissue, (part,), grain=(4.0, 2.0), label=bright, points=((x, z),))


# One function a task, for tasks of one scene have the same images.
def lesion_again(rng: np.random.Generator) -> Scene:
    """The same, in other images."""
    return lesion(rng)


def lesion_to_find(rng: np.random.Generator) -> Scene:
    """The same, in other images."""
    return lesion(rng)


def lesion_upside_down(rng: np.random.Generator) -> Scene:
    """The same, in other images; the point is its centre in the image upside down."""
    scene = lesion(rng)
    ((x, z),) = scene.points
    return dataclasses.replace(scene, points=((x, DEPTH - z),))


RELATED = {
    phantom.task.id: phantom
    for phantom in (
        Phantom(Task("lesion_echo", "classification", num_classes=2), lesion),
        Phantom(Task("lesion_echo_again", "classification", num_classes=2), lesion_again, FEW),
        Phantom(Task("lesion_point", "regression", num_points=1), lesion_to_find),
        Phantom(Task("lesion_upside", "regression", num_points=1), lesion_upside_down, FEW),
    )
}
