import pathlib
import runpy

import pytest

from usfm import checks
from usfm import config as usfm_config
from usfm.errors import UserError

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))


def make(**fields):
    config = usfm_config.base()
    config.update_from_flattened_dict({"data.root": "folder"} | fields)
    return config


@pytest.mark.parametrize("arg", ["", "debug"])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_valid(path, arg):
    config = runpy.run_path(str(path))["get_config"](arg)
    config.data.root = config.data.root or "folder"
    checks.check(config)
    whole = usfm_config.base()
    if path.stem in ("signs", "study"):
        whole = usfm_config.study(whole)
    fields, known = (usfm_config.flat(usfm_config.to_dict(of)) for of in (config, whole))
    assert fields.keys() == known.keys()


def test_debug_makes_any_config_small():
    config = usfm_config.debug(make(**{"train.steps": 10**6, "model.variant": "vitl16"}))
    assert (config.model.variant, config.model.dtype) == ("tiny", "float32")
    assert config.train.steps * config.train.slots * config.train.examples_per_slot < 20_000
    checks.check(config)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.root", "", r"data\.root is not set: give --config\.data\.root=FM_UIA_FOLDER"),
        ("data.image_size", 100, r"data\.image_size=100 is not a multiple of 16; .*: try 96"),
        ("data.image_size", 0, r"data\.image_size=0 .*: try 16"),
        ("data.channels", 2, r"data\.channels=2 is not one of 1, 3"),
        ("data.on_bad_row", "drop", r"data\.on_bad_row='drop' is not one of error, skip"),
        ("data.workers", -1, r"data\.workers=-1 is outside \[0, inf\]"),
        ("data.fraction", 0.0, r"data\.fraction=0\.0 is outside"),
        ("train.seed", -1, r"train\.seed=-1 is outside"),
        ("data.fraction", 1.5, r"data\.fraction=1\.5 is outside"),
        ("data.fractions", {"FUGC": 0}, r"data\.fractions\.FUGC=0 is outside \(0, 1\]"),
        ("data.temperature", 0.05, r"data\.temperature=0\.05: give 0 .*, or 0\.1 or more"),
        ("data.temperature", -1.0, r"data\.temperature=-1\.0: give 0"),
        ("data.temperature", float("nan"), r"data\.temperature=nan: give 0"),
        ("data.temperature_schedule", "9", r"data\.temperature_schedule: '9' is not STEP=TEMP"),
        ("data.weights", {"FUGC": 0.0}, r"data\.weights\.FUGC=0\.0: give a number above 0"),
        ("data.weights", {"FUGC": float("nan")}, r"data\.weights\.FUGC=nan: give a number"),
        ("data.augment", -0.1, r"data\.augment=-0\.1 is outside \[0, 1\]"),
        ("data.augment_by_type.detection", 2.0, r"by_type\.detection=2\.0 is outside \[0, 1"),
        ("data.augment_by_type", {"detection": 0.5}, r"by_type\.classification is missing: change"),
        ("model.decoder_width", {"detection": 8}, r"decoder_width\.classification is missing"),
        ("multitask.options.cagrad.c", 1.5, r"options\.cagrad\.c=1\.5 is outside \[0, 0\.99"),
        ("multitask.options.dwa.window", 0, r"options\.dwa\.window=0 is outside"),
        ("multitask.options.aligned_mtl.scale", "max", r"scale='max' is not one of min, median"),
        ("watch.profile", "13:10", r"watch\.profile='13:10': give FIRST:END, such as 10:13"),
        ("watch.profile", "ten", r"watch\.profile='ten': give FIRST:END"),
        ("watch.on_hang", "kill", r"watch\.on_hang='kill' is not one of tell, exit"),
        ("watch.hang_seconds", -1.0, r"watch\.hang_seconds=-1\.0 is outside"),
        ("model.variant", "vitx", r"model\.variant='vitx' is not one of .*vits16"),
        ("model.dtype", "float16", r"model\.dtype='float16' is not one of float32, bfloat16"),
        ("model.remat", "some", r"model\.remat='some' is not one of none, dots, full"),
        ("model.drop_path", 1.0, r"model\.drop_path=1\.0 is outside"),
        ("model.rope_rescale", 0.5, r"model\.rope_rescale=0\.5 is outside"),
        ("model.lora.rank", -1, r"model\.lora\.rank=-1 is outside"),
        ("model.moe.experts", -1, r"model\.moe\.experts=-1 is outside"),
        (
            "model.moe.layers",
            (11, 12),
            r"model\.moe\.layers=\(11, 12\): give rising numbers from 0 to 11",
        ),
        ("model.moe.layers", (2, 1), r"model\.moe\.layers=\(2, 1\): give rising numbers"),
        ("model.decoder_width.detection", 100, r"decoder_width\.detection=100: .* multiple of 64"),
        ("model.decoder_width.detection", 0, r"decoder_width\.detection=0: give up to 64"),
        ("train.class_balance", 1.0, r"train\.class_balance=1\.0 is outside"),
        ("train.steps", 0, r"train\.steps=0 is outside \[1, inf\]"),
        ("train.seconds", -5.0, r"train\.seconds=-5\.0 is outside \[0, inf\]"),
        ("train.slots", 0, r"train\.slots=0 is outside"),
        ("train.examples_per_slot", 0, r"train\.examples_per_slot=0 is outside"),
        ("train.on_nonfinite", "ignore", r"train\.on_nonfinite='ignore' is not one of stop, skip"),
        ("train.log_every", 0, r"train\.log_every=0 is outside"),
        ("optimizer.warmup", 2.0, r"optimizer\.warmup=2\.0 is outside \[0, 1\]"),
        ("multitask.method", "summ", r"multitask\.method='summ' is unknown; choose from .*sum"),
        ("multitask.engine", "fast", r"multitask\.engine='fast' is unknown; choose from auto"),
        ("evaluate.part", "train", r"evaluate\.part='train' is not one of val, test, all"),
        ("evaluate.batch_size", 0, r"evaluate\.batch_size=0 is outside"),
        ("checkpoint.every_steps", 0, r"checkpoint\.every_steps=0 is outside"),
        ("checkpoint.keep", 0, r"checkpoint\.keep=0 is outside"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_field(field, value, message):
    with pytest.raises(UserError, match=message) as caught:
        checks.check(make(**{field: value}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("top_k", 3, r"model\.moe\.top_k=3 must be between 0 \(dense\) and model\.moe\.experts=2"),
        ("capacity", 0.0, r"model\.moe\.capacity=0\.0 must be above 0"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(field, value, message):
    with pytest.raises(UserError, match=message):
        checks.check(make(**{"model.moe.experts": 2, f"model.moe.{field}": value}))


def test_an_engine_that_cannot_serve_the_method_is_refused():
    with pytest.raises(UserError, match=r"multitask\.engine='plain' cannot serve"):
        checks.check(make(**{"multitask.engine": "plain", "multitask.method": "pcgrad"}))


def test_what_is_written_is_read(tmp_path):
    config = make(**{"data.group_patterns": (r"(\d+)_",), "train.seed": 3})
    config.data.groups = {"a_task": "breast"}
    usfm_config.write(config, tmp_path / "config.json")
    read = usfm_config.read(tmp_path / "config.json")
    usfm_config.write(read, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (tmp_path / "config.json").read_text()
    assert usfm_config.flat(usfm_config.to_dict(read)) == usfm_config.flat(
        usfm_config.to_dict(config)
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.json", "config.json"]
    usfm_config.check_resumable(config, tmp_path)


def test_going_on_with_another_config_is_refused_with_every_difference(tmp_path):
    usfm_config.check_resumable(make(), tmp_path)  # nothing was begun
    usfm_config.write(make(), tmp_path / "config.json")
    changed = {
        "train.steps": 5,
        "optimizer.learning_rate": 1.0,
        "tasks": "group:breast",
        "data.splits_file": "splits.csv",
        "data.fraction": 0.5,
        "data.temperature": 2.0,
    }
    with pytest.raises(UserError) as caught:
        usfm_config.check_resumable(make(**changed), tmp_path)
    first, *lines = str(caught.value).splitlines()
    assert first.startswith(f"{tmp_path} was begun with another config;")
    assert lines == [
        "  data.fraction: 1.0 before, 0.5 now",
        "  data.splits_file: '' before, 'splits.csv' now",
        "  data.temperature: 0.0 before, 2.0 now",
        "  optimizer.learning_rate: 0.0003 before, 1.0 now",
        "  tasks: 'all' before, 'group:breast' now",
        "  train.steps: 20000 before, 5 now",
    ]


def test_what_does_not_change_the_result_may_change(tmp_path):
    usfm_config.write(make(), tmp_path / "config.json")
    changed = {
        "data.root": "moved",
        "data.cache_dir": "elsewhere",
        "data.workers": 7,
        "train.log_every": 1,
        "train.on_nonfinite": "skip_task",
        "evaluate.part": "all",
        "mesh.fsdp": 2,
        "checkpoint.every_steps": 3,
    }
    usfm_config.check_resumable(make(**changed), tmp_path)


def test_a_run_by_seconds_goes_on_with_the_steps_they_came_to(tmp_path):
    begun = make(**{"train.seconds": 60.0})
    fixed = begun.copy_and_resolve_references()
    fixed.train.steps = 123
    usfm_config.write(fixed, tmp_path / "config.json")
    usfm_config.check_resumable(begun, tmp_path)
    begun.train.seconds = 90.0
    with pytest.raises(UserError, match=r"train\.seconds: 60\.0 before, 90\.0 now"):
        usfm_config.check_resumable(begun, tmp_path)


def test_a_workdir_knows_its_config_but_for_what_is_changed_now(tmp_path):
    usfm_config.write(make(**{"train.seed": 3}), tmp_path / "config.json")
    config = usfm_config.of_run(tmp_path, {"evaluate.part": "all", "data.root": "other"})
    assert (config.train.seed, config.evaluate.part, config.data.root) == (3, "all", "other")
    with pytest.raises(UserError, match="holds no run"):
        usfm_config.of_run(tmp_path / "nowhere", {})
