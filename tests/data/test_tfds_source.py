import io
import json
import pathlib
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import flags
from ml_collections import ConfigDict, config_flags
from PIL import Image

from usfm import config as usfm_config
from usfm.data import tfds_source
from usfm.data.folder import Folder
from usfm.data.image import read_image, read_mask
from usfm.data.source import open_folder, open_splits, open_store
from usfm.data.tfds_source import export, is_prepared
from usfm.errors import UserError

TASKS = {
    "side": {"type": "classification", "feature": "side"},
    "lesion": {"type": "segmentation", "feature": "mask", "num_classes": 3},
    "raw_lesion": {"type": "segmentation", "feature": "raw_mask", "num_classes": 3},
    "found": {"type": "detection", "feature": "objects/bbox"},
    "boxed": {"type": "detection", "feature": "pixel_box"},
    "ends": {"type": "regression", "feature": "ends"},
}
HEIGHT, WIDTH = 20, 32


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def mask(number: int) -> np.ndarray:
    return np.random.default_rng(100 + number).integers(0, 3, (HEIGHT, WIDTH), np.uint8)


def png(array: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(array).save(data, "PNG")
    return data.getvalue()


class Scans(tfds.core.GeneratorBasedBuilder):
    """Seven examples with a feature of each kind; the patient has two or three."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        f = tfds.features
        features = f.FeaturesDict(
            {
                "image": f.Image(),
                "raw": f.Tensor(shape=(HEIGHT, WIDTH), dtype=np.uint8),
                "depth": f.Tensor(shape=(HEIGHT, WIDTH), dtype=np.float32),
                "mask": f.Image(shape=(None, None, 1)),
                "raw_mask": f.Tensor(shape=(HEIGHT, WIDTH, 1), dtype=np.int32),
                "side": f.ClassLabel(names=["left", "right"]),
                "grade": f.Scalar(np.int64),
                "objects": f.Sequence({"bbox": f.BBoxFeature()}),
                "pixel_box": f.Tensor(shape=(4,), dtype=np.float32),
                "ends": f.Tensor(shape=(2, 2), dtype=np.float32),
                "patient": f.Text(),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 5), "test": self._generate_examples(5, 7)}

    def _generate_examples(self, first, last):
        for i in range(first, last):
            yield (
                i,
                {
                    "image": png(pixels(i)),
                    "raw": pixels(i)[..., 0],
                    "depth": np.zeros((HEIGHT, WIDTH), np.float32),
                    "mask": png(mask(i)),
                    "raw_mask": mask(i)[..., None].astype(np.int32),
                    "side": i % 2,
                    "grade": i % 3,
                    "objects": [
                        {"bbox": tfds.features.BBox(0.25, 0.125, 0.5 + 0.05 * k, 1.0)}
                        for k in range(1 + i % 2)
                    ],
                    "pixel_box": np.array([1, 2, 30, 19.5], np.float32),
                    "ends": np.array(
                        [[1.5, i], [np.nan, np.nan] if i == 2 else [3, 4]], np.float32
                    ),
                    "patient": f"p{i // 3}",
                },
            )

    def _log_download_bytes(self):
        pass

    def _log_download_done(self):
        pass


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("tfds")
    Scans(data_dir=path, file_format="array_record").download_and_prepare()
    return path


@pytest.fixture
def fields(data_dir) -> dict:
    fields = {"data_dir": str(data_dir), "split": "all", "image": "image", "group": "patient"}
    return fields | {"tasks": TASKS}


def opened(fields: dict, place: pathlib.Path) -> tuple[ConfigDict, Folder]:
    """The folder of a config that names the data set."""
    config = usfm_config.base()
    config.data.update(root="tfds:scans", cache_dir=str(place / "cache"), image_size=16)
    for name, value in fields.items():
        config.data.tfds[name] = value
    return config, open_folder(config, place)


def test_every_kind_of_feature_becomes_rows(fields, tmp_path):
    _, folder = opened(fields, tmp_path)
    assert [(task.id, task.type, task.size) for task in folder.tasks] == [
        ("boxed", "detection", 1),
        ("ends", "regression", 2),
        ("found", "detection", 1),
        ("lesion", "segmentation", 3),
        ("raw_lesion", "segmentation", 3),
        ("side", "classification", 2),
    ]
    rows = folder.rows
    assert [row.label for row in rows["side"]] == [0, 1, 0, 1, 0, 1, 0]
    assert rows["boxed"][0].box == (1, 2, 30, 19.5)
    assert rows["ends"][1].points == ((1.5, 1), (3, 4))
    assert rows["ends"][2].points == ((1.5, 2), None)
    # Example 1 has two boxes: y 0.25 to 0.5 and to 0.55, x 0.125 to 1, of 20 x 32 pixels.
    assert [row.image_path for row in rows["found"]].count(rows["found"][1].image_path) == 2
    boxes = np.array([row.box for row in rows["found"][1:3]], np.float32)
    np.testing.assert_array_equal(boxes, [(4, 5, 32, 10), (4, 5, 32, 11)])
    for id in ("lesion", "raw_lesion", "side"):
        assert len(rows[id]) == 7
    for k in range(7):
        np.testing.assert_array_equal(read_image(folder.image_file(rows["side"][k])), pixels(k))
        for id in ("lesion", "raw_lesion"):
            np.testing.assert_array_equal(read_mask(folder.mask_file(rows[id][k])), mask(k))


def test_patients_stay_on_one_side(fields, tmp_path):
    config, folder = opened(fields, tmp_path)
    splits = open_splits(config, folder)
    groups = [splits.group(row) for row in folder.rows["side"]]
    assert groups == [f"tfds:scans:p{i // 3}" for i in range(7)]
    _, alone = opened(fields | {"group": ""}, tmp_path)
    assert len({open_splits(config, alone).group(row) for row in alone.rows["side"]}) == 7


def test_everything_after_it_is_as_ever(fields, tmp_path, capfd):
    config, folder = opened(fields, tmp_path)
    store = open_store(config, folder)
    assert store.read("side", range(7))["label"].tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert "tensorflow" not in sys.modules
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err == f"tfds:scans: writing it as a folder, once: {folder.roots[0]}\n"


def test_tensors_of_pixels_and_scalars_are_read_and_a_split_chosen(fields, tmp_path):
    tasks = {"grade": {"type": "classification", "feature": "grade", "num_classes": 3}}
    _, folder = opened(fields | {"image": "raw", "split": "test", "tasks": tasks}, tmp_path)
    rows = folder.rows["grade"]
    assert [row.label for row in rows] == [2, 0]
    np.testing.assert_array_equal(read_image(folder.image_file(rows[1])), pixels(6)[..., 0])


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_it_is_written_once(fields, tmp_path, monkeypatch):
    folder = export("scans", fields, tmp_path)
    monkeypatch.setattr(tfds_source, "_png", None)
    assert export("scans", fields, tmp_path) == folder
    # Another place of the same files is no other data set; other fields are.
    moved = tmp_path / "moved"
    shutil.copytree(fields["data_dir"], moved)
    assert export("scans", fields | {"data_dir": str(moved)}, tmp_path) == folder
    monkeypatch.undo()
    assert export("scans", fields | {"split": "test"}, tmp_path) != folder


def test_a_killed_export_goes_on_to_the_same_folder(fields, tmp_path, monkeypatch):
    whole = contents(export("scans", fields, tmp_path / "whole"))
    encode, written = tfds_source._png, []

    def killed_at_nine(array):
        if len(written) >= 9:
            raise KeyboardInterrupt
        written.append(array)
        return encode(array)

    monkeypatch.setattr(tfds_source, "_png", killed_at_nine)
    with pytest.raises(KeyboardInterrupt):
        export("scans", fields, tmp_path / "again")
    (unfinished,) = (tmp_path / "again").glob("tfds-*")
    assert unfinished.name.endswith(".building")
    monkeypatch.setattr(tfds_source, "_png", lambda array: written.append(array) or encode(array))
    folder = export("scans", fields, tmp_path / "again")
    assert contents(folder) == whole
    assert len(written) == 3 * 7  # image and two masks of each example, none of them twice
    assert not unfinished.exists()


def task(**settings) -> dict:
    return {"tasks": {"t": settings}}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"tasks": {}},
            "data.tfds.tasks is empty: .* there are depth, ends, grade, image, mask, objects/bbox",
        ),
        ({"image": "imag"}, "data.tfds.image: there is no feature 'imag'; did you mean 'image'"),
        ({"image": "depth"}, "data.tfds.image: 'depth' is Tensor.* give a feature of uint8"),
        ({"image": "patient"}, "data.tfds.image: 'patient' is Text"),
        ({"group": "patent"}, "data.tfds.group: there is no feature 'patent'; did you mean 'pati"),
        ({"split": "val"}, r"data.tfds.split='val' of tfds:scans: Unknown split 'val'.*train"),
        (task(type="detection"), "tasks: t: feature is missing"),
        (task(type="detect", feature="mask"), "type 'detect' is not known; did you mean"),
        (task(type="detection", feature="box"), "tasks: t: there is no feature 'box'; "),
        (task(type="detection", feature="mask"), "'mask' is Image.* give a BBoxFeature"),
        (task(type="regression", feature="pixel_box"), r"give a tensor of \[points, 2\]"),
        (task(type="classification", feature="patient"), "is Text.* give a ClassLabel"),
        (task(type="segmentation", feature="image"), "give class ids as whole numbers"),
        (task(type="segmentation", feature="mask"), "num_classes is missing"),
        (task(type="segmentation", feature="mask", classes=2), "no setting 'classes'; did you m"),
    ],
)
def test_fields_that_do_not_fit_are_told(fields, tmp_path, changed, message):
    with pytest.raises(UserError, match=message):
        export("scans", fields | changed, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_data_set_that_was_not_prepared_is_told(fields, tmp_path):
    with pytest.raises(
        UserError, match=r"tfds:scams: no prepared data set .* run 'tfds build --fi"
    ):
        export("scams", fields, tmp_path)
    assert not is_prepared("scams", fields["data_dir"])
    assert is_prepared("scans:1.0.0", fields["data_dir"])


def test_a_format_that_needs_tensorflow_is_told_and_how_to_convert_it(fields, tmp_path):
    shutil.copytree(fields["data_dir"], tmp_path / "other")
    info = tmp_path / "other/scans/1.0.0/dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(
        UserError, match=r"written as tfrecord, .* 'tfds convert_format --dataset_ve"
    ):
        export("scans", fields | {"data_dir": str(tmp_path / "other")}, tmp_path / "cache")


def test_a_damaged_example_is_named(fields, tmp_path, monkeypatch):
    class Damaged(Scans):
        name = "damaged"

        def _generate_examples(self, first, last):
            for i, example in super()._generate_examples(first, last):
                yield i, example | ({"image": png(pixels(i))[:60]} if i == 6 else {})

    Damaged(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    with pytest.raises(
        UserError, match=r"tfds:damaged: example 6 of split 'all' cannot be decoded"
    ):
        export("damaged", fields | {"data_dir": str(tmp_path)}, tmp_path / "cache")
    left = [path.name for path in (tmp_path / "cache").glob("tfds-*")]
    assert [name.endswith(".building") for name in left] == [True]


def test_class_ids_beyond_a_mask_are_told(fields, tmp_path):
    class Many(Scans):
        name = "many"

        def _generate_examples(self, first, last):
            for i, example in super()._generate_examples(first, last):
                yield i, example | {"raw_mask": example["raw_mask"] + 255}

    Many(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    with pytest.raises(UserError, match="raw_mask holds class ids from 255 to 257"):
        export("many", fields | {"data_dir": str(tmp_path)}, tmp_path / "cache")


def test_a_field_map_is_given_on_the_command_line(monkeypatch):
    arguments = [f"--config.data.tfds.tasks={TASKS}", "--config.data.tfds.split=train"]
    monkeypatch.setattr(sys, "argv", ["program", *arguments])  # which config_flags looks at
    values = flags.FlagValues()
    held = config_flags.DEFINE_config_dict("config", usfm_config.base(), flag_values=values)
    values(sys.argv)
    assert held.value.data.tfds.tasks.to_dict() == TASKS
    assert held.value.data.tfds.split == "train"
