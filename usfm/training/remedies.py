"""What makes a step smaller that does not fit, and what each change costs."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from usfm.data.slots import layout, slots_per_type
from usfm.objectives import engines
from usfm.objectives.routing import RouterLoss
from usfm.tasks import Task
from usfm.training import optimizer as optimizers
from usfm.training import sharding
from usfm.training.freeze import Params, frozen, merge, split
from usfm.training.method import usual_engine
from usfm.training.program import make_model
from usfm.training.state import initial
from usfm.training.step import functions_of

LISTED = 3


@dataclasses.dataclass(frozen=True)
class Remedy:
    """A change of a config.

    Attributes:
        changes: by field.
        price: what it costs, in words.
    """

    changes: dict[str, Any]
    price: str

    def __str__(self) -> str:
        return " ".join(f"--config.{field}={value}" for field, value in self.changes.items())


def of(
    config: ConfigDict,
    tasks: Sequence[Task],
    mesh: jax.sharding.Mesh,
    has: int,
    *,
    takes: int | None = None,
) -> str:
    """The three cheapest changes that make a step smaller, one a line.

    Args:
        config: the run's.
        tasks: of the run.
        mesh: of the run.
        has: bytes of each device.
        takes: bytes of a step on each device, as compiled; None = only what is estimated is known.
    """
    now, lines = estimate(config, tasks, mesh), []
    for alternatives in _candidates(config, mesh):
        for remedy in alternatives:
            changed = config.copy_and_resolve_references()
            changed.update_from_flattened_dict(remedy.changes)
            other = mesh
            if "mesh.fsdp" in remedy.changes:
                sizes = {axis: changed.mesh[axis] for axis in mesh.axis_names}
                other = sharding.make_mesh(sizes, list(mesh.devices.flat))
            # A compiler plans more than shapes say; how much more is taken to stay.
            then = round((takes or now) * estimate(changed, tasks, other) / now)
            if then <= has or remedy is alternatives[-1]:
                break
        if then < (takes or now):
            fits = "fits" if then <= has else "not enough by itself"
            lines.append(f"  {remedy}: about {then / 2**20:,.0f} MiB, {fits}; {remedy.price}")
        if len(lines) == LISTED:
            break
    return "\n".join(lines)


def _candidates(config: ConfigDict, mesh: jax.sharding.Mesh) -> Iterator[Sequence[Remedy]]:
    """What may help, the cheapest first; of alternatives the first that is enough is meant."""
    data, images = mesh.shape["data"], config.train.examples_per_slot
    if data > 1:
        spread = {"mesh.data": 1, "mesh.fsdp": data * mesh.shape["fsdp"],
                  "mesh.expert": mesh.shape["expert"]}  # fmt: skip
        yield [Remedy(spread, "the same numbers; devices gather parameters layer by layer")]
    more = [n for n in range(config.train.accumulate + 1, images + 1) if images % n == 0]
    if _engine(config) == "plain" and more:
        price = "the same numbers; a step takes up to a third longer"
        yield [Remedy({"train.accumulate": number}, price) for number in more]
    if _engine(config) == "stack" and mesh.size == 1:
        mapped = {"multitask.engine": "stack_map", "multitask.at_once": 1}
        yield [Remedy(mapped, "the same numbers; slots come in turn, which suits a CPU")]
    if config.model.remat != "full":
        yield [Remedy({"model.remat": "full"}, "the same numbers; a step takes a third longer")]
    if images > 1:
        yield [Remedy({"train.examples_per_slot": images // 2}, "smaller batches: another run")]


def estimate(config: ConfigDict, tasks: Sequence[Task], mesh: jax.sharding.Mesh) -> int:
    """Bytes of a step on each device, from shapes alone: state, activations and gradients."""
    model = make_model(config, tuple(tasks))
    optimizer = optimizers.make(config.optimizer, config.train.steps, model.layers)
    state = sharding.abstract(functools.partial(initial, model, optimizer, config, 0), mesh)
    slots, parts = slots_per_type(tasks, None, config.train.slots), config.train.accumulate
    size = (config.data.image_size, config.data.image_size)
    arrays = layout(tasks, config.train.slots, config.train.examples_per_slot // parts, size, 3)
    batch = {name: jax.ShapeDtypeStruct(*of) for name, of in arrays.items()}
    batch["image"] = jax.ShapeDtypeStruct(batch["image"].shape, "float32")
    router_loss = RouterLoss(config.model.moe.balance_weight, config.model.moe.z_weight)
    costs = {}

    def trace(params: Params, batch: Any) -> None:
        trainable, rest = split(params, frozen(params, config.optimizer.freeze, model.layers))
        functions = functions_of(model, slots, lambda p: merge(p, rest), router_loss)
        keys = jax.random.split(jax.random.key(0), config.train.slots)
        settings = {"at_once": config.multitask.at_once, "devices": mesh.size}
        platform = jax.default_backend()
        costs.update(
            engines.costs(functions, trainable, batch, keys, platform=platform, **settings)
        )

    jax.eval_shape(trace, state.params, batch)
    # Beside a part's gradient, the sum of those before it.
    summed = sharding.bytes_on_a_device(state.params) if parts > 1 else 0
    return sharding.bytes_on_a_device(state) + costs[_engine(config)].memory + summed


def _engine(config: ConfigDict) -> str:
    return usual_engine(config.multitask, config.train.on_nonfinite == "skip_task")
