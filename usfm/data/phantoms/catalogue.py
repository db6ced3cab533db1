"""The phantom tasks: to add one, write its scene and a line in SCENES."""

import dataclasses
import zlib
from collections.abc import Callable

import numpy as np

from usfm.data.phantoms import adult, obstetric
from usfm.data.phantoms.scene import Scene
from usfm.tasks import Task
from usfm.tasks.fm_uia import TASKS

_COUNTS = {2: "Two", 3: "Three", 4: "Four", 5: "Five"}


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

    def count(self, rows: int) -> int:
        """Number of images in a folder of `rows`."""
        return max(1, round(rows * self.share))

    def image(self, number: int) -> str:
        """Path of an image file below the root."""
        return f"{places(self.task)[0]}/{number:04d}.png"

    def draw(self, seed: int, number: int) -> tuple[Scene, np.random.Generator]:
        """The scene of an image, and the random numbers for its speckle."""
        rng = np.random.default_rng([seed, zlib.crc32(self.scene.__name__.encode()), number])
        return self.scene(rng), rng


def places(task: Task) -> tuple[str, str]:
    """The folders of a task's images and masks; without masks, twice that of the images."""
    if task.type == "segmentation":
        place = f"Segmentation/{_COUNTS[task.num_classes]}/{task.id}"
        return f"{place}/IMAGES", f"{place}/MASKS"
    place = f"{task.type.capitalize()}/{task.id}"
    return place, place


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
