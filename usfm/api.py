"""usfm from Python: `usfm.Model` answers a folder, `usfm.load` an image in a notebook."""

import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from usfm import checks
from usfm import config as usfm_config
from usfm.data.image import read_image, resize_image
from usfm.errors import UserError
from usfm.evaluation.features import Extractor, Features
from usfm.evaluation.predict import Predictor, answer
from usfm.evaluation.prediction import Answer
from usfm.restored import (
    all_devices_mesh,
    extractor_of,
    find_run,
    one_device_mesh,
    predictor_of,
    restore,
)
from usfm.tasks import Task
from usfm.tasks.suggest import suggest

Fields = Mapping[str, Any]  # of the config, by dotted name


class Model:
    """A trained model with the interface of the FM_UIA challenge.

    Args:
        checkpoint: a workdir, whose newest checkpoint is taken, or one of its checkpoints/STEP.
        fields: of the config, other than those of the run, such as {"predict.flip": True} or
            {"tasks": "group:breast"}; all tasks of a folder are asked unless `tasks` says which.

    Raises:
        UserError: it is no run, holds no such checkpoint, or has no such field.
    """

    def __init__(self, checkpoint: str | os.PathLike, fields: Fields | None = None):
        fields = {"tasks": "all", **(fields or {})}
        workdir, step = find_run(checkpoint)
        self._config = _config(workdir, fields)
        self._keeps_cache = "data.cache_dir" in fields
        restored = restore(self._config, workdir, mesh=all_devices_mesh(), step=step)
        self._predictor = predictor_of(restored)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it may be asked."""
        return self._predictor.tasks

    def predict(
        self, data_root: str | os.PathLike, output_dir: str | os.PathLike, batch_size: int = 8
    ) -> None:
        """Answers all that a folder asks, in the form of the challenge (docs/predict.md).

        Rows and files that cannot be read are left out, and named in output_dir/left_out.csv.

        Args:
            data_root: an FM_UIA folder, with or without labels, a folder of images, or a list.
            output_dir: made where it is missing.
            batch_size: images at once.

        Raises:
            UserError: nothing can be answered, or a task is asked that the model does not know.
        """
        # Here, because `load` need not wait half a second for the readers of folders.
        from usfm.data.source import say
        from usfm.evaluation.answering import answer_all, open_answerable

        config, output_dir = self._config.copy_and_resolve_references(), pathlib.Path(output_dir)
        config.data.root = os.fspath(data_root)
        config.evaluate.batch_size = batch_size
        checks.check(config)
        predictor = dataclasses.replace(self._predictor, batch_size=batch_size)
        with tempfile.TemporaryDirectory() as scratch:  # there may be no home to keep a cache in
            if not self._keeps_cache:
                config.data.cache_dir = scratch
            folder = open_answerable(predictor.tasks, config, output_dir)
            overlays = config.predict.overlays
            say(answer_all(predictor, folder, output_dir, left_out=output_dir, overlays=overlays))


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A trained model for single images, on this process's first device. `load` makes it."""

    _predictor: Predictor
    _extractor: Extractor

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it may be asked."""
        return self._predictor.tasks

    def predict(self, image: str | os.PathLike | np.ndarray, task: str) -> Answer:
        """Answers one image at its own size.

        Args:
            image: a file, or uint8 [H, W] (grey) or [H, W, 3] (RGB).
            task: the id of one of `tasks`.

        Raises:
            UserError: no such task or file, or not an image.
        """
        asked, pixels = self.tasks[self._index(task)], _pixels(image)
        sizes = self._predictor.views.sizes(self._predictor.image_size)
        channels = self._predictor.channels
        views = [resize_image(pixels, size, channels)[None] for size in sizes]
        outputs = self._predictor.outputs(asked, views)
        return answer(asked, pixels.shape[:2], {name: v[0] for name, v in outputs.items()})

    def features(self, image: str | os.PathLike | np.ndarray, task: str | None = None) -> Features:
        """What the encoder says of one image.

        Args:
            image: as `predict` takes it.
            task: whose embedding the routers of mixtures read; None = features.task of the config,
                which is the mean over all tasks unless it names one.

        Raises:
            UserError: as `predict` does.
        """
        extractor = self._extractor
        if task is not None:
            extractor = dataclasses.replace(extractor, task=self._index(task))
        resized = resize_image(_pixels(image), extractor.image_size, extractor.channels)
        return extractor.of_batch(resized[None])[0]

    def _index(self, task: str) -> int:
        ids = [each.id for each in self.tasks]
        if task not in ids:
            raise UserError(f"the model has no task {task!r}; {suggest(task, ids)}")
        return ids.index(task)


def load(checkpoint: str | os.PathLike, fields: Fields | None = None) -> Loaded:
    """A trained model for notebooks; arguments and errors are those of `Model`.

    Its first answer to each type of task, and its first features, wait for XLA to compile.
    """
    workdir, step = find_run(checkpoint)
    config = _config(workdir, {"evaluate.batch_size": 1, **(fields or {})})
    restored = restore(config, workdir, mesh=one_device_mesh(), step=step)
    return Loaded(predictor_of(restored, quick=True), extractor_of(restored, quick=True))


def _config(workdir: pathlib.Path, fields: Fields) -> ConfigDict:
    known = usfm_config.flat(usfm_config.to_dict(usfm_config.base()))
    for name in fields:
        if name not in known:
            raise UserError(f"the config has no field {name!r}; {suggest(name, known)}")
    config = usfm_config.of_run(workdir, dict(fields))
    checks.check(config)
    return config


def _pixels(image: str | os.PathLike | np.ndarray) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        try:
            return read_image(image)
        except FileNotFoundError as error:
            raise UserError(f"there is no file {os.fspath(image)}; correct the path") from error
    if image.dtype != np.uint8 or image.shape[2:] not in ((), (1,), (3,)) or image.ndim < 2:
        raise UserError(
            f"the image is {image.dtype} {list(image.shape)}: give uint8 [H, W] or [H, W, 3] (RGB)"
        )
    return image[..., 0] if image.shape[2:] == (1,) else image
