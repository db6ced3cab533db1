"""A slot batch as slots of half as many images: every task has two gradients at least.

Their inner product is free of the noise that a gradient's product with itself has.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from usfm.objectives.functions import Batch, Functions


def halved(
    functions: Functions, batch: Batch, keys: jax.Array
) -> tuple[Functions, Batch, jax.Array]:
    """The halves of each slot beside each other: 2 S slots of n / 2 images, for an even n.

    Args:
        functions: of S slots.
        batch: of n images a slot.
        keys: of the slots [S]; the halves of one share its.
    """
    images = batch["valid"].shape[1]

    def halve(name: str, array: jax.Array) -> jax.Array:
        if name == "task":
            return jnp.repeat(array, 2)
        return array.reshape(2 * array.shape[0], images // 2, *array.shape[2:])

    slots = {kind: 2 * count for kind, count in functions.slots.items()}
    halves = {name: halve(name, array) for name, array in batch.items()}
    return dataclasses.replace(functions, slots=slots), halves, jnp.repeat(keys, 2)


def as_slots(aux: Any) -> Any:
    """What the encoder says of halves, leaves [2 S, layers, n / 2, ...], as [S, layers, n, ...]."""

    def join(leaf: jax.Array) -> jax.Array:
        pairs = jnp.moveaxis(leaf.reshape(-1, 2, *leaf.shape[1:]), 1, 2)
        return pairs.reshape(-1, leaf.shape[1], 2 * leaf.shape[2], *leaf.shape[3:])

    return jax.tree.map(join, aux)
