"""Which tasks of a folder to train together, and at what data scale.

python -m usfm.main --config=configs/study.py --mode=study --workdir=runs/s
    --config.data.root=FM_UIA_FOLDER
"""

from ml_collections import ConfigDict

from usfm import config as usfm_config


def get_config(arg: str = "") -> ConfigDict:
    """The study: small models, many of them; `:debug` makes fewer and shorter ones."""
    config = usfm_config.debug(usfm_config.base())
    # Augmented in full, as the studies of docs/studies were.
    config.data.update(image_size=64, min_examples=8, augment=1.0)
    config.model.decoder_width.update(
        classification=64, detection=32, regression=32, segmentation=32
    )
    config.train.update(steps=300, log_every=100)
    # A recorded step takes several times as long; a hundred of them, of each seed, say enough.
    config.multitask.record_every = 3
    config.checkpoint.update(every_steps=1000, keep=1)
    # All runs are scored on the same rows, the more of them the surer.
    config.data.update(val_fraction=0.4)
    config = usfm_config.study(config)
    if arg == "debug":
        config.train.steps = 20
        config.study.update(fractions=(1.0,), seeds=(0,))
    return config
