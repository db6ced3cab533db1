"""The built-in phantom tasks on two CPU cores, in two minutes: make quickstart.

tools/make_phantoms.py writes their folder first; it is read like any other FM_UIA folder.
"""

from ml_collections import ConfigDict

from usfm import config as usfm_config


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; it is small already, so `:debug` changes nothing more."""
    del arg
    config = usfm_config.debug(usfm_config.base())
    config.data.root = "runs/phantoms"
    config.data.cache_dir = "runs/cache"
    # Few steps: they get far with weak augmentation and a high learning rate.
    config.train.steps = 240
    config.optimizer.learning_rate = 2e-3
    config.data.augment = 0.5
    config.evaluate.before_training = True
    return config
