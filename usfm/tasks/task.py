"""A task: one kind of question asked of an ultrasound image."""

import dataclasses

# The order in which slots of a batch are laid out.
TYPES = ("classification", "detection", "regression", "segmentation")


@dataclasses.dataclass(frozen=True)
class Task:
    """One task of a data folder.

    Attributes:
        id: the task_id of the CSV files, unique within a run.
        type: one of TYPES.
        num_classes: classes of a segmentation (background included) or classification task,
            of what is boxed in a detection task; 0 for regression.
        num_points: landmarks of a regression task; 0 for the others.
        organ: what is looked at, in plain words; "" where unknown.
        group: clinical group; tasks of one group are trained together under that plan. A task
            that belongs to no group is alone in a group named as itself.
        flip_ok: a mirrored image keeps its label. False where left and right have a meaning.
    """

    id: str
    type: str
    num_classes: int = 0
    num_points: int = 0
    organ: str = ""
    group: str = ""
    flip_ok: bool = True

    @property
    def size(self) -> int:
        """Width of the task's output: its classes, or its points."""
        return self.num_points if self.type == "regression" else self.num_classes
