"""The phantom tasks: to add one, write its scene and a line in PHANTOMS."""

import dataclasses
from collections.abc import Callable

import numpy as np

from usfm.data.phantoms import adult, obstetric
from usfm.data.phantoms.scene import Scene
from usfm.tasks import Task


@dataclasses.dataclass(frozen=True)
class Phantom:
    """A task and the scene that its images show. Tasks of one scene have the same images."""

    task: Task
    scene: Callable[[np.random.Generator], Scene]


PHANTOMS = {
    phantom.task.id: phantom
    for phantom in (
        Phantom(Task("breast_2cls", "classification", 2), adult.breast),
        Phantom(Task("liver_lesion_2cls", "classification", 2), adult.liver),
        Phantom(Task("lung_2cls", "classification", 2), adult.lung),
        Phantom(Task("thyroid_nodule_det", "detection", 1), adult.thyroid),
        Phantom(Task("uterine_fibroid_det", "detection", 1), obstetric.uterus),
        Phantom(Task("FUGC", "regression", num_points=2), obstetric.cervix),
        Phantom(Task("fetal_femur", "regression", num_points=2), obstetric.femur),
        Phantom(Task("breast_lesion", "segmentation", 2), adult.breast),
        Phantom(Task("cardiac_multi", "segmentation", 4), adult.heart),
        Phantom(Task("carotid_artery", "segmentation", 2), adult.carotid),
        Phantom(Task("head_symphysis_multi", "segmentation", 3), obstetric.pelvis),
    )
}
