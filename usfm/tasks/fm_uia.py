"""The 27 tasks of the FM_UIA 2026 challenge, and how a task of any folder is described.

Type and size follow the challenge's CSV files. The clinical groups are ours where the paper
(arXiv 2603.18123) leaves them open: Breast and Lung follow from its sample counts, but which tasks
make its OB group is not known. Here `ob` is what looks at the fetus or at labour. The cervix is a
group of its own, since the paper reports no clinically grouped figure for its landmarks. Config
can regroup any task.

`flip_ok` is False where a mirrored picture would need another label. That is so for positions told
by left and right, and taken to be so for landmarks: each has its own number, and in all three
tasks the picture is taken in one orientation, so that the numbers go with the sides (the two ends
of a femur differ in nothing else). Masks and boxes are mirrored with their picture; their classes
are organs, which have no side.
"""

from collections.abc import Mapping

from usfm.errors import UserError
from usfm.tasks.suggest import suggest
from usfm.tasks.task import Task


def _segmentation(id: str, num_classes: int, organ: str, group: str = "") -> Task:
    return Task(id, "segmentation", num_classes, 0, organ, group or id)


def _classification(
    id: str, num_classes: int, organ: str, group: str = "", flip_ok: bool = True
) -> Task:
    return Task(id, "classification", num_classes, 0, organ, group or id, flip_ok)


def _detection(id: str, organ: str, group: str = "") -> Task:
    return Task(id, "detection", 1, 0, organ, group or id)


def _regression(id: str, num_points: int, organ: str, group: str = "") -> Task:
    return Task(id, "regression", 0, num_points, organ, group or id, flip_ok=False)


TASKS: dict[str, Task] = {
    task.id: task
    for task in (
        _segmentation("breast_lesion", 2, "breast", "breast"),
        _segmentation("fetal_head", 2, "fetal head", "ob"),
        _segmentation("thyroid_nodule", 2, "thyroid", "thyroid"),
        _segmentation("lung", 2, "lung", "lung"),
        _segmentation("ovary_tumor", 2, "ovary", "gynaecology"),
        _segmentation("carotid_artery", 2, "carotid artery", "cardiovascular"),
        _segmentation("cervix", 2, "cervix", "cervix"),
        _segmentation("fetal_heart", 2, "fetal heart", "ob"),
        _segmentation("cervix_multi", 3, "cervix", "cervix"),
        _segmentation("head_symphysis_multi", 3, "fetal head and pubic symphysis", "ob"),
        _segmentation("cardiac_multi", 4, "heart", "cardiovascular"),
        _segmentation("fetal_abdomen_multi", 5, "fetal abdomen", "ob"),
        _classification("breast_2cls", 2, "breast", "breast"),
        _classification("breast_3cls", 3, "breast", "breast"),
        _classification("fetal_plane_cls", 6, "fetus", "ob"),
        _classification("fetal_head_pos_cls", 8, "fetal head", "ob", flip_ok=False),
        _classification("fetal_sacral_pos_cls", 8, "fetal sacrum", "ob", flip_ok=False),
        _classification("liver_lesion_2cls", 2, "liver"),
        _classification("lung_2cls", 2, "lung", "lung"),
        _classification("lung_disease_3cls", 3, "lung", "lung"),
        _classification("organ_cls", 6, "several organs"),
        _detection("spinal_cord_injury_loc", "spinal cord"),
        _detection("thyroid_nodule_det", "thyroid", "thyroid"),
        _detection("uterine_fibroid_det", "uterus", "gynaecology"),
        _regression("IUGC", 3, "fetal head and pubic symphysis", "ob"),
        _regression("FUGC", 2, "cervix", "cervix"),
        _regression("fetal_femur", 2, "fetal femur", "ob"),
    )
}


def describe(
    id: str,
    type: str,
    size: int,
    groups: Mapping[str, str] | None = None,
    flip_ok: Mapping[str, bool] | None = None,
) -> Task:
    """Makes the task that a folder's CSV calls `id`: the CSV types it, config may regroup it.

    Args:
        id: task_id of the CSV.
        type: one of TYPES.
        size: number of points of a regression task, of classes otherwise.
        groups: task id -> group, over what is known of the task.
        flip_ok: task id -> whether mirrored images keep their label, likewise.

    Returns:
        A task that is not among TASKS has no organ, is alone in its group and may be flipped
        unless it is a regression task.
    """
    known = TASKS.get(id)
    regression = type == "regression"
    flips = known.flip_ok if known and known.type == type else not regression
    return Task(
        id=id,
        type=type,
        num_classes=0 if regression else size,
        num_points=size if regression else 0,
        organ=known.organ if known else "",
        group=(groups or {}).get(id, known.group if known else id),
        flip_ok=(flip_ok or {}).get(id, flips),
    )


def check_overrides(field: str, ids: Mapping[str, object] | None, known: Mapping[str, object]):
    """Raises UserError where a config mapping by task id names one that the folder has not."""
    for id in ids or {}:
        if id not in known:
            raise UserError(f"{field}: the folder has no task {id!r}; {suggest(id, known)}")
