"""usfm: trains, scores and applies one model on many ultrasound tasks.

  python -m usfm.main --config=configs/NAME.py --workdir=DIR [--mode=MODE] [--config.FIELD=VALUE]

--mode=train     trains, going on from the newest checkpoint of the workdir, then evaluates
--mode=evaluate  scores the newest checkpoint: evaluation.json, evaluation_rows.csv, report.html
--mode=predict   answers every row of data.root, with or without labels: predictions/
--mode=features  writes what the encoder says of every image of data.root: features/
--mode=study     trains what configs/study.py compares: gains.csv, study.html
--mode=advise    says which tasks to train together, from a run with multitask.record=True
--mode=compare   puts the runs of --compare=RUN_A,RUN_B side by side, without a config: compare.html

Where several processes make up the run, each is started by this command: docs/scale.md.
SIGTERM saves a checkpoint and ends with exit code 75: the same command goes on from there.
python tools/print_config.py configs/NAME.py prints every field that --config.FIELD can set.
"""

# Everything heavy is imported inside `main`: data workers import this file again, and --help and
# --version must not wait for JAX.

import os
import sys
import traceback

from absl import flags, logging
from ml_collections import config_flags

import usfm
from usfm import command
from usfm.errors import UserError

# A study starts its own processes.
ALONE = ("features", "study", "advise", "compare")
MODES = ("train", "evaluate", "predict", "features", "study", "advise", "compare")

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment, such as configs/fm_uia.py or configs/fm_uia.py:debug; any "
    "field of it is set as --config.a.b=value.",
)  # fmt: skip
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run keeps all that it writes.")
_MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Of a run of several processes: HOST:PORT where process 0 listens. Not "
    "needed on TPU pods, Slurm and under Open MPI, where the processes find each other.",
)  # fmt: skip
_PROCESSES = flags.DEFINE_integer("processes", None, "How many there are; 1 = this one alone.")
_PROCESS = flags.DEFINE_integer("process", None, "The number of this one, from 0.")
_COMPARE = flags.DEFINE_list(
    "compare", [], "Workdirs that --mode=compare puts side by side, the first as what the others "
    "are compared with: RUN_A,RUN_B."
)  # fmt: skip
_VERSION = flags.DEFINE_bool("version", False, "Print the version and stop.")


def main() -> None:
    """Reads the flags, then makes one call."""
    if _VERSION.value:
        print(f"usfm {usfm.__version__}")
        return
    begins = _MODE.value in ("train", "study")
    config = command.given(_CONFIG) if begins else _CONFIG.value
    workdir = command.folder(command.given(_WORKDIR))
    compares = _MODE.value == "compare"
    if compares != bool(_COMPARE.value) or len(_COMPARE.value) == 1:
        raise UserError("--mode=compare and --compare=RUN_A,RUN_B (two or more) go together")

    logging.set_verbosity(logging.FATAL)  # orbax tells each of its moves, and what we explain
    from usfm import config as usfm_config
    from usfm import modes, processes
    from usfm.training.checkpoint import write_failed

    cluster = (_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    if _MODE.value not in ALONE:
        processes.start(*cluster)
    elif cluster != (None, None, None):
        raise UserError(
            f"--mode={_MODE.value} is of one process: leave out --coordinator, --processes and "
            "--process"
        )
    if compares:
        modes.run_compare([command.folder(run) for run in _COMPARE.value], workdir)
        return
    with processes.only_first_speaks():
        if not begins:
            # A workdir knows how it was trained; only the command line changes that.
            changed = config_flags.get_override_values(flags.FLAGS["config"]) if config else {}
            config = usfm_config.of_run(workdir, changed)
        try:
            modes.MODES[_MODE.value](config, workdir)
            processes.wait()
        finally:
            if write_failed():
                _exit_at_once(sys.exception())


def _exit_at_once(error: BaseException | None) -> None:
    """Ends the process as the error would, without waiting for threads that cannot write."""
    code: str | int | None = getattr(error, "code", 1) if error else 0
    if isinstance(error, UserError):
        print(f"usfm: {error}", file=sys.stderr)
    elif error is not None and not isinstance(error, SystemExit):
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def run() -> None:
    """The entry point of `usfm` as a command."""
    command.run(main)


if __name__ == "__main__":
    run()
