"""Writes the weights of an encoder as Hugging Face's transformers reads them.

python tools/convert_weights.py IN OUT

IN is a weight file (.safetensors, the index of a sharded one, a directory that holds either, or a
.pth; with the names of Hugging Face, Meta or timm), or the workdir of a run, whose newest
checkpoint is taken: its averaged weights where the run keeps them, with LoRA merged. OUT is a
directory, which will hold model.safetensors, or a .safetensors path; config.json is written
beside. Nothing that exists is overwritten.
"""

import argparse
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
os.environ["JAX_PLATFORMS"] = "cpu"  # the accelerator may be training this very run

from absl import logging
from flax import traverse_util

from usfm import config as usfm_config
from usfm.errors import UserError
from usfm.models import weights
from usfm.models.dinov3 import VARIANTS, Variant
from usfm.models.functional import Params
from usfm.training.checkpoint import Checkpoints, directory_of


def read_run(workdir: pathlib.Path) -> tuple[Variant, Params, float | None]:
    """The encoder of a run's newest checkpoint: its sizes, parameters, and LoRA's alpha.

    Raises:
        UserError: the workdir holds no run, or no checkpoint yet.
    """
    config = usfm_config.of_run(workdir, {})
    with Checkpoints(directory_of(config, workdir)) as checkpoints:
        step = checkpoints.latest()
        if step is None:
            raise UserError(f"{workdir} holds no checkpoint yet: train for longer")
        arrays = checkpoints.arrays(step, "params", "ema")
    # Averages are of what is trained: whatever is frozen is among the parameters alone.
    encoder = {
        name.removeprefix(root): array
        for root in ("params/encoder/", "ema/encoder/")
        for name, array in arrays.items()
        if name.startswith(root)
    }
    params = traverse_util.unflatten_dict(encoder, sep="/")
    return VARIANTS[config.model.variant], params, config.model.lora.alpha


def convert(source: pathlib.Path, target: pathlib.Path) -> str:
    """Converts, and says what was written.

    Raises:
        UserError: the source cannot be read or written so, or the target exists.
    """
    file = weights.file_of(target)
    for path in (file, file.with_name("config.json")):
        if path.exists():
            raise UserError(f"{path} exists: name another OUT, or remove it")
    alpha = None
    if usfm_config.holds_run(source):
        variant, params, alpha = read_run(source)
    else:
        variant, params = weights.read(source)
    weights.export(params, variant, target, lora_alpha=alpha)
    return (
        f"{file}: {file.stat().st_size:,} bytes, {variant.layers} layers of width {variant.width} "
        f"and {variant.heads} heads"
    )


def main(argv: list[str] | None = None) -> None:
    """Reads the arguments and converts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="IN", type=pathlib.Path, help="weights, or a workdir")
    parser.add_argument("target", metavar="OUT", type=pathlib.Path, help="what to write")
    arguments = parser.parse_args(argv)
    logging.set_verbosity(logging.WARNING)  # orbax tells each of its moves
    try:
        print(convert(arguments.source.expanduser(), arguments.target.expanduser()))
    except UserError as error:
        sys.exit(f"convert_weights: {error}")


if __name__ == "__main__":
    main()
