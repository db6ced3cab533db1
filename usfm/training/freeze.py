"""Which parameters are trained, and which stay as they are.

A leaf that is frozen in all its layers is not differentiated at all, has no moments and no moving
average: the trainable part of the parameters is a tree with None in its place. Where only some of
a stack's layers are frozen the leaf is trained, with gradients and updates of zero for those.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from usfm.errors import UserError
from usfm.models.functional import path_name
from usfm.training.names import Layers, by_layer, matches, virtual_names

Params = Any
# By the path of a leaf: whether it is frozen, or bool [L] where some of its layers are.
Frozen = Mapping[str, bool | np.ndarray]

# Where an encoder has low-rank updates (LoRA, arXiv 2106.09685), they alone are trained of it, and
# the routers, which were not there before.
_LORA = r"^encoder/(?!.*/(lora_a|lora_b|router/kernel)$)"


def frozen(params: Params, patterns: Iterable[str], layers: Layers) -> Frozen:
    """What is frozen of a model.

    Args:
        params: its parameters, or their shapes.
        patterns: `optimizer.freeze`, regexes over virtual names.
        layers: of its stacks.

    Raises:
        UserError: a pattern matches no parameter, or together they match all.
    """
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    virtual = [layer for name in names for layer in virtual_names(name, layers)]
    for pattern in patterns:
        if not any(matches([pattern], name) for name in virtual):
            some = ", ".join(virtual[:: -(-len(virtual) // 5)])
            raise UserError(
                f"optimizer.freeze: {pattern!r} matches no parameter; there are, among others, "
                f"{some}"
            )
    lora = [_LORA] if any(name.endswith("/lora_a") for name in names) else []
    every = [*patterns, *lora]
    found = {name: by_layer(name, layers, lambda v: matches(every, v)) for name in names}
    if all(found[name] is True for name in names):
        raise UserError("optimizer.freeze matches every parameter: leave some to be trained")
    return found


def trained(params: Params, frozen: Frozen) -> str:
    """How many of the parameters are not frozen, in words."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    total = sum(leaf.size for _, leaf in leaves)
    still = sum(leaf.size * np.mean(frozen[path_name(path)]) for path, leaf in leaves)
    return f"{round(total - still):,} of {total:,} parameters are trained"


def split(params: Params, frozen: Frozen) -> tuple[Params, Params]:
    """The trainable and the frozen leaves, each with None in place of the other."""

    def part(wanted: bool) -> Params:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if (frozen[path_name(path)] is True) is wanted else None, params
        )

    return part(False), part(True)


def merge(trainable: Params, frozen_part: Params) -> Params:
    """The inverse of `split`, also for some of the top-level keys alone."""
    if trainable is None:
        return frozen_part
    if not isinstance(trainable, dict):
        return trainable
    return {key: merge(part, frozen_part[key]) for key, part in trainable.items()}


def hold(trainable: Params, frozen: Frozen) -> Params:
    """The same values, without a gradient in the frozen layers of stacks."""

    def leaf(path: Any, value: jax.Array) -> jax.Array:
        mask = frozen[path_name(path)]
        if not isinstance(mask, np.ndarray):
            return value
        mask = mask.reshape(-1, *[1] * (value.ndim - 1))
        return jnp.where(mask, jax.lax.stop_gradient(value), value)

    return jax.tree_util.tree_map_with_path(leaf, trainable)
