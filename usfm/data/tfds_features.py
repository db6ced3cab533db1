"""What the features of a TFDS data set say, in the words of an FM_UIA folder's CSV."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.features.bounding_boxes_utils import BBoxFormat

from usfm.data.labels import BOX
from usfm.errors import UserError
from usfm.tasks import TYPES
from usfm.tasks.suggest import suggest

# A tfds.features.FeatureConnector, whose shape and dtype are typed as trees of such; of features
# that are no dictionaries they are plain.
Feature = Any
SETTINGS = ("type", "feature", "num_classes")


@dataclasses.dataclass(frozen=True)
class TaskFeature:
    """A task that a data set holds.

    Attributes:
        id: of the task.
        type: one of TYPES.
        feature: the feature of its labels; a path such as objects/bbox leads into nested ones.
        size: its number of classes or points.
        relative: a box is y_min, x_min, y_max, x_max over the image's size, as TFDS has boxes; else
            it is x_min, y_min, x_max, y_max in pixels.
    """

    id: str
    type: str
    feature: str
    size: int
    relative: bool = False


def task_features(features: Feature, tasks: Mapping[str, Mapping[str, Any]]) -> list[TaskFeature]:
    """The tasks as data.tfds.tasks gives them, checked against the features.

    Raises:
        UserError: names the task, and the setting that is wrong.
    """
    if not tasks:
        raise UserError(
            "data.tfds.tasks is empty: say which features are tasks, such as {'my_task': "
            "{'type': 'segmentation', 'feature': 'mask', 'num_classes': 2}}; there are "
            f"{', '.join(sorted(path for path, _ in _paths(features)))}"
        )
    return [_task_feature(features, id, settings) for id, settings in sorted(tasks.items())]


def check_image(features: Feature, path: str) -> None:
    """Raises UserError unless a feature holds images that a PNG can hold."""
    feature = find(features, path, "data.tfds.image")
    if not _is_pixels(feature, (1, 3, 4)) or feature.np_dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"data.tfds.image: {path!r} is {feature}; give a feature of uint8 or uint16 images, "
            "[height, width] or [height, width, channels]"
        )


def find(features: Feature, path: str, field: str) -> Feature:
    """The feature at a path.

    Raises:
        UserError: there is none; `field` is the config field that names it.
    """
    paths = dict(_paths(features))
    if path not in paths:
        raise UserError(f"{field}: there is no feature {path!r}; {suggest(path, paths)}")
    return paths[path]


def value_at(example: Any, path: str) -> Any:
    """The value of a feature in a decoded example."""
    for name in path.split("/"):
        example = example[name]
    return example


def label_columns(task: TaskFeature, value: Any, height: int, width: int) -> list[dict[str, str]]:
    """The label of an example as the columns of its rows: one row, or one for each box.

    Args:
        task: any but a segmentation.
        value: of its feature. A class below 0 and a point that is not a number are missing.
        height: of the image, in pixels.
        width: likewise.
    """
    if task.type == "classification":
        return [{"mask": "" if value < 0 else str(int(value))}]
    if task.type == "regression":
        return [
            {
                f"point_{k}_xy": "" if math.isnan(x + y) else json.dumps([x, y])
                for k, (x, y) in enumerate(np.asarray(value).tolist(), start=1)
            }
        ]
    boxes = np.asarray(value, np.float64).reshape(-1, 4)
    if task.relative:
        boxes = boxes[:, [1, 0, 3, 2]] * [width, height, width, height]
    if not len(boxes):
        return [dict.fromkeys(BOX, "")]
    return [dict(zip(BOX, map(repr, box), strict=True)) for box in boxes.tolist()]


def _task_feature(features: Feature, id: str, settings: Mapping[str, Any]) -> TaskFeature:
    field = f"data.tfds.tasks: {id}"
    for name in settings:
        if name not in SETTINGS:
            raise UserError(f"{field}: there is no setting {name!r}; {suggest(name, SETTINGS)}")
    for name in ("type", "feature"):
        if name not in settings:
            raise UserError(f"{field}: {name} is missing; give type, feature and num_classes")
    type, path = str(settings["type"]), str(settings["feature"])
    if type not in TYPES:
        raise UserError(f"{field}: type {type!r} is not known; {suggest(type, TYPES)}")
    feature = find(features, path, field)
    relative = False
    if type == "detection":
        while isinstance(feature, tfds.features.Sequence):
            feature = feature.feature
        relative = isinstance(feature, tfds.features.BBoxFeature)
    if not _fits(type, feature):
        raise UserError(f"{field}: the feature {path!r} is {feature}; give {_WANTED[type]}")
    if type == "regression":
        size = feature.shape[0]
    else:
        known = 1 if type == "detection" else getattr(feature, "num_classes", None)
        size = settings.get("num_classes", known)
    if size is None:
        raise UserError(
            f"{field}: num_classes is missing, and the feature {path!r} does not say it"
        )
    return TaskFeature(id, type, path, size, relative)


_WANTED = {
    "classification": "a ClassLabel, or a scalar of whole numbers",
    "detection": "a BBoxFeature of TFDS' own format, or a tensor of x_min, y_min, x_max, y_max in "
    "pixels; or a sequence of these",
    "regression": "a tensor of [points, 2]: x, y in pixels",
    "segmentation": "class ids as whole numbers, [height, width] or [height, width, 1]",
}


def _fits(type: str, feature: Feature) -> bool:
    shape = feature.shape
    if type == "segmentation":
        return _is_pixels(feature, (1,)) and np.dtype(feature.np_dtype).kind in "iub"
    if type == "classification":
        return shape == () and np.dtype(feature.np_dtype).kind in "iu"
    if type == "regression":
        return len(shape) == 2 and shape[0] is not None and shape[1] == 2
    format = getattr(feature, "bbox_format", None)
    return shape[-1:] == (4,) and format in (None, BBoxFormat.REL_YXYX)


def _is_pixels(feature: Feature, channels: tuple[int, ...]) -> bool:
    """Whether it is [height, width], or [height, width, C] with one of these C."""
    shape = feature.shape
    return isinstance(feature, tfds.features.Tensor | tfds.features.Image) and (
        len(shape) == 2 or (len(shape) == 3 and shape[2] in (*channels, None))
    )


def _paths(feature: Feature, prefix: str = "") -> Iterator[tuple[str, Feature]]:
    """All features that are no dictionaries, by path."""
    inside = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
    if isinstance(inside, tfds.features.FeaturesDict):
        for name, each in inside.items():
            yield from _paths(each, f"{prefix}/{name}" if prefix else name)
    else:
        yield prefix, feature
