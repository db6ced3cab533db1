"""usfm: trains, scores and applies one model on many ultrasound tasks.

  python -m usfm.main --config=configs/NAME.py --workdir=DIR [--mode=MODE] [--config.FIELD=VALUE]

--mode=train     trains, going on from the newest checkpoint of the workdir, then evaluates
--mode=evaluate  scores the newest checkpoint: evaluation.json, evaluation_rows.csv, report.html
--mode=predict   answers every row of data.root, with or without labels: predictions/
--mode=study     trains what configs/study.py compares: gains.csv, study.html
--mode=advise    says which tasks to train together, from a run with multitask.record=True

SIGTERM saves a checkpoint and ends with exit code 75: the same command goes on from there.
python tools/print_config.py configs/NAME.py prints every field that --config.FIELD can set.
"""

# Everything heavy is imported inside `main`: data workers import this file again, and --help and
# --version must not wait for JAX.

import os
import pathlib
import sys

from absl import flags, logging
from ml_collections import config_flags

import usfm
from usfm import command

MODES = ("train", "evaluate", "predict", "study", "advise")

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment, such as configs/fm_uia.py or configs/fm_uia.py:debug; any "
    "field of it is set as --config.a.b=value.",
)  # fmt: skip
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run keeps all that it writes.")
_MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
_VERSION = flags.DEFINE_bool("version", False, "Print the version and stop.")


def main() -> None:
    """Reads the flags, then makes one call."""
    if _VERSION.value:
        print(f"usfm {usfm.__version__}")
        return
    begins = _MODE.value in ("train", "study")
    config = command.given(_CONFIG) if begins else _CONFIG.value
    workdir = pathlib.Path(command.given(_WORKDIR)).expanduser()

    logging.set_verbosity(logging.FATAL)  # orbax tells each of its moves, and what we explain
    from usfm import config as usfm_config
    from usfm import modes
    from usfm.training.checkpoint import UnsavedError, write_failed

    if not begins:
        # A workdir knows how it was trained; only what is said on the command line changes that.
        changed = config_flags.get_override_values(flags.FLAGS["config"]) if config else {}
        config = usfm_config.of_run(workdir, changed)
    code = 0
    try:
        modes.MODES[_MODE.value](config, workdir)
    except UnsavedError as error:
        print(f"usfm: {error}", file=sys.stderr)
        code = 1
    except SystemExit as stopped:
        code = stopped.code
    if write_failed():  # its threads would be waited for
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
    if code:
        sys.exit(code)


def run() -> None:
    """The entry point of `usfm` as a command."""
    command.run(main)


if __name__ == "__main__":
    run()
