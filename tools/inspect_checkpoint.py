"""Says what the checkpoints of a run hold, as one JSON object; changes nothing.

python tools/inspect_checkpoint.py WORKDIR [--step=N]

steps lists the kept steps and best the one that scored best by checkpoint.best_metric (null where
none was scored). checkpoints
has by step `digest`, the sha256 of the whole train state (the sorted names, shapes, dtypes and
bytes of its arrays, moving averages too), and `params_digest`, that of the parameters alone.
"""

import argparse
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
os.environ["JAX_PLATFORMS"] = "cpu"  # the accelerator may be training this very run

import numpy as np
from absl import logging
from etils import epath

from usfm import config as usfm_config
from usfm.errors import UserError
from usfm.training.checkpoint import Checkpoints, directory_of


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 over the sorted names, shapes, dtypes and bytes of arrays."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.shape} {array.dtype.name}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def inspect(workdir: pathlib.Path, step: int | None = None) -> dict[str, Any]:
    """What main prints, of all kept steps or of one.

    Raises:
        UserError: there is no checkpoint, or not of that step.
    """
    directory = epath.Path(workdir / "checkpoints")
    if usfm_config.holds_run(workdir):
        directory = directory_of(usfm_config.of_run(workdir, {}), workdir)
    if not directory.is_dir():
        raise UserError(f"{workdir} holds no checkpoints/: give the --workdir of a run")
    with Checkpoints(directory) as checkpoints:
        steps = checkpoints.steps()
        if step is not None and step not in steps:
            kept = ", ".join(map(str, steps)) or "none"
            raise UserError(f"{directory} has no step {step}; kept are: {kept}")
        found = {}
        for kept in steps if step is None else [step]:
            arrays = checkpoints.arrays(kept)
            params = {name: a for name, a in arrays.items() if name.startswith("params/")}
            found[str(kept)] = {"digest": digest(arrays), "params_digest": digest(params)}
        best = checkpoints.best()
    return {"steps": steps, "best": best, "checkpoints": found}


def main(argv: list[str] | None = None) -> None:
    """Reads the arguments and prints the object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", type=pathlib.Path, help="of the run")
    parser.add_argument("--step", type=int, help="only this one")
    arguments = parser.parse_args(argv)
    logging.set_verbosity(logging.WARNING)  # orbax tells each of its moves
    try:
        found = inspect(arguments.workdir, arguments.step)
    except UserError as error:
        sys.exit(f"inspect_checkpoint: {error}")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
