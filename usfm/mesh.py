"""What layers and objectives know of the mesh that their program runs on, if there is one.

Under FSDP a compiler left to itself may keep parameters where they are and move the activations of
the whole batch instead. So activations are told where they lie: their images on the devices that
hold the images' slots. Parameters are then gathered, a layer at a time.
"""

import math
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

SLOTS = ("data", "fsdp")  # the axes that slots, and with them images, are spread over


def current() -> jax.sharding.AbstractMesh | None:
    """The mesh that the program runs on; None for one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def size(axis: str) -> int:
    """Devices along an axis; 1 where there is no mesh."""
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def slot_shards() -> int:
    """How many shares the slots of a batch are split into."""
    return math.prod(size(axis) for axis in SLOTS)


def lie(tree: Any, spec: P) -> Any:
    """The same arrays, lying on the mesh as a spec says."""
    if current() is None:
        return tree
    return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, spec), tree)


@jax.custom_vjp
def whole(tree: Any) -> Any:
    """Parameters, gathered onto every device; their gradient lies where the compiler likes."""
    return lie(tree, P())


whole.defvjp(lambda tree: (lie(tree, P()), None), lambda _, gradient: (gradient,))
