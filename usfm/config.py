"""Every field of a run, its default and what it means; configs/ change what an experiment needs."""

import functools
import json
import pathlib
import sys
from typing import Any

from ml_collections import ConfigDict, config_dict

from usfm.errors import UserError
from usfm.tasks import TYPES


def base() -> ConfigDict:
    """The defaults of a run: M2DINO at ViT-S on an FM_UIA folder, for an accelerator."""
    config = ConfigDict()
    # Which tasks of the folder: 'all', 'group:breast', 'task:breast_lesion', or a comma list.
    config.tasks = "all"

    config.data = ConfigDict()
    # The FM_UIA folder (csv_files/ beside Segmentation/, ...), or several as 'A,B'; or 'tfds:NAME'.
    config.data.root = ""
    config.data.tfds = ConfigDict()  # what tfds:NAME holds: see docs/data.md
    config.data.tfds.data_dir = ""  # where it was prepared; "" = TFDS' own places
    config.data.tfds.split = "all"  # or train, test[:50%], ...
    config.data.tfds.image = "image"  # feature of the images
    config.data.tfds.group = ""  # feature that names the patient or video
    # Task id -> its 'type', the 'feature' of its labels and, unless that tells it, 'num_classes'.
    config.data.tfds.tasks = ConfigDict()
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
    config.data.fractions = ConfigDict()  # task id -> its own share
    config.data.min_examples = 1  # training rows that a task keeps, whatever the share
    # Tasks fill slots in proportion to (training rows) ** (1 / temperature): 1 = to their rows, the
    # higher the more alike; 0 = all alike.
    config.data.temperature = 0.0
    config.data.temperature_schedule = ""  # '5000=2,15000=0': another one from that step on
    config.data.weights = ConfigDict()  # task id -> times as often as that; 1 for the others
    # Images of all classes of a classification task come equally often; train.class_balance then
    # changes nothing.
    config.data.class_balanced = False
    config.data.on_bad_row = "error"  # or 'skip': leave bad rows out, and count them
    # Processes that read batches ahead; 0 = a thread. One thread reads 8,000 rows/s or more, and
    # most of that is C: processes pay only where that is not enough.
    config.data.workers = 0
    config.data.augment = 1.0  # strength of the augmentation, 0 to 1
    config.data.augment_by_type = ConfigDict(dict.fromkeys(TYPES, 1.0))  # a type's share of it

    config.model = ConfigDict()
    config.model.variant = "vits16"
    # A pretrained encoder (safetensors or .pth), or the workdir of a run, of which all is taken but
    # the heads of tasks that this one has not; "" = from scratch.
    config.model.init_from = ""
    config.model.decoder_width = ConfigDict(dict.fromkeys(TYPES, 256))  # channels, by task type
    config.model.rope_rescale = 2.0  # training-time factor on patch positions; 1 = none
    config.model.drop_path = 0.0  # probability that an image leaves out a branch of a layer
    config.model.remat = "none"  # or dots, full: what the backward pass computes again
    config.model.dtype = "bfloat16"  # of products; parameters stay float32
    config.model.moe = ConfigDict()  # mixture-of-experts layers
    config.model.moe.experts = 4  # 0 = none: a plain encoder
    config.model.moe.top_k = 0  # experts that serve a token; 0 = all, as in the paper
    config.model.moe.layers = ()  # 0-based; () = the second half
    config.model.moe.capacity = 1.25  # room of an expert in its fair share of tokens, for top_k
    config.model.moe.balance_weight = 0.01  # of the load-balance loss
    config.model.moe.z_weight = 0.001  # of the routers' z-loss
    config.model.lora = ConfigDict()  # low-rank updates of a frozen encoder
    config.model.lora.rank = 0  # 0 = none
    config.model.lora.alpha = 16.0

    config.train = ConfigDict()
    config.train.steps = 20_000
    config.train.seconds = 0.0  # instead of steps: a timed probe fixes their number
    config.train.slots = 32
    config.train.examples_per_slot = 4
    # Parts that the images of each slot are taken in, one after the other: less memory, same step.
    config.train.accumulate = 1
    config.train.seed = 0
    config.train.on_nonfinite = "stop"  # or 'skip_task'
    config.train.log_every = 50  # steps
    # From 0, all images of a classification task count alike, towards 1, all classes do: a class
    # is counted in full up to some 1 / (1 - class_balance) images.
    config.train.class_balance = 0.999
    # Decay of the moving average of the parameters that evaluation uses, 0 = none. It never
    # remembers more than a ninth of the steps so far, so one value serves short and long runs.
    config.train.ema = 0.9998

    config.optimizer = ConfigDict()
    # Or muon, whose steps go further where a model is trained from scratch (docs/model.md).
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-4
    config.optimizer.head_learning_rate = 0.0  # of all but the encoder; 0 = the same
    config.optimizer.layer_decay = 1.0  # of the rate, from each encoder layer to the one before
    config.optimizer.warmup = 0.05  # share of the steps
    config.optimizer.weight_decay = 0.05  # of matrices only
    config.optimizer.b2 = 0.999
    config.optimizer.clip_norm = 1.0
    # Regexes over parameters that stay as they are: '^encoder/' freezes the encoder,
    # '^encoder/block_0[0-5]/' its first six layers.
    config.optimizer.freeze = ()

    config.multitask = ConfigDict()
    # Or mean, rlw, dwa, uncertainty, imtl_l, famo, gradnorm, gradvac, pcgrad, cagrad, mgda, imtl_g,
    # nash_mtl, fairgrad, aligned_mtl, upgrad, dualproj, config, graddrop: see docs/multitask.md.
    config.multitask.method = "sum"
    # Options of the methods that have any.
    config.multitask.options = ConfigDict()
    config.multitask.options.aligned_mtl = ConfigDict({"scale": "min"})  # or median, rmse
    config.multitask.options.cagrad = ConfigDict({"c": 0.4})
    config.multitask.options.dwa = ConfigDict({"temperature": 2.0, "window": 100})  # steps
    config.multitask.options.fairgrad = ConfigDict({"alpha": 2.0})
    config.multitask.options.famo = ConfigDict({"learning_rate": 0.025, "weight_decay": 1e-3})
    config.multitask.options.gradnorm = ConfigDict({"alpha": 1.5, "learning_rate": 0.025})
    config.multitask.options.gradvac = ConfigDict({"beta": 0.5})
    config.multitask.options.imtl_l = ConfigDict({"learning_rate": 0.025})
    config.multitask.options.uncertainty = ConfigDict({"learning_rate": 0.025})
    config.multitask.weights = ""  # of losses: 'breast_lesion=2,lung_2cls=0.5'; 1 for the others
    config.multitask.gramian_ema = 0.0  # decay of a moving average of the Gramian; 0 = none
    config.multitask.clip = 0.0  # largest weight of a task, in mean weights; 0 = no limit
    # How task gradients are kept apart: plain, layer, stack, stack_map, stream; auto chooses.
    config.multitask.engine = "auto"
    config.multitask.at_once = 3  # slots that stack_map holds the activations of
    # Regex over shared parameters that stand for all of them, with engine 'layer': gradnorm's
    # "last shared layer".
    config.multitask.layer = "^encoder/norm/"
    config.multitask.record = False  # write the inner products of task gradients: gramians/
    config.multitask.record_every = 1  # steps; those between cost what they cost unrecorded

    config.evaluate = ConfigDict()
    config.evaluate.part = "val"  # or test, all
    config.evaluate.batch_size = 32
    config.evaluate.checkpoint = "latest"  # or 'best', by checkpoint.best_metric; predict's too
    config.evaluate.before_training = False  # score the untrained model too
    config.evaluate.after_training = True

    config.predict = ConfigDict()  # how images are answered, by evaluate and predict alike
    # Views of each image whose answers are averaged: sizes, in data.image_size, and the mirrored
    # image too, for tasks that allow it (data.flip_ok). They cost as many times the time.
    config.predict.scales = (1.0,)
    config.predict.flip = False
    config.predict.overlays = False  # predict draws its answers over the images too

    config.features = ConfigDict()
    # Whose embedding the routers of mixtures read; "" = the mean of all tasks' (docs/predict.md).
    config.features.task = ""
    config.features.format = "npz"  # a file an image; or zarr: one array for all

    config.mesh = ConfigDict()  # devices on each axis; -1 = the rest
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.expert = 1

    config.watch = ConfigDict()  # what is told of a run while it trains: see docs/scale.md
    config.watch.tensorboard = True  # events in tensorboard/
    config.watch.wandb = ""  # project of Weights & Biases; "" = none
    config.watch.profile = ""  # '10:13': jax.profiler traces steps 10 to 12 into profile/
    # Seconds without the end of a step after which the stacks of all threads are told; 0 = 30
    # median steps, at least 300.
    config.watch.hang_seconds = 0.0
    config.watch.on_hang = "tell"  # or 'exit': end with code 75 then, to be started again

    config.checkpoint = ConfigDict()
    # Where checkpoints lie, such as gs://BUCKET/RUN; "" = WORKDIR/checkpoints.
    config.checkpoint.directory = ""
    config.checkpoint.every_steps = 1000
    config.checkpoint.keep = 2  # of the newest
    config.checkpoint.keep_every = 0  # steps: their multiples are kept for good; 0 = none
    # A metric, such as 'dsc' (its mean over the tasks that have it) or 'breast_lesion/dsc': val is
    # scored at each checkpoint, and the best one is kept. "" = nothing is scored.
    config.checkpoint.best_metric = ""
    config.checkpoint.accept_changes = False  # go on with another config, or other tasks
    return config.lock()  # a config file that misspells a field is told so


def study(config: ConfigDict) -> ConfigDict:
    """Adds what `--mode=study` compares to the config of its runs."""
    fields = ConfigDict()
    # task_specific, clinically_grouped, all_task, advised (found from what all_task's runs
    # record), or a name of study.partitions. Gains are over task_specific, which is always trained.
    fields.plans = ("task_specific", "clinically_grouped", "all_task", "advised")
    # Plans of one's own: 'mine: lung+lung_2cls | cervix; other: ...', every task once in each.
    fields.partitions = ""
    fields.fractions = (0.25, 1.0)  # of the training rows (data.fraction)
    fields.seeds = (0, 1, 2)  # of the runs (train.seed); fewer than 3 decide nothing
    fields.methods = ("sum",)  # multi-task methods (multitask.method)
    fields.models = ()  # encoders (model.variant); () = that of the config
    # Slots of each task in a step, the same under every plan; 0 = every run has train.slots slots.
    fields.slots_per_task = 1
    # Runs of equal shapes that are trained at once, stacked: what fills an accelerator. One after
    # another is faster on a CPU.
    fields.pack = 1
    fields.executor = "local"  # or slurm, by submitit (pip install usfm[slurm])
    fields.processes = 1  # local ones at once, or tasks of the Slurm array
    fields.slurm = ConfigDict()  # parameters of submitit's executor, such as slurm_partition
    with config.unlocked():
        config.study = fields
    return config.lock()


def debug(config: ConfigDict) -> ConfigDict:
    """Shrinks any config to a two-minute run on two CPU cores."""
    config.model.update(variant="tiny", dtype="float32")
    config.model.moe.experts = 0  # In minutes, steps are worth more than experts.
    config.model.decoder_width.update(
        classification=192, detection=64, regression=64, segmentation=64
    )
    # At full strength, so few steps learn less for what they see (docs/benchmarks.md).
    config.data.update(image_size=128, channels=1, augment=0.3)
    config.train.update(steps=300, slots=9, examples_per_slot=4, log_every=20)
    config.optimizer.update(learning_rate=1e-3)
    config.checkpoint.update(every_steps=100)
    return config


# Fields that may differ when a run goes on: they change where and how fast, not what is learned,
# or, as on_nonfinite, how it gets over a bad step.
FREE = ("data.root", "data.tfds.data_dir", "data.cache_dir", "data.workers", "train.log_every",
        "train.accumulate", "train.on_nonfinite", "evaluate.", "predict.", "features.", "mesh.",
        "watch.", "checkpoint.",
        "study.plans", "study.partitions", "study.fractions", "study.seeds", "study.methods",
        "study.models", "study.executor", "study.processes", "study.pack",
        "study.slurm")  # fmt: skip

# Fields that say how a run learns: no matter to what has been learned.
LEARNED = ("data.augment", "data.temperature", "data.weights", "multitask.", "optimizer.")


def check_resumable(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Refuses to go on in a workdir with another config than the one it was begun with.

    Raises:
        UserError: lists the fields that differ.
    """
    path = workdir / "config.json"
    if path.exists():
        check_same(to_dict(read(path)), config, f"{workdir} was begun")


def check_same(before: dict[str, Any], config: ConfigDict, what: str) -> None:
    """Refuses a config that differs from an earlier one in more than FREE, unless it says so.

    Args:
        before: the earlier one, as to_dict gives it.
        config: with checkpoint.accept_changes, which has the differences said instead.
        what: was made with the earlier one, such as 'runs/a was begun'.

    Raises:
        UserError: lists the fields that differ.
    """
    old, new = flat(before), flat(to_dict(config))
    if new.get("train.seconds"):
        new["train.steps"] = old.get("train.steps")  # what the seconds came to
    differ = "\n".join(
        f"  {name}: {old.get(name)!r} before, {new.get(name)!r} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not name.startswith(FREE)
    )
    if not differ:
        return
    if not config.checkpoint.accept_changes:
        raise UserError(
            f"{what} with another config; give its values, another --workdir, or accept what is "
            f"different by --config.checkpoint.accept_changes=True:\n{differ}"
        )
    print(f"{what} with another config, and goes on with this one:\n{differ}", file=sys.stderr)


def of_run(workdir: pathlib.Path, changed: dict[str, Any]) -> ConfigDict:
    """The config that a workdir was trained with, but for the fields changed just now.

    Raises:
        UserError: the workdir holds no run, or one begun before a field existed.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise UserError(f"{workdir} holds no run (no config.json): train first, or correct it")
    theirs = to_dict(read(path))
    held = [f"{name}." for name in flat(theirs)]
    lacking = {
        name: value
        for name, value in flat(to_dict(base())).items()
        if not any(h.startswith(f"{name}.") for h in held)
    }
    # What a run learned is read the same whatever these are, so they may be younger than it.
    for name in [name for name in lacking if name.startswith(FREE + LEARNED)]:
        *rooms, field = name.split(".")
        functools.reduce(lambda room, inner: room.setdefault(inner, {}), rooms, theirs)[field] = (
            lacking.pop(name)
        )
    if lacking:
        raise UserError(
            f"{path} lacks {', '.join(lacking)}: its run was begun with another version of usfm; "
            "use that one, or train again in another --workdir"
        )
    config = ConfigDict(theirs)
    config.update_from_flattened_dict(changed)
    return config


def holds_run(directory: pathlib.Path) -> bool:
    """Whether a folder is the workdir of a run; published encoders have a config.json too."""
    path = directory / "config.json"
    return path.is_file() and "checkpoint" in json.loads(path.read_text())


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
    """Writes a config as JSON, whole or not at all; its folder is made where it is gone."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
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
