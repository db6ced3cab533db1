"""The FM_UIA challenge's entry point: class Model with predict(data_root, output_dir, batch_size).

python model.py DATA_ROOT OUTPUT_DIR

The run's workdir is the folder `run` beside this file, or what USFM_RUN names.
"""

import os
import pathlib
import sys

import usfm
from usfm.errors import UserError

RUN = os.environ.get("USFM_RUN", pathlib.Path(__file__).parent / "run")


class Model(usfm.Model):
    """usfm.Model of the run that the image holds."""

    def __init__(self):
        super().__init__(RUN)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: model.py DATA_ROOT OUTPUT_DIR")
    try:
        Model().predict(sys.argv[1], sys.argv[2])
    except UserError as error:
        sys.exit(f"usfm: {error}")
