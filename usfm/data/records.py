"""What is stored of one row: its image at the store's size and its label, as a tf.train.Example."""

import dataclasses
import functools
import pathlib

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from usfm.data.folder import Row
from usfm.data.image import read_image, read_mask, resize_image, resize_mask
from usfm.data.slots import IGNORE
from usfm.data.store import stored_arrays
from usfm.tasks import Task


@dataclasses.dataclass(frozen=True)
class Form:
    """How the rows of a task are stored.

    Attributes:
        task: the task.
        image_size: (height, width) of the stored images.
        channels: 1 or 3, of the stored images.
    """

    task: Task
    image_size: tuple[int, int]
    channels: int

    @property
    def row_bytes(self) -> int:
        """Bytes of the arrays of a row."""
        arrays = stored_arrays(self.task, self.image_size, self.channels)
        return sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in arrays.values())

    @property
    def features(self) -> tfds.features.FeaturesDict:
        """The arrays of a row and the strings of its CSV, as TFDS describes them."""
        arrays = stored_arrays(self.task, self.image_size, self.channels)
        features: dict[str, tfds.features.FeatureConnector] = {
            name: tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")
            for name, (shape, dtype) in arrays.items()
        }
        for name in ("key", "image_path", "mask_path", "content"):
            features[name] = tfds.features.Text()
        return tfds.features.FeaturesDict(features)


@dataclasses.dataclass(frozen=True)
class Source:
    """All that is needed to store a row, wherever that is done.

    Attributes:
        form: how it is stored.
        row: the row.
        image_file: its image.
        mask_file: its mask; None where it has none.
    """

    form: Form
    row: Row
    image_file: pathlib.Path
    mask_file: pathlib.Path | None


def record(source: Source) -> bytes:
    """The serialized tf.train.Example of a row: equal rows, equal bytes.

    Raises:
        ImageError: the image or mask cannot be read any more.
    """
    features, serializer = _serializing(source.form)
    fields = serializer.get_tf_example(features.encode_example(_fields(source)))
    # TFDS would write them in an order that is another in each process.
    return fields.SerializeToString(deterministic=True)


@functools.cache
def _serializing(form: Form) -> tuple[tfds.features.FeaturesDict, ExampleSerializer]:
    features = form.features
    return features, ExampleSerializer(features.get_serialized_info())


def _fields(source: Source) -> dict[str, object]:
    """The fields of a row by name; Store.read says what stands for a missing label."""
    form, row = source.form, source.row
    task, image_size = form.task, form.image_size
    extent = np.array([row.width, row.height], np.float32)
    fields: dict[str, object] = {
        "image": resize_image(read_image(source.image_file), image_size, form.channels),
        "size": np.array([row.height, row.width], np.int32),
        "key": row.key,
        "image_path": row.image_path,
        "mask_path": row.mask_path,
        "content": row.content,
    }
    if task.type == "classification":
        fields["label"] = np.array(-1 if row.label is None else row.label, np.int32)
    elif task.type == "detection":
        box = np.zeros(4, np.float32) if row.box is None else np.array(row.box, np.float32)
        fields["box"] = box / np.tile(extent, 2)
    elif task.type == "regression":
        points = row.points or (None,) * task.num_points
        fields["points_valid"] = np.array([point is not None for point in points])
        fields["points"] = np.array([point or (0, 0) for point in points], np.float32) / extent
    elif source.mask_file is not None:
        fields["mask"] = resize_mask(read_mask(source.mask_file), image_size)
    else:
        fields["mask"] = np.full(image_size, IGNORE, np.uint8)
    return fields
