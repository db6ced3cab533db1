"""Ten phantom tasks that a small model learns in seconds, with a planted truth: who asks the same.

All tasks show the same kind of image: speckle of 48 x 48 pixels with a few signs in it, each in a
place of its own. Every task asks where one sign is. Three tasks each ask for the same one, in
images of their own, and can learn from each other how it looks; those of two groups cannot. The
tenth is a group of its own, for it contradicts one: it asks for the same sign, and its answers are
those of the image upside down. Heads are separate, but the decoder is shared, and what it says of
a place cannot serve both. Which tasks are related is dealt by the seed.

ROOT/planted.json holds this truth, for those who judge a study. Nothing that trains reads it.
"""

import dataclasses
import os
import zlib

import numpy as np

from usfm.data.phantoms.bmode import Probe
from usfm.data.phantoms.catalogue import places
from usfm.data.phantoms.folder import write_folder
from usfm.data.phantoms.planted import TRUTH
from usfm.data.phantoms.scene import Medium, Part, Scene
from usfm.data.phantoms.shapes import blob, both, half_plane
from usfm.errors import UserError
from usfm.tasks import Task

SIDE = 48  # pixels
DEPTH = 24.0  # mm, and as wide
CELLS = tuple((x, z) for x in (-7.5, 0.0, 7.5) for z in (4.5, 12.0, 19.5))  # middles, mm
JITTER = 1.0
TISSUE = Medium(-7.0, texture=1.5)
RADIUS = 2.6  # mm
BRIGHT, DARK = 8.0, -23.0  # echo, dB

GROUPS, MEMBERS = 3, 3


@dataclasses.dataclass(frozen=True)
class Sign:
    """What is looked for: a disc of two halves, alike or not.

    Attributes:
        upper, lower: echo of its halves, dB.
    """

    upper: float
    lower: float

    def parts(self, x: float, z: float, rng: np.random.Generator) -> list[Part]:
        """The sign at a place in mm, a little brighter or darker each time."""
        disc, shift = blob(x, z, RADIUS, RADIUS), rng.uniform(-2, 2)
        above = both(disc, half_plane(x, z, 0.0))
        return [Part(disc, Medium(self.lower + shift)), Part(above, Medium(self.upper + shift))]


# A calcification, a cyst, a stone with its shadow, a wall with enhancement behind it. As patterns
# they are alike or opposite to one other at most. Groups have the first ones; where nothing is
# related each has one task.
SIGNS = (Sign(BRIGHT, BRIGHT), Sign(DARK, DARK), Sign(BRIGHT, DARK), Sign(DARK, BRIGHT))


@dataclasses.dataclass(frozen=True)
class Seek:
    """The phantoms of one task; a usfm.data.phantoms.folder.Phantoms.

    Attributes:
        task: as the reader finds it.
        sign: index of what is asked for.
        shown: how many of SIGNS its images may show: the one asked for always, each other in half
            of them.
        reversed: the answers are those of the image upside down.
    """

    task: Task
    sign: int
    shown: int
    reversed: bool = False

    def count(self, rows: int) -> int:
        """As many as are asked for."""
        return rows

    def image(self, number: int) -> str:
        """Path of an image file below the root."""
        return f"{places(self.task)[0]}/{number:04d}.png"

    def draw(self, seed: int, number: int) -> tuple[Scene, np.random.Generator]:
        """The scene of an image, and the random numbers for its speckle."""
        rng = np.random.default_rng([seed, zlib.crc32(self.task.id.encode()), number])
        probe = Probe(SIDE, SIDE, DEPTH, 7.5, beams=SIDE, gain=rng.uniform(-3, 3))
        cells = np.array(CELLS)[rng.permutation(len(CELLS))[: self.shown]]
        middles = [(x, z) for x, z in (cells + rng.uniform(-JITTER, JITTER, cells.shape)).tolist()]
        seen = rng.random(self.shown) < 0.5
        seen[self.sign] = True
        parts = tuple(
            part for k in np.flatnonzero(seen).tolist() for part in SIGNS[k].parts(*middles[k], rng)
        )
        x, z = middles[self.sign]
        scene = Scene(probe, TISSUE, parts, grain=(4.0, 2.0), points=((x, z),))
        return dataclasses.replace(scene, upside_down=self.reversed), rng


def deal(*, related: bool = True, seed: int = 0) -> dict[str, Seek]:
    """Deals signs to tasks: of GROUPS x MEMBERS + 1 the last dealt contradicts the first group.

    Where nothing is related there are as many tasks as signs.
    """
    count = GROUPS * MEMBERS + 1 if related else len(SIGNS)
    ids = [f"seek_{number:02d}" for number in range(1, count + 1)]
    order = np.random.default_rng([seed, 0]).permutation(count)
    dealt = {}
    for id, place in zip(ids, order.tolist(), strict=True):
        task = Task(id, "regression", num_points=1)
        if related:
            dealt[id] = Seek(task, place % GROUPS, GROUPS, reversed=place == GROUPS * MEMBERS)
        else:
            dealt[id] = Seek(task, place, len(SIGNS))
    return dealt


def write_signs(
    root: str | os.PathLike[str], *, rows: int = 100, seed: int = 0, relatedness: float = 1.0
) -> int:
    """Writes the folder and ROOT/planted.json, or finds them there already.

    Args:
        root: folder to be made.
        rows: images of each task.
        seed: of the deal and of all that is drawn, 0 or more.
        relatedness: 1: tasks of a group ask for one sign; 0: each of four tasks for its own.

    Returns:
        The number of tasks.

    Raises:
        UserError: an argument out of range.
        FileExistsError: root exists and is not the folder that the same arguments give.
    """
    if relatedness not in (0, 1) or seed < 0:
        raise UserError(
            f"relatedness must be 0 or 1 and seed 0 or more, not {relatedness:g} and {seed}"
        )
    dealt = deal(related=bool(relatedness), seed=seed)
    rivals = [id for id, one in dealt.items() if one.reversed]
    groups = {id: GROUPS if one.reversed else one.sign for id, one in dealt.items()}
    conflicts = [
        (id, rival) for rival in rivals for id in groups if groups[id] == dealt[rival].sign
    ]
    knobs = {"relatedness": float(relatedness)}
    truth = {"groups": groups, "conflicts": conflicts, **knobs, "seed": seed}
    write_folder(root, rows=rows, seed=seed, phantoms=dealt, knobs=knobs, beside={TRUTH: truth})
    return len(dealt)
