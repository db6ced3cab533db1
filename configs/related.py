"""Multi-task methods on four phantom tasks of known relatedness, a minute or two on two CPU cores.

python tools/make_phantoms.py runs/related-phantoms --kind=related --rows=240
python -m usfm.main --config=configs/related.py --workdir=runs/sum --config.multitask.method=sum
"""

from ml_collections import ConfigDict

from usfm import config as usfm_config


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; it is small already, so `:debug` changes nothing more."""
    del arg
    config = usfm_config.debug(usfm_config.base())
    config.data.root = "runs/related-phantoms"
    config.data.cache_dir = "runs/cache"
    config.data.image_size = 64
    # Few rows to learn from: where tasks can help or hurt each other.
    config.data.val_fraction = 0.75
    config.data.augment = 0.5
    config.model.decoder_width.update(classification=16, regression=16)
    config.train.update(steps=300, slots=4, examples_per_slot=4, log_every=50)
    config.checkpoint.every_steps = 1000
    return config
