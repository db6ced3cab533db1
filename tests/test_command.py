import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def run(body: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs a command whose main is `body`."""
    lines = ["from usfm import command", "from usfm.errors import UserError", "def main():", body]
    script = "\n".join([*lines, "command.run(main)"])
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_what_the_user_can_put_right_is_said_without_a_traceback():
    result = run("    raise UserError('data.root is not set')")
    assert result.returncode == 1
    assert result.stderr == "usfm: data.root is not set\n"


def test_a_bug_keeps_its_traceback():
    # ValueError is what UserError is made from, and what JAX raises for wrong shapes.
    result = run("    raise ValueError('shapes differ')")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "ValueError: shapes differ" in result.stderr


def test_arguments_that_are_no_flags_are_refused():
    result = run("    print('ran')", "train")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == "usfm: not understood: train; flags begin with --, see --help\n"


def test_a_command_that_ends_well_ends_with_0():
    result = run("    print('ran')")
    assert (result.returncode, result.stdout) == (0, "ran\n")
