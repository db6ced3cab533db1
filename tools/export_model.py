"""Exports the model of a run as StableHLO programs, for places without usfm.

python tools/export_model.py WORKDIR OUT

WORKDIR may also be one of a run's checkpoints/STEP. OUT then holds model.json, params.npz and a
program for each type of task, which usfm/exported.py runs with JAX and NumPy alone, on a CPU, an
NVIDIA GPU or a TPU and for any number of images at once (docs/predict.md).
"""

import argparse
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
os.environ["JAX_PLATFORMS"] = "cpu"  # nothing is run here

from absl import logging

from usfm import config as usfm_config
from usfm.errors import UserError
from usfm.evaluation.export import export_model
from usfm.restored import find_run, one_device_mesh, restore


def main(argv: list[str] | None = None) -> None:
    """Reads the arguments and writes OUT."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", help="of the run")
    parser.add_argument("out", type=pathlib.Path, help="the folder to write")
    arguments = parser.parse_args(argv)
    logging.set_verbosity(logging.WARNING)  # orbax tells each of its moves
    try:
        workdir, step = find_run(arguments.workdir)
        config = usfm_config.of_run(workdir, {})
        restored = restore(config, workdir, mesh=one_device_mesh(), step=step)
        shape = (config.data.image_size, config.data.image_size, config.data.channels)
        export_model(restored.model, restored.params, shape, arguments.out)
    except UserError as error:
        sys.exit(f"export_model: {error}")
    print(f"{len(restored.model.tasks)} tasks: {arguments.out}")


if __name__ == "__main__":
    main()
