"""What a run's config makes of the multi-task step: its method, its engine and its record."""

from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from usfm.data.source import say
from usfm.errors import UserError
from usfm.models.functional import path_name
from usfm.objectives import chain, engines
from usfm.objectives.functions import Batch, Functions
from usfm.objectives.gramian import Groups
from usfm.objectives.weighting import Weighting
from usfm.tasks import Task
from usfm.training.freeze import Params
from usfm.training.names import Layers, by_layer, matches

# Thirds of the encoder's blocks, what lies before them, and what comes after.
RECORDED = ("embedding", "early", "middle", "late", "decoders")


def weighting_of(config: ConfigDict, tasks: Sequence[Task]) -> Weighting:
    """The weighting that a run's `multitask` describes.

    Raises:
        UserError: an unknown task, or a weight that is not above 0.
        ValueError: an unknown method or option (`check` explains the former).
    """
    return chain.make(
        config.method,
        options=config.options.get(config.method, {}),
        static=_static(config.weights, [task.id for task in tasks]) if config.weights else None,
        gramian_ema=config.gramian_ema,
        clip=config.clip,
    )


def _static(text: str, tasks: Sequence[str]) -> np.ndarray:
    """Weights [T] from 'TASK=WEIGHT,TASK=WEIGHT'; 1 for tasks that are not named."""
    weights = dict.fromkeys(tasks, 1.0)
    for part in text.split(","):
        task, _, given = part.strip().partition("=")
        if task not in weights:
            raise UserError(
                f"multitask.weights: {task!r} is not a task of the run ({', '.join(tasks)})"
            )
        try:
            weights[task] = float(given)
        except ValueError:
            weights[task] = float("nan")
        if not 0 < weights[task] < float("inf"):
            raise UserError(f"multitask.weights: {part.strip()!r} gives no number above 0")
    return np.array(list(weights.values()), np.float32)


def check(config: ConfigDict, skip_nonfinite: bool, accumulate: int = 1) -> None:
    """Finds what is wrong with a run's `multitask` before its tasks are known.

    Args:
        config: the run's `multitask`.
        skip_nonfinite: whether tasks that are not finite are left out.
        accumulate: the run's train.accumulate.

    Raises:
        UserError: one line that names the field and what to write there.
    """
    if config.method not in chain.METHODS:
        raise UserError(
            f"multitask.method='{config.method}' is unknown; choose from {', '.join(chain.METHODS)}"
        )
    needs = chain.make(config.method).needs
    if config.gramian_ema and needs not in ("norms", "gramian"):
        raise UserError(
            f"multitask.gramian_ema={config.gramian_ema}: multitask.method='{config.method}' does "
            "not look at the Gramian; set it to 0, or choose a method that does"
        )
    engines.check_engine(
        config.engine, config.method, needs, skip_nonfinite=skip_nonfinite, record=config.record
    )
    engine = usual_engine(config, skip_nonfinite)
    if accumulate > 1 and engine != "plain":
        raise UserError(
            f"train.accumulate={accumulate} serves the plain engine, and this run's is {engine}: "
            "leave it at 1; multitask.engine=stack_map holds the activations of multitask.at_once "
            "slots alone"
        )


def usual_engine(config: ConfigDict, skip_nonfinite: bool) -> str:
    """The engine of a run; where it is to be chosen, the first that can serve.

    Args:
        config: the run's `multitask`.
        skip_nonfinite: whether tasks that are not finite are left out.
    """
    needs = chain.make(config.method).needs
    usual = engines.allowed(needs, skip_nonfinite, config.record)[0]
    return usual if config.engine == "auto" else config.engine


def layer_of(params: Params, pattern: str, layers: Layers) -> Groups:
    """The parameters whose virtual names a regex matches, as one group.

    Raises:
        UserError: it matches none of the shared parameters.
    """

    def of(name: str) -> int:
        return 0 if matches([pattern], name) else -1

    shared = {"encoder": params["encoder"], "decoders": params["decoders"]}
    found = jax.tree_util.tree_map_with_path(
        lambda path, _: by_layer(path_name(path), layers, of), shared
    )
    if not any((np.asarray(group) >= 0).any() for group in jax.tree.leaves(found)):
        raise UserError(f"multitask.layer={pattern!r} matches no trained shared parameter")
    return Groups(("layer",), found)


def recorded_groups(params: Params, layers: Layers) -> Groups:
    """The groups of layers that are recorded apart, RECORDED."""
    depth = sum(map(len, layers.values()))

    def of(name: str) -> int:
        if name.startswith("decoders/"):
            return RECORDED.index("decoders")
        if not name.startswith("encoder/block_"):
            return RECORDED.index("late" if name.startswith("encoder/norm/") else "embedding")
        block = int(name.removeprefix("encoder/block_")[:2])
        return RECORDED.index("early") + 3 * block // depth

    shared = {"encoder": params["encoder"], "decoders": params["decoders"]}
    return Groups(
        RECORDED,
        jax.tree_util.tree_map_with_path(
            lambda path, _: by_layer(path_name(path), layers, of), shared
        ),
    )


def engine_of(
    config: ConfigDict,
    needs: str,
    skip_nonfinite: bool,
    functions: Functions,
    params: Params,
    batch: Batch,
) -> str:
    """The engine of a run; where it is to be chosen, says what each is expected to cost.

    Args:
        config: the run's `multitask`.
        needs: of the weighting.
        skip_nonfinite: whether tasks that are not finite are left out.
        functions: of the step.
        params: the trainable ones, or their shapes.
        batch: as the step hands it to multitask.answer, or its shapes.
    """
    if config.engine != "auto":
        return config.engine
    can = engines.allowed(needs, skip_nonfinite, config.record)
    if can[0] == "plain":
        return "plain"
    mesh = jax.sharding.get_abstract_mesh()
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch["task"].shape[0]))
    costs = engines.costs(
        functions,
        params,
        batch,
        keys,
        at_once=config.at_once,
        devices=1 if mesh.empty else mesh.size,
        platform=jax.default_backend(),
    )
    stats = jax.local_devices()[0].memory_stats() or {}
    room = stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None
    chosen = engines.choose_engine(can, costs, room)
    say(engines.describe(chosen, can, costs))
    return chosen
