"""The command line: python -m usfm.main --config=configs/NAME.py --workdir=DIR [--mode=MODE].

Everything heavy is imported inside `main`: data workers import this file again, and --help and
--version must not wait for JAX.
"""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

import usfm

MODES = ("train", "evaluate", "predict")

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment, such as configs/fm_uia.py or configs/fm_uia.py:debug; any "
    "field is overridden as --config.a.b=value.",
)  # fmt: skip
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run keeps all that it writes.")
_MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
_VERSION = flags.DEFINE_bool("version", False, "Print the version and stop.")


def main(argv: list[str]) -> None:
    """Reads the flags, then makes one call."""
    if len(argv) > 1:
        raise app.UsageError(f"not understood: {' '.join(argv[1:])}; flags begin with --")
    if _VERSION.value:
        print(f"usfm {usfm.__version__}")
        return
    for flag, value in (("config", _CONFIG.value), ("workdir", _WORKDIR.value)):
        if not value:
            raise app.UsageError(f"--{flag} is missing; see --help")

    logging.set_verbosity(logging.WARNING)  # orbax tells each of its moves
    from usfm import config as usfm_config
    from usfm import modes

    workdir = pathlib.Path(_WORKDIR.value).expanduser()
    config = _CONFIG.value
    if _MODE.value != "train":
        # A workdir knows how it was trained; only what is said on the command line changes that.
        changed = config_flags.get_override_values(flags.FLAGS["config"])
        config = usfm_config.of_run(workdir, changed)
    try:
        modes.MODES[_MODE.value](config, workdir)
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        sys.exit(f"usfm: {error}")


def run() -> None:
    """The entry point of `usfm` as a command."""
    app.run(main, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    """Like app's own parser, with one line for a config field that is wrong."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = error.args[0] if error.args else error
        sys.exit(f"usfm: --config: {message}")


if __name__ == "__main__":
    run()
