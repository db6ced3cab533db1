"""The files around the program: what is locked, and that every experiment can be read."""

import importlib.util
import pathlib
import re
import tomllib

import pytest

from usfm import config as usfm_config

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
LOCK = (ROOT / "requirements.lock").read_text()


def name_of(requirement: str) -> str:
    return re.split(r"[\[<>=! ]", requirement)[0].lower().replace("_", "-")


def test_every_locked_package_has_a_hash_and_no_address():
    assert "://" not in LOCK
    entries = re.split(r"\n(?=\S)", LOCK.strip())
    assert all(" --hash=sha256:" in entry for entry in entries)
    assert all("==" in entry.splitlines()[0] for entry in entries)


def test_everything_the_project_asks_for_is_locked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + project["optional-dependencies"]["dev"]
    locked = {name_of(line) for line in LOCK.splitlines() if line[:1].strip()}
    assert {name_of(requirement) for requirement in asked} <= locked


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
@pytest.mark.parametrize("argument", ["", "debug"])
def test_every_experiment_sets_fields_that_exist(path, argument):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fields = usfm_config.flat(usfm_config.to_dict(module.get_config(argument)))
    whole = usfm_config.base()
    if "study.plans" in fields:
        whole = usfm_config.study(whole)
    assert fields.keys() == usfm_config.flat(usfm_config.to_dict(whole)).keys()
