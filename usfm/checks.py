"""What is wrong with a config, found before any work starts."""

import functools
import operator
import pathlib
import re
from typing import Any

from ml_collections import ConfigDict

from usfm.config import check_resumable
from usfm.errors import UserError
from usfm.tasks import TYPES
from usfm.tasks.suggest import suggest

# (field, least, greatest)
RANGES: tuple[tuple[str, float, float], ...] = (
    ("data.fraction", 1e-9, 1.0),
    ("data.min_examples", 1, float("inf")),
    ("data.workers", 0, float("inf")),
    ("data.augment", 0.0, 1.0),
    *((f"data.augment_by_type.{kind}", 0.0, 1.0) for kind in TYPES),
    ("train.steps", 1, float("inf")),
    ("train.seconds", 0.0, float("inf")),
    ("train.slots", 1, float("inf")),
    ("train.examples_per_slot", 1, float("inf")),
    ("train.accumulate", 1, float("inf")),
    ("train.seed", 0, 2**32 - 1),
    ("train.log_every", 1, float("inf")),
    ("train.class_balance", 0.0, 0.999999),
    ("train.ema", 0.0, 1.0),
    ("model.drop_path", 0.0, 0.99),
    ("model.rope_rescale", 1.0, 100.0),
    ("model.moe.experts", 0, float("inf")),
    ("model.moe.balance_weight", 0.0, float("inf")),
    ("model.moe.z_weight", 0.0, float("inf")),
    ("model.lora.rank", 0, float("inf")),
    ("optimizer.learning_rate", 1e-12, float("inf")),
    ("optimizer.head_learning_rate", 0.0, float("inf")),
    ("optimizer.layer_decay", 1e-3, 1.0),
    ("optimizer.warmup", 0.0, 1.0),
    ("optimizer.b2", 0.0, 0.999999),
    ("multitask.gramian_ema", 0.0, 0.9999),
    ("multitask.clip", 0.0, float("inf")),
    ("multitask.at_once", 1, float("inf")),
    ("multitask.record_every", 1, float("inf")),
    ("multitask.options.cagrad.c", 0.0, 0.999999),
    ("multitask.options.dwa.temperature", 1e-6, float("inf")),
    ("multitask.options.dwa.window", 1, float("inf")),
    ("multitask.options.fairgrad.alpha", 1e-3, float("inf")),
    ("multitask.options.famo.learning_rate", 0.0, float("inf")),
    ("multitask.options.famo.weight_decay", 0.0, float("inf")),
    ("multitask.options.gradnorm.alpha", 0.0, float("inf")),
    ("multitask.options.gradnorm.learning_rate", 0.0, float("inf")),
    ("multitask.options.gradvac.beta", 0.0, 1.0),
    ("multitask.options.imtl_l.learning_rate", 0.0, float("inf")),
    ("multitask.options.uncertainty.learning_rate", 0.0, float("inf")),
    ("checkpoint.every_steps", 1, float("inf")),
    ("checkpoint.keep", 1, float("inf")),
    ("checkpoint.keep_every", 0, float("inf")),
    ("evaluate.batch_size", 1, float("inf")),
    ("watch.hang_seconds", 0.0, float("inf")),
)


def begin(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Checks a config, also against what the workdir was begun with, and makes the workdir.

    Raises:
        UserError: as `check` and `check_resumable` do.
    """
    check(config)
    check_resumable(config, workdir)
    workdir.mkdir(parents=True, exist_ok=True)


def check(config: ConfigDict) -> None:
    """Finds what no later step would explain well.

    Raises:
        UserError: one line that names the field and what to write there.
    """
    # Here, so that the command line can be read without waiting for JAX.
    from usfm.models.dinov3 import VARIANTS
    from usfm.models.functional import REMAT
    from usfm.training.method import check as check_method
    from usfm.training.watch import profiled
    from usfm.training.writers import check as check_writers

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
        "evaluate.checkpoint": ("latest", "best"),
        "watch.on_hang": ("tell", "exit"),
        "features.format": ("npz", "zarr"),
        "model.variant": tuple(VARIANTS),
        "model.dtype": ("float32", "bfloat16"),
        "model.remat": tuple(REMAT),
        "optimizer.name": ("adamw", "muon"),
        "multitask.options.aligned_mtl.scale": ("min", "median", "rmse"),
    }.items():
        value = _value(config, field)
        if value not in allowed:
            choices = ", ".join(str(choice) for choice in allowed)
            raise UserError(f"{field}={value!r} is not one of {choices}")
    for field, low, high in RANGES:
        value = _value(config, field)
        if not low <= value <= high:
            raise UserError(f"{field}={value} is outside [{low:g}, {high:g}]")
    if not config.predict.scales or not all(0.25 <= s <= 4 for s in config.predict.scales):
        scales = tuple(config.predict.scales)
        raise UserError(f"predict.scales={scales}: give one number or more from 0.25 to 4")
    _check_tasks(config.data)
    for kind in TYPES:
        width = _value(config, f"model.decoder_width.{kind}")
        if width < 1 or (width > 64 and width % 64):
            raise UserError(
                f"model.decoder_width.{kind}={width}: give up to 64 channels, or a multiple of 64"
            )
    _check_moe(config.model)
    _check_checkpoint(config.checkpoint)
    try:
        profiled(config.watch.profile)
    except ValueError as error:
        raise UserError(
            f"watch.profile={config.watch.profile!r}: give FIRST:END, such as 10:13 for the steps "
            "10, 11 and 12"
        ) from error
    patterns = [("optimizer.freeze", pattern) for pattern in config.optimizer.freeze]
    for field, pattern in [*patterns, ("multitask.layer", config.multitask.layer)]:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise UserError(f"{field}: {pattern!r} is not a regex: {error}") from error
    if config.train.examples_per_slot % config.train.accumulate:
        raise UserError(
            f"train.accumulate={config.train.accumulate} does not divide "
            f"train.examples_per_slot={config.train.examples_per_slot}: give a divisor"
        )
    check_writers(config.watch)
    check_method(
        config.multitask, config.train.on_nonfinite == "skip_task", config.train.accumulate
    )


def _check_tasks(data: ConfigDict) -> None:
    """What is given by task."""
    from usfm.data.mixing import temperatures

    for task_id, share in data.fractions.items():
        if not 0 < share <= 1:
            raise UserError(f"data.fractions.{task_id}={share} is outside (0, 1]")
    temperatures(data)
    for task_id, weight in data.weights.items():
        if not 0 < weight < float("inf"):
            raise UserError(f"data.weights.{task_id}={weight}: give a number above 0")


def _value(config: ConfigDict, field: str) -> Any:
    try:
        return functools.reduce(operator.getitem, field.split("."), config)
    except KeyError as error:  # a group was set as a whole, which no lock of its fields sees
        group, _, name = field.rpartition(".")
        raise UserError(f"{field} is missing: change {group} by .update({name}=...)") from error


def _check_moe(model: ConfigDict) -> None:
    from usfm.models.dinov3 import VARIANTS
    from usfm.models.moe import Mixture

    layers, depth = list(model.moe.layers), VARIANTS[model.variant].layers
    if layers != sorted(set(layers)) or not all(0 <= layer < depth for layer in layers):
        raise UserError(
            f"model.moe.layers={tuple(layers)}: give rising numbers from 0 to {depth - 1}, the "
            f"layers of {model.variant}"
        )
    if model.moe.experts:  # it refuses what it cannot be
        Mixture(model.moe.experts, tuple(layers), model.moe.top_k, model.moe.capacity)


def _check_checkpoint(checkpoint: ConfigDict) -> None:
    from usfm.evaluation.metrics import METRICS

    if checkpoint.keep_every % checkpoint.every_steps:
        raise UserError(
            f"checkpoint.keep_every={checkpoint.keep_every} is not a multiple of "
            f"checkpoint.every_steps={checkpoint.every_steps}: no checkpoint would be kept by it"
        )
    metric = checkpoint.best_metric.rpartition("/")[2]
    known = [name for names in METRICS.values() for name in names]
    if metric and metric not in known:
        raise UserError(
            f"checkpoint.best_metric={checkpoint.best_metric!r}: there is no such metric; "
            f"{suggest(metric, known)}, by itself or as TASK/METRIC"
        )
