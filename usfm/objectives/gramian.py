"""Inner products of task gradients: all that most surgery methods ask of them."""

import jax
import jax.numpy as jnp

from usfm.objectives.functions import Functions, Params
from usfm.objectives.task_gradients import SlotGradients


def gramian(gradients: SlotGradients, functions: Functions) -> jax.Array:
    """[S, S] inner products of the slots' gradients of the shared parameters.

    A decoder is shared among the tasks of its type alone, and adds to their block only.
    """
    slots = gradients.sums.shape[0]
    result = jnp.zeros((slots, slots)) + _products(gradients.encoder)
    start = 0
    for kind, count in functions.slots.items():
        stop = start + count
        result = result.at[start:stop, start:stop].add(_products(gradients.decoders[kind]))
        start = stop
    return result


def _products(stack: Params) -> jax.Array | float:
    """[S, S], summed over the leaves; 0 where none is trained."""
    # Accelerators would round the factors, and a conflict is a matter of sign.
    leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(stack)]
    products = [jnp.matmul(leaf, leaf.T, precision="highest") for leaf in leaves]
    return jnp.stack(products).sum(0) if products else 0.0
