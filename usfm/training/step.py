"""One training step: augment, task losses and their gradient, update. Compiled once."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from usfm.data.augment import augment, normalise, strengths
from usfm.models import functional
from usfm.models.m2dino import M2DINO
from usfm.objectives import multitask
from usfm.objectives.functions import Functions
from usfm.objectives.losses import LOSSES
from usfm.objectives.routing import RouterLoss, dropped, load_by_task
from usfm.training import method
from usfm.training.freeze import Params, frozen, hold, merge, split
from usfm.training.optimizer import preconditioner, schedule
from usfm.training.state import TrainState, averaged


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Own:
    """What a run has of its own where runs of equal shapes share a program.

    Attributes:
        seed: uint32 [], of all that is random in a step.
        class_weights: float32 [T, C], what an image of each class counts in its task's loss
            (losses.class_weights); None = all alike.
    """

    seed: jax.Array | np.uint32
    class_weights: jax.Array | np.ndarray | None = None


Step = Callable[[TrainState, Mapping[str, jax.Array], Own], tuple[TrainState, dict[str, Any]]]


def make_step(
    model: M2DINO,
    slots: Mapping[str, int],
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    abstract_state: TrainState,
) -> Step:
    """The compiled step of a run.

    Args:
        model: whose tasks the batches' `task` indexes.
        slots: slots of each type, in a batch's order.
        optimizer: as given to state.initial.
        config: the run's, of which train.seed does not matter.
        abstract_state: shapes and shardings of the state.

    Returns:
        (state, uint8 batch, own) -> (new state, metrics): losses, present, left_out and
        images (how many) [T], grad_norm [] and ok [], whether the update was made; unless all tasks
        weigh the same also weights [T], and where it is at hand gramian [T, T]; where there are
        mixtures of experts also routing [T, E] and dropped [] (objectives/routing.py); and with
        multitask.record also record, what record.py writes. An update that is not finite is never
        made: what follows is then the loop's to decide. The old state's memory is reused.
    """
    is_frozen = frozen(abstract_state.params, config.optimizer.freeze, model.layers)
    skip = config.train.on_nonfinite == "skip_task"
    settings = config.multitask
    weighting = method.weighting_of(settings, model.tasks)
    trained, _ = split(abstract_state.params, is_frozen)
    layer = None
    if settings.engine == "layer" or weighting.needs == "norms":
        layer = method.layer_of(trained, settings.layer, model.layers)
    groups = method.recorded_groups(trained, model.layers)
    learning_rate = schedule(config.optimizer, config.train.steps)
    moe = config.model.moe
    router_loss = RouterLoss(moe.balance_weight, moe.z_weight)
    strength = strengths(config.data, model.tasks)
    flip_ok = jnp.array([task.flip_ok for task in model.tasks])

    def step(
        state: TrainState, batch: Mapping[str, jax.Array], own: Own
    ) -> tuple[TrainState, dict[str, Any]]:
        key = jax.random.fold_in(jax.random.key(own.seed), state.step)
        augment_key, task_key = jax.random.split(key)
        batch = augment(batch, augment_key, strength=strength, flip_ok=flip_ok)
        batch = {**batch, "image": normalise(batch["image"])}
        trainable, rest = split(state.params, is_frozen)
        if own.class_weights is not None and "label" in batch:  # absent without such tasks
            batch["class_weight"] = own.class_weights[batch["task"][:, None], batch["label"]]
        functions = functions_of(
            model, slots, lambda params: merge(hold(params, is_frozen), rest), router_loss
        )
        engine = method.engine_of(settings, weighting.needs, skip, functions, trainable, batch)
        out = multitask.answer(
            functions,
            trainable,
            batch,
            state.multitask,
            task_key,
            weighting=weighting,
            engine=engine,
            at_once=settings.at_once,
            parts=config.train.accumulate,
            skip_nonfinite=skip,
            layer=layer,
            halves=settings.record and batch["valid"].shape[1] % 2 == 0,
        )
        grad_norm = optax.tree.norm(out.grads)
        # A task that was left out has a NaN loss and is not present; nothing of it is in grads.
        ok = jnp.isfinite(grad_norm) & out.present.any()
        ok &= jnp.all(jnp.isfinite(out.losses) | ~out.present)
        updates, opt_state = optimizer.update(out.grads, state.opt_state, trainable)
        trainable: Params = optax.apply_updates(trainable, updates)
        remembered = multitask.look_back(functions, trainable, batch, task_key, out, weighting)
        ema = averaged(state.ema, trainable, config.train.ema, state.step)
        new = TrainState(state.step, merge(trainable, rest), opt_state, remembered, ema)
        new = jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, state)
        metrics: dict[str, Any] = {
            "losses": out.losses,
            "present": out.present,
            "left_out": out.left_out,
            "images": jnp.zeros(len(model.tasks), int).at[batch["task"]].add(batch["valid"].sum(1)),
            "grad_norm": grad_norm,
            "ok": ok,
        }
        if weighting.needs != "nothing":
            metrics["weights"] = out.weights
        if out.gramian is not None:
            metrics["gramian"] = out.gramian
        if settings.record:
            assert out.products is not None
            scales = {"": None, "preconditioned_": preconditioner(opt_state, config.optimizer)}
            metrics["record"] = {"learning_rate": learning_rate(state.step)} | {
                prefix + name: value
                for prefix, scale in scales.items()
                for name, value in dataclasses.asdict(out.products(groups, scale)).items()
            }
        if out.aux:
            valid = batch["valid"]
            metrics["routing"] = load_by_task(out.aux, batch["task"], valid, len(model.tasks))
            metrics["dropped"] = dropped(out.aux, valid)
        return dataclasses.replace(new, step=state.step + 1), metrics

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state)
    whole = NamedSharding(jax.tree.leaves(shardings)[0].mesh, P())  # all processes read the metrics
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, whole))


def functions_of(
    model: M2DINO,
    slots: Mapping[str, int],
    whole: Callable[[Params], Params],
    router_loss: RouterLoss,
) -> Functions:
    """The model's functions of its trainable parameters, to which `whole` adds the frozen."""

    def of_trainable(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda params, *args, **options: function(whole(params), *args, **options)

    return Functions(
        encode=of_trainable(model.encode),
        decode=of_trainable(model.decode),
        loss=lambda kind, outputs, labels, valid: LOSSES[kind](outputs, labels, valid),
        slots=dict(slots),
        tasks=len(model.tasks),
        encode_slots=of_trainable(model.encode_slots),
        unrolled=tuple(model.layers) if functional.unrolls() else (),
        auxiliary=router_loss,
    )
