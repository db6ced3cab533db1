"""A study of ten small phantom tasks with a planted truth, a quarter of an hour on two CPU cores.

python tools/make_phantoms.py runs/signs --kind=signs --rows=300
python -m usfm.main --config=configs/signs.py --mode=study --workdir=runs/s
"""

from ml_collections import ConfigDict

from configs import study


def get_config(arg: str = "") -> ConfigDict:
    """The study; `:debug` makes fewer and shorter runs."""
    config = study.get_config(arg)
    config.data.root = "runs/signs"
    config.data.cache_dir = "runs/cache"
    config.data.image_size = 48
    # Some thirty rows to learn from: where tasks can help or hurt each other.
    config.data.val_fraction = 0.9
    config.model.variant = "micro"
    # What one decoder can say of a place is little, so tasks that ask otherwise are in the way.
    config.model.decoder_width.regression = 8
    config.train.examples_per_slot = 8
    config.multitask.record_every = 1
    # Drawn without a look at the truth: of each task's partners here some may be related.
    config.study.partitions = (
        "threes: seek_01+seek_02+seek_03 | seek_04+seek_05+seek_06 | seek_07+seek_08+seek_09"
        " | seek_10;"
        " others: seek_01+seek_04+seek_07 | seek_02+seek_05+seek_08"
        " | seek_03+seek_06+seek_09+seek_10;"
        " twos: seek_01+seek_06 | seek_02+seek_07 | seek_03+seek_08 | seek_04+seek_09"
        " | seek_05+seek_10"
    )
    config.study.plans = ("task_specific", "all_task", "threes", "others", "twos", "advised")
    config.study.fractions = (1.0,)
    return config
