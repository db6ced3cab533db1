import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "tools/print_config.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "config", [["configs/fm_uia.py:debug"], ["--config", "configs/fm_uia.py:debug"]]
)
def test_every_field_is_printed_with_what_was_changed(config):
    lines = run(*config, "--config.train.steps=7").stdout.splitlines()
    assert "train.steps = 7" in lines
    assert 'model.variant = "tiny"' in lines
    assert "data.groups = {}" in lines
    assert len(lines) == len({line.partition(" = ")[0] for line in lines}) > 30


def test_a_wrong_field_is_one_line():
    result = run("configs/fm_uia.py", "--config.train.step=7")
    assert result.returncode == 1
    assert result.stderr.startswith("usfm: there is no --config.train.step; did you mean")


def test_without_a_config_it_says_how_it_is_called():
    result = run()
    assert result.returncode == 1
    assert result.stderr == (
        "usfm: give a config file: python tools/print_config.py configs/NAME.py\n"
    )
