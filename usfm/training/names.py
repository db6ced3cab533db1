"""Names of parameters, layer by layer.

Equal layers are stacked: encoder/blocks/mlp/up/kernel holds that matrix of every block. Rules
about parameters (which are frozen, how fast they learn) see it under the virtual name of each of
its layers, encoder/block_00/mlp/up/kernel and so on, and may answer differently for each.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import numpy as np

# By the path of a stack, the numbers of the layers that it holds, as M2DINO.layers says:
# {"encoder/blocks": (0, 1, 2), "encoder/moe_blocks": (3, 4)}.
Layers = Mapping[str, tuple[int, ...]]

Answer = TypeVar("Answer", bool, int, float)


def virtual_names(name: str, layers: Layers) -> tuple[str, ...]:
    """The names of a leaf's layers, in the order of its leading axis; its own if unstacked."""
    for stack, numbers in layers.items():
        if name.startswith(f"{stack}/"):
            parent, rest = stack.rpartition("/")[0], name.removeprefix(stack)
            return tuple(f"{parent}/block_{number:02d}{rest}" for number in numbers)
    return (name,)


def by_layer(name: str, layers: Layers, rule: Callable[[str], Answer]) -> Answer | np.ndarray:
    """What a rule over virtual names says of a leaf.

    Returns:
        its answer where it is one for all layers, else an array [L] of answers.
    """
    answers = [rule(virtual) for virtual in virtual_names(name, layers)]
    return answers[0] if len(set(answers)) == 1 else np.array(answers)


def matches(patterns: Iterable[str], name: str) -> bool:
    """Whether one of the regexes is found in a virtual name."""
    return any(re.search(pattern, name) for pattern in patterns)
