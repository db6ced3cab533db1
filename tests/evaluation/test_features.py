import csv
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore

from usfm.errors import UserError
from usfm.evaluation.feature_files import WRITERS, one_row_an_image, write_index
from usfm.evaluation.features import NAMES, Features
from usfm.models.m2dino import M2DINO
from usfm.models.moe import Mixture
from usfm.tasks import TYPES, Task


def test_features_are_those_that_heads_read_of_one_task_or_of_all():
    tasks = tuple(Task(name, "classification", num_classes=2) for name in "abc")
    mixture = Mixture(2, layers=(2, 3))
    model = M2DINO(tasks, "tiny", decoder_width=dict.fromkeys(TYPES, 8), mixture=mixture)
    params = jax.jit(model.init)(jax.random.key(0))
    # Experts start equal, and then no router makes a difference.
    experts = params["encoder"]["moe_blocks"]["mlp"]["down"]["kernel"]
    params["encoder"]["moe_blocks"]["mlp"]["down"]["kernel"] = experts.at[:, 1].multiply(-3.0)
    params["task_embedding"] = 9 * params["task_embedding"]
    image = jax.random.normal(jax.random.key(1), (2, 32, 48, 3))
    features = jax.jit(model.features)
    of_b = features(params, image, jnp.int32(1))
    assert {name: v.shape for name, v in of_b.items()} == {
        "dense": (2, 2, 3, 192),
        "cls": (2, 192),
        "mean": (2, 192),
    }
    encode = jax.jit(lambda *a: model.encode(*a, train=False, key=jax.random.key(0))[0])
    maps = encode(params, image, jnp.int32(1))
    np.testing.assert_allclose(of_b["dense"], maps[-1], atol=1e-5)
    np.testing.assert_allclose(of_b["mean"], of_b["dense"].mean((1, 2)), atol=1e-5)

    of_all = features(params, image, None)
    assert np.abs(of_all["cls"] - of_b["cls"]).max() > 1e-3
    mean = params["task_embedding"].mean(0)
    params["task_embedding"] = params["task_embedding"].at[1].set(mean)
    np.testing.assert_allclose(
        features(params, image, jnp.int32(1))["cls"], of_all["cls"], atol=1e-5
    )


@pytest.fixture
def made(small_folder):
    """Features of some images, each full of its own number."""
    rows = small_folder.rows["det"]
    shapes = {"dense": (2, 3, 5), "cls": (5,), "mean": (5,)}
    return [
        (row, Features(**{n: np.full(s, row.index, np.float32) for n, s in shapes.items()}))
        for row in rows
    ]


def test_an_image_is_a_file_of_its_arrays(made, tmp_path):
    rows = list(WRITERS["npz"](made, len(made), tmp_path))
    write_index(rows, tmp_path)
    for row, features in made:
        with np.load(tmp_path / f"det/{row.index}.png.npz") as file:
            for name in NAMES:
                np.testing.assert_array_equal(file[name], getattr(features, name))
    with (tmp_path / "index.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["image_path"] for line in lines] == [row.image_path for row, _ in made]
    assert lines[2] == {
        "index": "2",
        "image_path": "../det/2.png",
        "height": str(made[2][0].height),
        "width": str(made[2][0].width),
    }


def test_all_images_are_one_array_that_ends_with_those_that_came(made, tmp_path, monkeypatch):
    monkeypatch.setattr("usfm.evaluation.feature_files.BLOCK", 3)  # of which 7 are three blocks
    list(WRITERS["zarr"](made, 10, tmp_path))
    rows = list(WRITERS["zarr"](made[:7], 10, tmp_path))  # over what lies there
    assert rows == [row for row, _ in made]
    for name in NAMES:
        store = {"driver": "zarr", "kvstore": f"file://{tmp_path}/features.zarr/{name}/"}
        array = tensorstore.open(store, open=True).result().read().result()
        np.testing.assert_array_equal(array, [getattr(each, name) for _, each in made])


def test_an_image_of_several_tasks_is_one_image(small_folder):
    det, seg = small_folder.rows["det"], small_folder.rows["seg"]
    shared = dataclasses.replace(seg[0], image_path=".././det/3.png")
    folder = dataclasses.replace(small_folder, rows={"det": det, "seg": (shared, seg[1])})
    assert one_row_an_image(folder) == [*det, seg[1]]
    elsewhere = dataclasses.replace(shared, root=1)
    folder = dataclasses.replace(folder, rows={"det": det, "seg": (elsewhere,)})
    with pytest.raises(UserError, match=r"det/3\.png is in two of"):
        one_row_an_image(folder)
