"""Weightings one after the other, and those that only change what another one sees or says."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from usfm.objectives import surgery, weighting
from usfm.objectives.weighting import Signal, State, Weighting

# What needs a Gramian needs losses too, and so on.
_NEEDS = ("nothing", "present", "losses", "norms", "gramian", "gradients")
_OTHERS: Mapping[str, Callable[..., Weighting]] = {
    "sum": weighting.alike,
    "mean": weighting.alike,
    "graddrop": weighting.graddrop,
    "rlw": weighting.rlw,
    "dwa": weighting.dwa,
    "uncertainty": weighting.uncertainty,
    "imtl_l": weighting.imtl_l,
    "famo": weighting.famo,
    "gradnorm": weighting.gradnorm,
    "gradvac": weighting.gradvac,
}
METHODS = tuple(dict.fromkeys((*surgery.METHODS, *_OTHERS)))


def options_of(method: str) -> dict[str, Any]:
    """The options of a method of METHODS, and what they are when not given."""
    if method not in _OTHERS:
        return dict(surgery.OPTIONS[method])
    parameters = inspect.signature(_OTHERS[method]).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def make(
    method: str,
    *,
    options: Mapping[str, Any] | None = None,
    static: np.ndarray | None = None,
    gramian_ema: float = 0.0,
    clip: float = 0.0,
) -> Weighting:
    """The weighting of a training step: its weights have one total for all methods.

    Args:
        method: of METHODS.
        options: of the method.
        static: weights [T] of the losses that the method is given; None = 1.
        gramian_ema: decay of the moving average of the Gramian that the method sees; 0 = none.
        clip: the largest weight, in mean weights; 0 = none.

    Raises:
        ValueError: an unknown method or option.
    """
    if method not in METHODS:
        raise ValueError(f"unknown multi-task method '{method}'; known are {', '.join(METHODS)}")
    known, given = options_of(method), dict(options or {})
    if unknown := sorted(given.keys() - known.keys()):
        raise ValueError(
            f"{method} has no option '{unknown[0]}'; its options: {', '.join(known) or 'none'}"
        )
    parts: dict[str, Weighting] = {}
    if static is not None:
        parts["static"] = weighting.static(static)
    if gramian_ema:
        parts["gramian_ema"] = averaged_gramian(gramian_ema)
    if method in _OTHERS:
        parts[method] = _OTHERS[method](**given)
    else:
        parts[method] = weighting.of_gramian(method, **given)
    if clip:
        parts["clip"] = clipped(clip)
    return chain(**parts, normalised=normalised())


def chain(**parts: Weighting) -> Weighting:
    """One weighting of several, in order; its state holds theirs by their names."""

    def init(tasks: int) -> State:
        states = {name: part.init(tasks) for name, part in parts.items()}
        return {name: state for name, state in states.items() if state}

    def update(signal: Signal, state: State) -> tuple[Signal, State]:
        new = dict(state)
        for name, part in parts.items():
            signal, own = part.update(signal, state.get(name, {}))
            new |= {name: own} if own else {}
        return signal, new

    def after(state: State, *losses_and_present: jax.Array) -> State:
        return state | {
            name: part.after(state[name], *losses_and_present)
            for name, part in parts.items()
            if part.after is not None
        }

    return Weighting(
        update,
        init,
        needs=max((part.needs for part in parts.values()), key=_NEEDS.index),
        after=after if any(part.after for part in parts.values()) else None,
    )


def averaged_gramian(decay: float) -> Weighting:
    """What follows sees a moving average of the Gramian (CR-MOGM's idea, arXiv 2104.13122).

    Each task has its own clock: M -> D M D + (1 - decay) G, with D = sqrt(decay) for the tasks
    present and 1 for the others, over the weight that has come together so far. That way it
    stays positive semidefinite. Weights that come before are in it.

    Args:
        decay: the average's share in the new one.
    """

    def init(tasks: int) -> State:
        return {"gramian": jnp.zeros((tasks, tasks)), "weight": jnp.zeros(tasks)}

    def update(signal: Signal, state: State) -> tuple[Signal, State]:
        assert signal.gramian is not None
        present = signal.present
        both = present[:, None] & present[None, :]
        keep = jnp.where(present, jnp.sqrt(decay), 1)
        gramian = state["gramian"] * keep[:, None] * keep[None, :]
        gramian = gramian + (1 - decay) * jnp.where(both, signal.gramian, 0)
        weight = state["weight"] * keep**2 + (1 - decay) * present
        size = jnp.sqrt(jnp.where(weight > 0, weight, 1))
        seen = jnp.where(both, gramian / size[:, None] / size[None, :], 0)
        return dataclasses.replace(signal, gramian=seen), {"gramian": gramian, "weight": weight}

    return Weighting(update, init, needs="norms")


def clipped(largest: float) -> Weighting:
    """No weight beyond `largest` times their mean magnitude."""

    def update(signal: Signal, state: State) -> tuple[Signal, State]:
        count = jnp.maximum(signal.present.sum(), 1)
        limit = largest * jnp.abs(signal.weights).sum() / count
        weights = jnp.clip(signal.weights, -limit, limit)
        return dataclasses.replace(signal, weights=weights), state

    return Weighting(update, needs="nothing")


def normalised() -> Weighting:
    """The one convention of all methods: |weights| sum to the number of tasks present.

    Published ones differ in that sum, which would be a hidden change of the learning rate.
    Magnitudes, because ConFIG's and IMTL-G's weights may be negative and then nearly cancel.
    """

    def update(signal: Signal, state: State) -> tuple[Signal, State]:
        total = jnp.abs(signal.weights).sum()
        factor = signal.present.sum() / jnp.where(total > 0, total, 1)
        return dataclasses.replace(signal, weights=signal.weights * factor), state

    return Weighting(update, needs="nothing")
