"""What is exported is read by usfm/exported.py, and says what the model says."""

import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from usfm import exported
from usfm.evaluation.export import export_model
from usfm.evaluation.predict import programs_of
from usfm.models.m2dino import M2DINO
from usfm.models.moe import Mixture
from usfm.tasks import TYPES, Task
from usfm.training import sharding

TASKS = (
    Task("many", "classification", num_classes=5),
    Task("points", "regression", num_points=2),
    Task("two", "classification", num_classes=2),
)
SHAPE = (32, 32, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(scope="module")
def model_and_params(folder):
    mixture = Mixture(2, layers=(2, 3), top_k=1)
    model = M2DINO(TASKS, "tiny", decoder_width=dict.fromkeys(TYPES, 8), mixture=mixture)
    params = jax.jit(model.init)(jax.random.key(0))
    export_model(model, params, SHAPE, folder)
    return model, params


def test_an_exported_model_says_what_the_model_says_for_any_number_of_images(
    model_and_params, folder
):
    model, params = model_and_params
    loaded = exported.load(folder)
    assert loaded.image_shape == SHAPE
    assert list(loaded.tasks) == [task.id for task in TASKS]
    images = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), np.uint8)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "expert": 1}, jax.devices()[:1])
    answers = programs_of(model, mesh)
    for index, task in enumerate(TASKS):
        raw = answers[task.type](params, (images[None],), np.array([index], np.int32), False)
        name, axis = ("points", 1) if task.type == "regression" else ("logits", -1)
        expected = np.asarray(raw[name])[0].take(range(task.size), axis=axis)
        # One float32 model in two programs.
        np.testing.assert_allclose(loaded(task.id, images)[name], expected, atol=1e-5)
    alone = loaded("two", images[:1])["logits"]
    np.testing.assert_allclose(alone, expected[:1], atol=1e-5)


@pytest.mark.usefixtures("model_and_params")
def test_programs_are_for_all_platforms_and_need_nothing_of_usfm(folder):
    script = (
        "import pathlib, sys; import exported; m = exported.load(sys.argv[1]);"
        "print([name for name in sys.modules if name.split('.')[0] in ('usfm', 'flax')]);"
        "file = (pathlib.Path(sys.argv[1]) / 'regression.stablehlo').read_bytes();"
        "print(exported.export.deserialize(bytearray(file)).platforms)"
    )
    shutil.copy(exported.__file__, folder)
    done = subprocess.run(
        [sys.executable, "-c", script, folder], cwd=folder, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["[]", "('cpu', 'cuda', 'tpu')"], done.stderr
