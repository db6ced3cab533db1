"""Which engine computes the task gradients of a run, and what it is expected to cost."""

import dataclasses
from typing import Any

import jax
import numpy as np

from usfm.errors import UserError
from usfm.objectives.functions import Batch, Functions, Params, slot_losses

# What each engine keeps of the tasks: nothing, the gradients of a few parameters ("layer"), or all.
ENGINES = ("plain", "layer", "stack", "stack_map", "stream")
EXTRA_FORWARD = 1 / 3  # of a step: a forward pass takes half of what a backward pass does
# FLOPs that a device does while it moves a byte to or from its memory, in training steps: what
# makes gradients that are kept dear. The CPU's is measured, accelerators' are from data sheets at
# half of the peak (bfloat16).
FLOPS_PER_BYTE = {"cpu": 15.0, "gpu": 120.0, "tpu": 150.0}
# Tokens that fill a device; with fewer at once it is idle in part.
FILLING_TOKENS = {"cpu": 256, "gpu": 16_384, "tpu": 16_384}
# Few slots' activations stay in a CPU's caches (docs/benchmarks.md: .99 beside the stack's 1.19).
MAP_ON_CPU = 0.82


@dataclasses.dataclass(frozen=True)
class Cost:
    """What an engine is expected to cost.

    Attributes:
        time: multiples of a plain step's.
        memory: bytes a device, of activations and gradients.
    """

    time: float
    memory: int


def allowed(needs: str, skip_nonfinite: bool, record: bool) -> tuple[str, ...]:
    """The engines that can serve a method, the usual one first.

    Args:
        needs: Weighting.needs.
        skip_nonfinite: whether tasks that are not finite are left out.
        record: whether Gramians are recorded.
    """
    if needs == "gradients" and not record:
        return ("stream", "stack", "stack_map")
    if needs == "gradients" or skip_nonfinite or record:
        return ("stack", "stack_map")
    if needs == "norms":
        return ("layer", "stack", "stack_map")
    if needs == "gramian":
        return ("stack", "stack_map", "layer")
    return ("plain", "stack", "stack_map")


def check_engine(
    engine: str, method: str, needs: str, *, skip_nonfinite: bool = False, record: bool = False
) -> None:
    """Finds what an engine cannot do.

    Raises:
        UserError: one line that names the engine and those that can.
    """
    if engine not in ("auto", *ENGINES):
        raise UserError(
            f"multitask.engine='{engine}' is unknown; choose from auto, {', '.join(ENGINES)}"
        )
    can = allowed(needs, skip_nonfinite, record)
    asked = [f"multitask.method='{method}'"]
    asked += ["train.on_nonfinite='skip_task'"] if skip_nonfinite else []
    asked += ["multitask.record"] if record else []
    if engine != "auto" and engine not in can:
        raise UserError(
            f"multitask.engine='{engine}' cannot serve {' with '.join(asked)}; use auto, "
            f"{', '.join(can)}"
        )


def costs(
    functions: Functions,
    params: Params,
    batch: Batch,
    keys: jax.Array,
    *,
    at_once: int,
    devices: int,
    platform: str,
) -> dict[str, Cost]:
    """Predicts what each engine costs, from shapes alone.

    Time, over a plain step's 6 N P FLOPs for N tokens and P shared parameters: 2 S^2 P +
    2 S P FLOPs of the S slots' inner products and weighted sum, and 3 S P numbers that are
    written once and read twice. Memory: what the backward pass finds saved, and the gradients.

    Args:
        functions: the model's, and the slots' layout.
        params: trainable parameters, or their shapes.
        batch: shapes of a global batch, images normalised.
        keys: [S], or their shape.
        at_once: slots that stack_map has in hand.
        devices: that share the batch and the gradients.
        platform: "cpu", "gpu" or "tpu".
    """

    def losses(params: Params, batch: Batch, keys: jax.Array) -> Any:
        maps, aux = functions.encode_all(params, batch, keys)
        return slot_losses(functions, params, maps, batch)[0], aux

    def saved(params: Params, batch: Batch, keys: jax.Array) -> Any:
        return jax.vjp(lambda p: losses(p, batch, keys), params)[1]

    def idle(at_once: int) -> float:
        """How many times longer than a full device one with so many slots at once takes."""
        return max(1.0, FILLING_TOKENS[platform] / (of_slot * at_once))

    slots = batch["task"].shape[0]
    activations = _bytes(jax.eval_shape(saved, params, batch, keys)) // devices
    maps, aux = jax.eval_shape(functions.encode_all, params, batch, keys)
    of_slot = int(np.prod(maps.shape[2:-1]))
    tokens = of_slot * slots
    shared = {"encoder": params["encoder"], "decoders": params["decoders"]}
    gradient = 4 * sum(leaf.size for leaf in jax.tree.leaves(shared))
    kept = slots * gradient // devices

    arithmetic = (slots**2 + slots) / (3 * tokens)
    traffic = 3 * 4 * slots * FLOPS_PER_BYTE[platform] / (6 * tokens)
    largest = max(min(at_once, count) for count in functions.slots.values())
    # Slots that come in turn are not shared by devices: each has them all.
    in_turn = (MAP_ON_CPU if platform == "cpu" else 1.0) * devices
    extra = EXTRA_FORWARD if jax.tree.leaves(aux) else 0.0
    apart = 1 + arithmetic + traffic
    a_few = activations * devices * largest // slots
    return {
        "plain": Cost(1.0, activations + gradient),
        "layer": Cost(1 + EXTRA_FORWARD, activations + gradient),
        "stack": Cost(apart, activations + kept),
        "stack_map": Cost((apart * in_turn + extra) * idle(largest), a_few + kept),
        "stream": Cost(
            ((1 + traffic) * in_turn + extra) * idle(1),
            activations * devices // slots + 3 * gradient,
        ),
    }


def choose_engine(can: tuple[str, ...], costs: dict[str, Cost], room: int | None) -> str:
    """The fastest engine among those that can serve and fit; the smallest where none fits.

    An engine that is not exact (layer, but for the method that asks for it) is never chosen.

    Args:
        can: from `allowed`.
        costs: of the engines.
        room: bytes a device has left for it; None = not known.
    """
    exact = [engine for engine in can if engine != "layer" or can[0] == "layer"]
    if exact[0] in ("plain", "layer"):
        return exact[0]
    fits = [engine for engine in exact if room is None or costs[engine].memory <= room]
    if not fits:
        return min(exact, key=lambda engine: costs[engine].memory)
    return min(fits, key=lambda engine: costs[engine].time)


def describe(chosen: str, can: tuple[str, ...], costs: dict[str, Cost]) -> str:
    """The prediction in words, one line an engine."""
    lines = ["predicted cost of the multi-task engines:"]
    for engine in can:
        time, mib = costs[engine].time, costs[engine].memory / 2**20
        mark = "  (chosen)" if engine == chosen else ""
        lines.append(f"  {engine:<10} {time:5.2f} plain steps {mib:10,.0f} MiB a device{mark}")
    return "\n".join(lines)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
