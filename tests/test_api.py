import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import usfm
from usfm.data.image import read_image
from usfm.errors import UserError
from usfm.training.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def loaded(trained):
    return usfm.load(trained)


def test_importing_usfm_waits_for_nothing():
    script = "import sys, usfm; print(sorted({'jax', 'numpy', 'usfm.api'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
    with pytest.raises(AttributeError, match="'usfm' has no attribute 'laod'"):
        _ = usfm.laod  # pyrefly: ignore


def test_a_folder_is_answered_as_the_challenge_asks(trained, phantoms, loaded, tmp_path):
    model = usfm.Model(trained, {"tasks": "thyroid_nodule_det,uterine_fibroid_det"})
    assert model.tasks == loaded.tasks
    out = tmp_path / "out"
    model.predict(phantoms, out, batch_size=5)
    assert [path.name for path in out.iterdir()] == ["detection_predictions.json"]
    entries = json.loads((out / "detection_predictions.json").read_text())
    assert len(entries) == 24
    for entry in entries[::8]:
        file = phantoms / "csv_files" / entry["image_path"]
        for image in (file, read_image(file)):
            box = loaded.predict(image, entry["task_id"]).box
            np.testing.assert_allclose(box, entry["bbox_normalized"], atol=1e-4)


def test_an_image_has_features_whatever_is_asked_of_it(loaded):
    image = np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)
    grey, colour = loaded.features(image), loaded.features(np.stack([image] * 3, axis=-1))
    assert (grey.dense.shape, grey.cls.shape, grey.mean.shape) == ((2, 2, 192), (192,), (192,))
    np.testing.assert_allclose(grey.cls, colour.cls, atol=0.05)  # grey by rounded weights
    # This model has no mixtures, whose routers would look at the task.
    np.testing.assert_array_equal(grey.cls, loaded.features(image, "lung_2cls").cls)


def test_any_of_a_runs_places_names_it(trained):
    with Checkpoints(trained / "checkpoints") as checkpoints:
        *_, newest = checkpoints.steps()
    steps = trained / "checkpoints"
    ids = [task.id for task in usfm.load(steps / str(newest)).tasks]
    assert ids == [task.id for task in usfm.load(str(steps)).tasks]


@pytest.mark.parametrize("place", ["checkpoints/7", "checkpoints/x", "gone"])
def test_what_is_no_checkpoint_is_refused(trained, place):
    told = "has no step 7; kept are" if place.endswith("7") else "is no run: give a workdir"
    for use in (usfm.load, usfm.Model):
        with pytest.raises(UserError, match=told):
            use(trained / place)


def test_mistakes_are_told_in_a_line(trained, loaded, tmp_path):
    with pytest.raises(UserError, match=r"no field 'predict\.flp'; did you mean 'predict\.flip'"):
        usfm.load(trained, {"predict.flp": True})
    image = np.zeros((20, 30), np.uint8)
    for ask in (loaded.predict, loaded.features):
        with pytest.raises(UserError, match="no task 'lung_3cls'; did you mean 'lung_2cls'"):
            ask(image, "lung_3cls")
    with pytest.raises(UserError, match=r"the image is float32 \[20, 30\]: give uint8"):
        loaded.predict(image.astype(np.float32), "lung_2cls")
    with pytest.raises(UserError, match=r"there is no file .*gone\.png"):
        loaded.predict(tmp_path / "gone.png", "lung_2cls")
    Image.fromarray(image).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:40])
    with pytest.raises(UserError, match=r"cut\.png is not an image"):
        loaded.predict(tmp_path / "cut.png", "lung_2cls")
