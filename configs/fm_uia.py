"""M2DINO on all tasks of an FM_UIA folder.

python -m usfm.main --config=configs/fm_uia.py --workdir=runs/a --config.data.root=FM_UIA_FOLDER
python -m usfm.main --config=configs/fm_uia.py:debug --workdir=runs/b --config.data.root=...
"""

from ml_collections import ConfigDict

from usfm import config as usfm_config
from usfm.errors import UserError


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `:debug` shrinks it to a three-minute CPU run."""
    if arg not in ("", "debug"):
        raise UserError(f"configs/fm_uia.py:{arg} is not known; give :debug or nothing")
    config = usfm_config.base()
    if not arg:
        return config
    config = usfm_config.debug(config)
    # For minutes on two cores (docs/benchmarks.md): many small steps that go far, and images that
    # move much for classes and boxes, less for masks and points.
    config.train.update(steps=400, examples_per_slot=2)
    config.optimizer.update(name="muon", learning_rate=2e-3)
    config.data.augment = 0.6
    config.data.augment_by_type.update(segmentation=0.5, regression=0.5)
    return config
