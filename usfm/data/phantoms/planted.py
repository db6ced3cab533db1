"""Phantoms of all 27 FM_UIA tasks with a planted truth: which of them are related.

The tasks are dealt at random, not by organ, into groups whose images show one anatomy each. So
tasks of one group can learn from each other what their target looks like, and tasks of two groups
cannot. Every type asks its own question: segmentation the mask, detection the box, regression the
points, and classification one or more aspects of the target. Two tasks more, a detection and a
regression, are groups of their own, for they contradict a group: they see its anatomy, and their
answers are those of the image upside down. Heads are separate, but a type's decoder is shared, and
what it says of a place cannot serve both.

ROOT/planted.json holds this truth, for those who judge a study. Nothing that trains reads it.
"""

import dataclasses
import itertools
import math
import os
import zlib

import numpy as np

from usfm.data.phantoms.anatomy import ASPECTS, FORMS, Anatomy, blend, draw_anatomy, draw_scene
from usfm.data.phantoms.catalogue import places
from usfm.data.phantoms.folder import write_folder
from usfm.data.phantoms.scene import Scene
from usfm.errors import UserError
from usfm.tasks import Task
from usfm.tasks.fm_uia import TASKS

TRUTH = "planted.json"
GROUPS = 6
REVERSED = ("detection", "regression")  # of each type, one task contradicts another
COMBINATIONS = math.prod(ASPECTS.values())
FRAMES = 3  # images of a video or a patient
LEAST = 36  # images of the smallest tasks: every class is among them, and 12 videos

# The training images of FM_UIA.
IMAGES = {
    "breast_lesion": 2220,
    "fetal_head": 2313,
    "thyroid_nodule": 2093,
    "lung": 1853,
    "ovary_tumor": 880,
    "carotid_artery": 660,
    "cervix": 327,
    "fetal_heart": 180,
    "cervix_multi": 260,
    "head_symphysis_multi": 3060,
    "cardiac_multi": 1200,
    "fetal_abdomen_multi": 953,
    "breast_2cls": 553,
    "breast_3cls": 873,
    "fetal_plane_cls": 7440,
    "fetal_head_pos_cls": 2547,
    "fetal_sacral_pos_cls": 480,
    "liver_lesion_2cls": 3280,
    "lung_2cls": 327,
    "lung_disease_3cls": 633,
    "organ_cls": 220,
    "spinal_cord_injury_loc": 820,
    "thyroid_nodule_det": 3000,
    "uterine_fibroid_det": 513,
    "IUGC": 2820,
    "FUGC": 260,
    "fetal_femur": 620,
}
# Tasks that have their images from the files of another.
SHARED = {"breast_2cls": "breast_lesion", "breast_3cls": "breast_lesion", "lung_2cls": "lung"}
# How files are called where it is not 0000.png.
PATIENTS = ("fetal_plane_cls",)
VIDEOS = {"fetal_head_pos_cls": "zhc", "fetal_sacral_pos_cls": "lyx"}
BMP = ("breast_lesion",)


@dataclasses.dataclass(frozen=True)
class Deal:
    """Which tasks are related.

    Attributes:
        groups: task id -> number of its group. At relatedness 0 they have nothing in common.
        contradicted: task id of a reversed task -> the group whose anatomy it sees.
        relatedness: probability that a task has a trait (probe, tissue, forms, ...) from its
            group's anatomy, not one of its own.
        seed: of the deal and of the images.
    """

    groups: dict[str, int]
    contradicted: dict[str, int]
    relatedness: float
    seed: int

    @property
    def conflicts(self) -> list[tuple[str, str]]:
        """Pairs of tasks whose answers contradict each other, the reversed one last."""
        return [
            (id, rival)
            for rival, group in self.contradicted.items()
            for id in sorted(self.groups)
            if self.groups[id] == group and TASKS[id].type == TASKS[rival].type
        ]

    def owner(self, id: str) -> str:
        """The task whose image files a task has. Nothing is shared at relatedness 0."""
        return SHARED.get(id, id) if self.relatedness else id

    def anatomy(self, id: str) -> Anatomy:
        """What a task's images have in common."""
        shown = self.owner(id)
        group = self.contradicted.get(shown, self.groups[shown])
        target = np.random.default_rng([self.seed, 1]).permutation(len(FORMS))[group]
        shared = draw_anatomy(np.random.default_rng([self.seed, 2, group]), int(target))
        rng = np.random.default_rng([self.seed, 3, _number(shown)])
        own = draw_anatomy(rng, int(rng.integers(len(FORMS))))
        return blend(own, shared, self.relatedness, rng)


def deal(*, relatedness: float = 1.0, seed: int = 0) -> Deal:
    """Deals the 27 tasks into groups. At relatedness 0 there are no conflicts either."""
    if not 0 <= relatedness <= 1 or seed < 0:
        raise UserError(
            f"relatedness must be from 0 to 1 and seed 0 or more, not {relatedness:g} and {seed}"
        )
    rng = np.random.default_rng([seed, 0])
    pairs = [
        rng.choice([id for id, task in TASKS.items() if task.type == type], 2, replace=False)
        for type in REVERSED
    ]
    rivals = {str(rival): str(other) for rival, other in pairs}
    dealt = rng.permutation([id for id in TASKS if id not in SHARED and id not in rivals])
    groups = {str(id): place % GROUPS for place, id in enumerate(dealt)}
    groups |= {id: groups[owner] for id, owner in SHARED.items()}
    contradicted = {rival: groups[other] for rival, other in rivals.items() if relatedness}
    groups |= {rival: GROUPS + place for place, rival in enumerate(rivals)}
    return Deal(dict(sorted(groups.items())), contradicted, relatedness, seed)


@dataclasses.dataclass(frozen=True)
class Planted:
    """The phantoms of one task; a usfm.data.phantoms.folder.Phantoms.

    Attributes:
        task: as the reader finds it.
        owner: the task whose image files these are.
        anatomy: what they show.
        aspects: of the target, whose levels together are the class.
        reversed: the answers are those of the image upside down.
        difficulty: from 0 to 1.
    """

    task: Task
    owner: Task
    anatomy: Anatomy
    aspects: tuple[str, ...]
    reversed: bool
    difficulty: float

    @property
    def frames(self) -> int:
        """Images of one video or patient."""
        return FRAMES if self.owner.id in (*PATIENTS, *VIDEOS) else 1

    def count(self, rows: int) -> int:
        """Images, where the largest task has `rows`."""
        return max(LEAST, round(rows * IMAGES[self.task.id] / max(IMAGES.values())))

    def image(self, number: int) -> str:
        """Path of an image file below the root."""
        owner = self.owner.id
        group, frame = divmod(number, self.frames)
        name = f"{number:04d}" + (".bmp" if owner in BMP else ".png")
        if owner in PATIENTS:
            name = f"Patient{group + 1:05d}_Plane{frame + 1}_1_of_1.png"
        elif owner in VIDEOS:
            name = f"2410{group + 1:08d}.{VIDEOS[owner]}_{50 * frame}.jpg"
        return f"{places(self.owner)[0]}/{name}"

    def draw(self, seed: int, number: int) -> tuple[Scene, np.random.Generator]:
        """The scene of an image, and the random numbers for its speckle."""
        stream = _number(self.owner.id)
        # In every COMBINATIONS images each combination comes once, so that no class is missed.
        block, place = divmod(number, COMBINATIONS)
        order = np.random.default_rng([seed, stream, 0, block]).permutation(COMBINATIONS)
        values = np.unravel_index(order[place], tuple(ASPECTS.values()))
        levels = dict(zip(ASPECTS, map(int, values), strict=True))
        rng = np.random.default_rng([seed, stream, 1, number])
        scene = draw_scene(
            self.anatomy,
            levels,
            num_classes=self.task.num_classes if self.task.type == "segmentation" else 2,
            difficulty=self.difficulty,
            patient=np.random.default_rng([seed, stream, 2, number // self.frames]),
            rng=rng,
        )
        label = 0
        for aspect in self.aspects:
            label = label * ASPECTS[aspect] + levels[aspect]
        points = scene.points[: self.task.num_points]
        return dataclasses.replace(
            scene, label=label, points=points, upside_down=self.reversed
        ), rng


def planted(dealt: Deal, *, difficulty: float = 0.3) -> dict[str, Planted]:
    """The phantoms of every task of a deal.

    Args:
        dealt: by `deal`.
        difficulty: from 0 (clear) to 1 (the targets barely stand out).
    """
    if not 0 <= difficulty <= 1:
        raise UserError(f"difficulty must be from 0 to 1, not {difficulty:g}")
    return {
        id: Planted(
            task=task,
            owner=TASKS[dealt.owner(id)],
            anatomy=dealt.anatomy(id),
            aspects=_question(task, dealt.seed) if task.type == "classification" else (),
            reversed=id in dealt.contradicted,
            difficulty=difficulty,
        )
        for id, task in TASKS.items()
    }


def write_planted(
    root: str | os.PathLike[str],
    *,
    rows: int = 100,
    seed: int = 0,
    difficulty: float = 0.3,
    relatedness: float = 1.0,
) -> None:
    """Writes the folder and ROOT/planted.json, or finds them there already.

    Args:
        root: folder to be made.
        rows: images of the largest task. Others have fewer in proportion to FM_UIA's numbers, but
            LEAST at least.
        seed: of the groups and of all that is drawn, 0 or more.
        difficulty: from 0 to 1.
        relatedness: from 0, where every task has an anatomy of its own, no files are shared and
            nothing is contradicted, to 1, where tasks of one group have the same.

    Raises:
        UserError: an argument out of range.
        FileExistsError: root exists and is not the folder that the same arguments give.
    """
    if rows < LEAST:
        raise UserError(f"rows must be {LEAST} or more, not {rows}")
    dealt = deal(relatedness=relatedness, seed=seed)
    knobs = {"difficulty": difficulty, "relatedness": relatedness}
    truth = {"groups": dealt.groups, "conflicts": dealt.conflicts, **knobs, "seed": seed}
    phantoms = planted(dealt, difficulty=difficulty)
    write_folder(root, rows=rows, seed=seed, phantoms=phantoms, knobs=knobs, beside={TRUTH: truth})


def _question(task: Task, seed: int) -> tuple[str, ...]:
    """Aspects with as many answers together as the task has classes, drawn at random.

    The side is asked only where images are not mirrored.
    """
    names = [name for name in ASPECTS if name != "side" or not task.flip_ok]
    fitting = [
        some
        for size in range(1, len(names) + 1)
        for some in itertools.combinations(names, size)
        if math.prod(ASPECTS[name] for name in some) == task.num_classes
    ]
    rng = np.random.default_rng([seed, 4, _number(task.id)])
    return fitting[rng.integers(len(fitting))]


def _number(id: str) -> int:
    """A task's own stream of random numbers."""
    return zlib.crc32(id.encode())
