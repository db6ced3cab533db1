"""Every field of a run, its default and what it means; configs/ change what an experiment needs."""

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict, config_dict

from usfm.errors import UserError


def base() -> ConfigDict:
    """The defaults of a run: M2DINO at ViT-S on an FM_UIA folder, for an accelerator."""
    config = ConfigDict()
    # Which tasks of the folder: 'all', 'group:breast', 'task:breast_lesion', or a comma list.
    config.tasks = "all"

    config.data = ConfigDict()
    config.data.root = ""  # the FM_UIA folder: csv_files/ beside Segmentation/, ...
    config.data.image_size = 256  # pixels a side; a multiple of 16
    config.data.channels = 3  # or 1: grey, replicated on the device
    config.data.cache_dir = "~/.cache/usfm"  # where stores are built, shared by all runs
    config.data.splits_file = ""  # CSV task_id, image_path, part; "" = splits are made
    config.data.val_fraction = 0.2
    config.data.test_fraction = 0.0
    # Regexes with one group each: what they capture in an image's path (a patient, a video) stays
    # on one side of every split. Empty = FM_UIA's own patterns.
    config.data.group_patterns = ()
    config.data.groups = ConfigDict()  # task id -> clinical group, over the known ones
    config.data.flip_ok = ConfigDict()  # task id -> a mirrored image keeps its label, likewise
    config.data.fraction = 1.0  # share of each task's training rows that is used
    config.data.on_bad_row = "error"  # or 'skip': leave bad rows out, and count them
    # Processes that read batches ahead; 0 = a thread. One thread reads some 6,000 rows/s, and most
    # of that is C: processes pay only where that is not enough.
    config.data.workers = 0
    config.data.augment = 1.0  # strength of the augmentation, 0 to 1

    config.model = ConfigDict()
    config.model.variant = "vits16"
    config.model.decoder_width = 256  # channels of the dense decoders
    config.model.rope_rescale = 2.0  # training-time factor on patch positions; 1 = none
    config.model.dtype = "bfloat16"  # of products; parameters stay float32

    config.train = ConfigDict()
    config.train.steps = 20_000
    config.train.seconds = 0.0  # instead of steps: a timed probe fixes their number
    config.train.slots = 32
    config.train.examples_per_slot = 4
    config.train.seed = 0
    config.train.on_nonfinite = "stop"  # or 'skip_task'
    config.train.log_every = 50  # steps

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup = 0.05  # share of the steps
    config.optimizer.weight_decay = 0.05  # of kernels only
    config.optimizer.clip_norm = 1.0

    config.multitask = ConfigDict()
    config.multitask.method = "sum"  # or mean, pcgrad
    config.multitask.engine = "auto"  # or plain, stack

    config.evaluate = ConfigDict()
    config.evaluate.part = "val"  # or test, all
    config.evaluate.batch_size = 32
    config.evaluate.before_training = False  # score the untrained model too
    config.evaluate.after_training = True

    config.mesh = ConfigDict()  # devices on each axis; -1 = the rest
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.expert = 1

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 1000
    config.checkpoint.keep = 2
    return config.lock()  # a config file that misspells a field is told so


def debug(config: ConfigDict) -> ConfigDict:
    """Shrinks any config to a two-minute run on two CPU cores."""
    config.model.update(variant="tiny", decoder_width=64, dtype="float32")
    config.data.update(image_size=128, channels=1)
    config.train.update(steps=300, slots=9, examples_per_slot=4, log_every=20)
    config.optimizer.update(learning_rate=1e-3)
    config.checkpoint.update(every_steps=100)
    return config


def check(config: ConfigDict) -> None:
    """Finds what no later step would explain well.

    Raises:
        UserError: one line that names the field and what to write there.
    """
    # Here, so that the command line can be read without waiting for JAX.
    from usfm.models.dinov3 import VARIANTS
    from usfm.objectives.multitask import choose_engine

    if not config.data.root:
        raise UserError("data.root is not set: give --config.data.root=FM_UIA_FOLDER")
    if config.data.image_size % 16 or config.data.image_size < 16:
        raise UserError(
            f"data.image_size={config.data.image_size} is not a multiple of 16; the encoder "
            f"reads 16 x 16 patches: try {max(16, round(config.data.image_size / 16) * 16)}"
        )
    for field, allowed in {
        "data.channels": (1, 3),
        "data.on_bad_row": ("error", "skip"),
        "train.on_nonfinite": ("stop", "skip_task"),
        "evaluate.part": ("val", "test", "all"),
        "model.variant": tuple(VARIANTS),
        "model.dtype": ("float32", "bfloat16"),
    }.items():
        room, name = field.split(".")
        if config[room][name] not in allowed:
            choices = ", ".join(str(value) for value in allowed)
            raise UserError(f"{field}={config[room][name]!r} is not one of {choices}")
    for field, low, high in (
        ("data.fraction", 1e-9, 1.0),
        ("data.workers", 0, float("inf")),
        ("data.augment", 0.0, 1.0),
        ("train.steps", 1, float("inf")),
        ("train.seconds", 0.0, float("inf")),
        ("train.slots", 1, float("inf")),
        ("train.examples_per_slot", 1, float("inf")),
        ("train.log_every", 1, float("inf")),
        ("optimizer.warmup", 0.0, 1.0),
        ("checkpoint.every_steps", 1, float("inf")),
        ("checkpoint.keep", 1, float("inf")),
        ("evaluate.batch_size", 1, float("inf")),
    ):
        room, name = field.split(".")
        if not low <= config[room][name] <= high:
            raise UserError(f"{field}={config[room][name]} is outside [{low:g}, {high:g}]")
    skip = config.train.on_nonfinite == "skip_task"
    choose_engine(config.multitask.engine, config.multitask.method, skip)


# Fields that may differ when a run goes on: they change where and how fast, not what is learned,
# or, as on_nonfinite, how it gets over a bad step.
FREE = ("data.root", "data.cache_dir", "data.workers", "train.log_every", "train.on_nonfinite",
        "evaluate.", "mesh.", "checkpoint.")  # fmt: skip


def check_resumable(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Refuses to go on in a workdir with another config than the one it was begun with.

    Raises:
        UserError: lists the fields that differ.
    """
    path = workdir / "config.json"
    if not path.exists():
        return
    old, new = flat(to_dict(read(path))), flat(to_dict(config))
    if new.get("train.seconds"):
        new["train.steps"] = old.get("train.steps")  # what the seconds came to
    differ = [
        f"  {name}: {old.get(name)!r} before, {new.get(name)!r} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not name.startswith(FREE)
    ]
    if differ:
        raise UserError(
            f"{workdir} was begun with another config; give its values, or another --workdir:\n"
            + "\n".join(differ)
        )


def of_run(workdir: pathlib.Path, changed: dict[str, Any]) -> ConfigDict:
    """The config that a workdir was trained with, but for the fields changed just now.

    Raises:
        UserError: the workdir holds no run.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise UserError(f"{workdir} holds no run (no config.json): train first, or correct it")
    config = read(path)
    config.update_from_flattened_dict(changed)
    return config


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a config, as to_dict gives it, by dotted name."""
    fields = {}
    for name, value in config.items():
        if isinstance(value, dict) and value:
            fields |= flat(value, f"{prefix}{name}.")
        else:
            # As JSON has it: a tuple comes back as a list.
            fields[prefix + name] = list(value) if isinstance(value, tuple) else value
    return fields


def write(config: ConfigDict, path: pathlib.Path) -> None:
    """Writes a config as JSON, whole or not at all."""
    path = pathlib.Path(path)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(to_dict(config), indent=2) + "\n")
    temporary.replace(path)


def read(path: pathlib.Path) -> ConfigDict:
    """Reads what `write` wrote."""
    return ConfigDict(json.loads(path.read_text()))


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """A config as nested plain dicts."""
    frozen = config_dict.FrozenConfigDict(config)
    return frozen.as_configdict().to_dict()
