"""The phantom tasks: to add one, write its scene and a line in SCENES."""

import dataclasses
from collections.abc import Callable

import numpy as np

from usfm.data.phantoms import adult, obstetric
from usfm.data.phantoms.scene import Scene
from usfm.tasks import Task
from usfm.tasks.fm_uia import TASKS


@dataclasses.dataclass(frozen=True)
class Phantom:
    """A task and the scene that its images show. Tasks of one scene have the same images.

    Attributes:
        task: as the reader finds it.
        scene: draws one.
        share: its number of images, in the folder's `rows`.
    """

    task: Task
    scene: Callable[[np.random.Generator], Scene]
    share: float = 1.0


SCENES: dict[str, Callable[[np.random.Generator], Scene]] = {
    "breast_2cls": adult.breast,
    "liver_lesion_2cls": adult.liver,
    "lung_2cls": adult.lung,
    "thyroid_nodule_det": adult.thyroid,
    "uterine_fibroid_det": obstetric.uterus,
    "FUGC": obstetric.cervix,
    "fetal_femur": obstetric.femur,
    "breast_lesion": adult.breast,
    "cardiac_multi": adult.heart,
    "carotid_artery": adult.carotid,
    "head_symphysis_multi": obstetric.pelvis,
}
PHANTOMS = {id: Phantom(TASKS[id], scene) for id, scene in SCENES.items()}
