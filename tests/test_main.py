import pathlib
import resource
import subprocess
import sys

import pytest

import usfm

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = "--config=configs/fm_uia.py:debug"


def run(*arguments: str | pathlib.Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "usfm.main", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def only_line(result: subprocess.CompletedProcess) -> str:
    """The one line on stderr of a command that was refused."""
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("usfm: ")
    return line.removeprefix("usfm: ")


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_version_is_printed_at_once():
    before = cpu_seconds()
    assert run("--version").stdout == f"usfm {usfm.__version__}\n"
    assert cpu_seconds() - before < 2


def test_help_names_our_flags_and_all_modes_at_once():
    before = cpu_seconds()
    text = run("--help").stdout
    assert cpu_seconds() - before < 2
    for flag in ("--config", "--workdir", "--mode", "--[no]version"):
        assert f"  {flag}:" in text
    for mode in ("train", "evaluate", "predict", "features", "study", "advise", "compare"):
        assert f"--mode={mode} " in text


def test_reading_the_command_line_does_not_wait_for_jax():
    # Data workers import usfm.main again, too.
    script = "import sys, usfm.main; print('jax' in sys.modules)"
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).stdout == b"False\n"


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("--config.tain.steps=3", "there is no --config.tain.steps; did you mean 'train.steps'"),
        ("--config.train.step=3", "there is no --config.train.step; did you mean 'train.steps'"),
        ("--config.steps=3", "there is no --config.steps; did you mean 'train.steps'?"),
        ("--config.train.steps=abc", "--config.train.steps=abc: give a whole number, such as "),
        ("--config.train.slots=1.5", "--config.train.slots=1.5: give a whole number, such as "),
        ("--config.data.fraction=x", "--config.data.fraction=x: give a number, such as 1.0"),
        (
            "--config.evaluate.before_training=perhaps",
            "--config.evaluate.before_training=perhaps: give true or false, such as False",
        ),
        (
            "--config.mesh=3",
            "--config.mesh is a group of fields: mesh.data, mesh.expert, mesh.fsdp",
        ),
        (
            "--config.data.groups.iugc=ob",
            "--config.data.groups.iugc is given as a whole: --config.data.groups=\"{'iugc': ...}\"",
        ),
        (
            "--mode=trian",
            "--mode=trian: value should be one of "
            "<train|evaluate|predict|features|study|advise|compare>",
        ),
        ("--wrkdir=3", "Unknown command line flag 'wrkdir'. Did you mean: workdir ?"),
    ],
)
def test_a_wrong_flag_is_answered_by_the_right_one(argument, told, tmp_path):
    assert only_line(run(CONFIG, f"--workdir={tmp_path}", argument)).startswith(told)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([CONFIG], "--workdir=DIR is missing; see --help"),
        ([CONFIG, "--workdir=gs://a/b"], "gs://a/b is not a folder of a file system, which a work"),
        (["--workdir=runs/x"], "--config=configs/NAME.py is missing; see --help"),
        (
            ["--workdir=runs/x", "--mode=compare", "--compare=runs/a"],
            "--mode=compare and --compare=RUN_A,RUN_B (two or more) go together",
        ),
        (
            [CONFIG, "--workdir=runs/x", "--compare=runs/a,runs/b"],
            "--mode=compare and --compare=RUN_A,RUN_B (two or more) go together",
        ),
        (
            ["--config=configs/fmuia.py"],
            "there is no config file 'configs/fmuia.py'; did you mean 'configs/fm_uia.py'",
        ),
        (
            ["--config", "configs/fmuia.py:debug"],
            "there is no config file 'configs/fmuia.py'; did you mean 'configs/fm_uia.py'",
        ),
        (
            ["--config.train.steps=3", CONFIG],
            "--config.train.steps=3 comes before --config=FILE; give it after that",
        ),
        (
            ["--config=configs/fm_uia.py:debgu"],
            "configs/fm_uia.py:debgu is not known; give :debug or nothing",
        ),
    ],
)
def test_a_missing_or_unknown_config_or_workdir_is_one_line(arguments, told):
    assert only_line(run(*arguments)).startswith(told)


def test_a_bug_in_a_config_file_keeps_its_traceback(tmp_path):
    config = tmp_path / "mine.py"
    config.write_text("def get_config():\n    return int('three')\n")
    errors = run(f"--config={config}", f"--workdir={tmp_path}").stderr
    assert f'File "{config}", line 2, in get_config' in errors
    assert "ValueError: invalid literal for int()" in errors


def test_a_config_file_that_misspells_a_field_is_refused(tmp_path):
    config = tmp_path / "mine.py"
    config.write_text(
        "from usfm import config\n\n\ndef get_config():\n"
        "    mine = config.base()\n    mine.train.stpes = 3\n    return mine\n"
    )
    result = run(f"--config={config}", f"--workdir={tmp_path}")
    assert result.returncode == 1
    assert f'File "{config}", line 6, in get_config' in result.stderr
    assert 'Did you mean "steps" instead of "stpes"?' in result.stderr


def test_faults_of_the_data_are_told_without_a_traceback(tmp_path):
    result = run(CONFIG, f"--workdir={tmp_path / 'w'}", f"--config.data.root={tmp_path / 'no'}")
    assert result.returncode == 1
    assert result.stderr.startswith(f"usfm: 1 fault in {tmp_path / 'no'}\n")
    assert "Traceback" not in result.stderr


def test_evaluating_a_workdir_without_a_run_says_so(tmp_path):
    told = only_line(run(CONFIG, f"--workdir={tmp_path}", "--mode=evaluate"))
    assert told == f"{tmp_path} holds no run (no config.json): train first, or correct it"
