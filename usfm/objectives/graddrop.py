"""GradDrop (Chen et al. 2020, arXiv 2010.06808, algorithm 1): one sign a coordinate.

Where task gradients disagree about a coordinate, the positive ones are kept with probability
P = (1 + sum g / sum |g|) / 2, else the negative ones. That needs only the sum over tasks of the
positive parts and that of the negative parts: two accumulators of the parameters' size, whatever
the number of tasks. Coordinates about which all agree get the sum.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from usfm.objectives.functions import Batch, Functions, Params
from usfm.objectives.layers import together
from usfm.objectives.task_gradients import auxiliary_cotangents, one_slot_gradient

SHARED = ("encoder", "decoders")


@dataclasses.dataclass(frozen=True)
class Streamed:
    """What the slots say beside their gradients.

    Attributes:
        sums, counts: float32 [S].
        aux: what the encoder says beside its maps, every leaf [S, ...].
        broken: bool [T], tasks whose gradient is not finite.
    """

    sums: jax.Array
    counts: jax.Array
    aux: Any
    broken: jax.Array


def of_stack(stack: Params, scale: jax.Array, key: jax.Array) -> Params:
    """The update of slots' gradients that are at hand.

    Args:
        stack: every leaf [S, ...]; layers that are apart come together.
        scale: float32 [T, S], what a slot's gradient counts in its task's; 0 for other tasks'.
        key: of the draws.
    """
    tasks = jax.tree.map(
        lambda g: jnp.einsum("ts,s...->t...", scale, g, precision="highest"), stack
    )
    positive = jax.tree.map(lambda g: jnp.maximum(g, 0).sum(0), tasks)
    negative = jax.tree.map(lambda g: jnp.maximum(-g, 0).sum(0), tasks)
    return drawn(together(positive), together(negative), key)


def drawn(positive: Params, negative: Params, key: jax.Array) -> Params:
    """One sign a coordinate, from the sums of positive and of negative parts (both at least 0)."""
    leaves, structure = jax.tree.flatten(positive)
    out = []
    for number, (p, n) in enumerate(zip(leaves, jax.tree.leaves(negative), strict=True)):
        draw = jax.random.uniform(jax.random.fold_in(key, number), p.shape, p.dtype)
        # P = p / (p + n) > draw, without a division by 0; draws are below 1.
        out.append(jnp.where(p > draw * (p + n), p, -n))
    return jax.tree.unflatten(structure, out)


def streamed(
    functions: Functions,
    params: Params,
    batch: Batch,
    keys: jax.Array,
    weights: jax.Array,
    skip_nonfinite: bool,
) -> tuple[tuple[Params, Params], Params, Streamed]:
    """The two accumulators, slot after slot (the "stream" engine).

    Args:
        functions: the model's functions and the slots' layout.
        params: as for multitask.answer.
        batch: likewise.
        keys: of the slots [S].
        weights: float32 [T] of the tasks' gradients.
        skip_nonfinite: whether to leave out tasks whose gradient is not finite.

    Returns:
        the sums of positive and of negative parts, with the keys encoder and decoders; the plain
        gradients of heads and, where there is one, task_embedding; and what the slots say.
    """
    pull = auxiliary_cotangents(functions, params, batch, keys, 1)
    zeros = jax.tree.map(jnp.zeros_like, params)
    shared = {name: zeros[name] for name in SHARED}
    plain = {name: part for name, part in zeros.items() if name not in SHARED}
    done = (shared, shared, plain, jnp.zeros(functions.tasks, bool))
    close = functools.partial(_with_task, weights=weights, skip_nonfinite=skip_nonfinite)
    said = []
    for kind in functions.slots:
        gradient = one_slot_gradient(functions, params, kind)

        def step(state: Any, slot: Any, gradient: Any = gradient) -> Any:
            done, task, count, collected = state
            said, grads = gradient(slot)
            new = slot[0]["task"] != task
            done = jax.lax.cond(new, close, lambda done, *_: done, *state)
            collected = jax.tree.map(lambda a, g: jnp.where(new, 0, a) + g, collected, grads)
            return (done, slot[0]["task"], jnp.where(new, 0, count) + said[1], collected), said

        slots = functions.of_type((dict(batch), keys, pull), kind)
        order = jnp.argsort(slots[0]["task"])  # the slots of a task come one after the other
        ordered = _taken(slots, order)
        first = _taken(ordered, jnp.int32(0))
        nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradient, first)[1])
        state = (done, first[0]["task"], jnp.zeros(()), nothing)
        state, of_slots = jax.lax.scan(step, state, ordered)
        done = close(*state)
        said.append(_taken(of_slots, jnp.argsort(order)))
    sums, counts, aux = jax.tree.map(lambda *kinds: jnp.concatenate(kinds), *said)
    positive, negative, plain, broken = done
    return (positive, negative), plain, Streamed(sums, counts, aux, broken)


def _with_task(
    done: Any,
    task: jax.Array,
    count: jax.Array,
    collected: Params,
    weights: jax.Array,
    skip_nonfinite: bool,
) -> Any:
    """Adds a task that is complete to `done`: (positive, negative, plain, broken)."""
    positive, negative, plain, broken = done
    mean = jax.tree.map(lambda g: g / jnp.maximum(count, 1), collected)
    fine = jnp.isfinite(sum(jnp.vdot(g, g) for g in jax.tree.leaves(mean)))
    if skip_nonfinite:
        mean = jax.tree.map(lambda g: jnp.where(fine, g, 0), mean)
    signed = jax.tree.map(lambda g: weights[task] * g, {name: mean[name] for name in SHARED})
    own = {name: part for name, part in mean.items() if name not in SHARED}
    return (
        _added(positive, jax.tree.map(lambda g: jnp.maximum(g, 0), signed)),
        _added(negative, jax.tree.map(lambda g: jnp.maximum(-g, 0), signed)),
        _added(plain, own),
        broken.at[task].max(~fine),
    )


def _taken(tree: Any, order: jax.Array) -> Any:
    return jax.tree.map(lambda a: a[order], tree)


def _added(total: Any, more: Any) -> Any:
    """Adds the leaves that `more` has: those of one type, of all types' decoders and heads."""
    if not isinstance(more, dict):
        return None if more is None else total + more  # None: not trained
    return {**total, **{name: _added(total[name], part) for name, part in more.items()}}
