"""What usfm's commands share: flags that say what is wrong with them, and errors in one line."""

import functools
import itertools
import pathlib
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from absl import app, flags

from usfm import config as usfm_config
from usfm.errors import UserError
from usfm.tasks.suggest import suggest

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)")
_CONFIG = re.compile(r"--?config(?:=([^:]*)|$)")
_ILLEGAL = re.compile(r"flag --config\.(?P<name>[^=]+)=(?P<value>.*?): ", re.DOTALL)
_EXAMPLES = {"config": "configs/NAME.py", "workdir": "DIR"}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def run(main: Callable[[], None]) -> None:
    """Parses the flags and runs a command; what the user can put right ends it in one line."""
    app.run(functools.partial(_call, main), flags_parser=parse)


def given(flag: flags.FlagHolder[Any]) -> Any:
    """The value of --config or --workdir, which a command cannot do without."""
    if not flag.value:
        raise UserError(f"--{flag.name}={_EXAMPLES[flag.name]} is missing; see --help")
    return flag.value


def folder(path: str) -> pathlib.Path:
    """The workdir that the command line names.

    Raises:
        UserError: it is an address, which would be taken for a folder of that name.
    """
    if "://" in path:
        raise UserError(
            f"{path} is not a folder of a file system, which a workdir must be; its checkpoints "
            "alone may lie there: --config.checkpoint.directory"
        )
    return pathlib.Path(path).expanduser()


def parse(argv: list[str]) -> list[str]:
    """Parses the command line: as absl does, but for what it says of mistakes."""
    try:
        _check_config(argv)
        return flags.FLAGS(argv)
    except (UserError, flags.Error) as error:
        sys.exit(f"usfm: {_explained(error)}")


def _call(main: Callable[[], None], argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"usfm: not understood: {' '.join(argv[1:])}; flags begin with --, see --help")
    try:
        main()
    except UserError as error:
        sys.exit(f"usfm: {error}")


def _check_config(argv: list[str]) -> None:
    """Finds a config file or field that is not there, of which config_flags would say little."""
    fields = _fields()
    named = False
    for argument, following in itertools.pairwise([*argv[1:], ""]):
        if match := _CONFIG.match(argument):
            named = True
            file = following.partition(":")[0] if match[1] is None else match[1]
            if not pathlib.Path(file).is_file():
                experiments = [str(path) for path in pathlib.Path("configs").glob("*.py")]
                raise UserError(f"there is no config file {file!r}; {suggest(file, experiments)}")
        if match := _OVERRIDE.match(argument):
            if match[1] not in fields:
                raise UserError(_unknown(match[1], fields))
            if not named:
                raise UserError(f"{argument} comes before --config=FILE; give it after that")


def _unknown(name: str, fields: Mapping[str, Any]) -> str:
    room, _, rest = name.rpartition(".")
    if isinstance(fields.get(room), dict):  # a mapping by task id, such as data.groups
        return f"--config.{name} is given as a whole: --config.{room}=\"{{'{rest}': ...}}\""
    inside = [field for field in fields if field.startswith(f"{name}.")]
    if inside:
        return f"--config.{name} is a group of fields: {', '.join(inside)}"
    # A last part alone, such as --config.steps, is enough to be understood.
    ends = [field for field in fields if field.rpartition(".")[2] == name]
    return f"there is no --config.{name}; {suggest(name, ends or fields)}"


def _explained(error: Exception) -> str:
    message = str(error)
    match = _ILLEGAL.match(message)
    if match and (default := _fields().get(match["name"])) is not None:
        kind = _KINDS.get(type(default), f"a {type(default).__name__}")
        return f"--config.{match['name']}={match['value']}: give {kind}, such as {default}"
    # A UserError of a config file arrives wrapped in its traceback, as its bugs do.
    message = message.rpartition("usfm.errors.UserError: ")[2]
    return message.removeprefix("flag ").strip()


def _fields() -> dict[str, Any]:
    """Every field of a config and its default, by dotted name."""
    return usfm_config.flat(usfm_config.to_dict(usfm_config.study(usfm_config.base())))
