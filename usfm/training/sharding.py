"""Where every array lives: one mesh, rules by parameter path, one default.

A mesh has three axes: `data` (slots are spread over it), `fsdp` (slots and parameters are), and
`expert`. All of it is jax.jit over NamedSharding with Auto axes; the compiler places collectives.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from usfm import mesh as meshes
from usfm.errors import UserError
from usfm.models.functional import path_name

SLOTS = P(meshes.SLOTS)  # the leading axis of every array of a batch
# (regex over the parameter's path, spec), the first match wins; what matches none is sharded over
# fsdp along its largest divisible dimension. An axis that does not divide a dimension is left out.
RULES: tuple[tuple[str, P], ...] = (
    (r"moe_blocks/mlp/(gate|up|down)/(kernel|lora_a)$", P(None, "expert", "fsdp")),
    (r"moe_blocks/mlp/(gate|up|down)/lora_b$", P(None, "expert", None, "fsdp")),
    (r"moe_blocks/mlp/(gate|up|down)/bias$", P(None, "expert")),
)
# Smaller arrays are replicated: gathering them costs more than they take.
MIN_SIZE = 2**13


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh (data, fsdp, expert) of the given sizes; one of them may be -1, the rest.

    Raises:
        UserError: the sizes do not make the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    axes = ("data", "fsdp", "expert")
    shape = [sizes[axis] for axis in axes]
    asked = "x".join(str(size) for size in shape)
    if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
        raise UserError(f"mesh {asked}: sizes are 1 or more, and at most one is -1 (the rest)")
    known = math.prod(size for size in shape if size != -1)
    if len(devices) % known or (-1 not in shape and known != len(devices)):
        raise UserError(
            f"mesh {asked} does not fit {len(devices)} devices: mesh.data, mesh.fsdp and "
            "mesh.expert must multiply to their number (-1 = the rest)"
        )
    shape = [len(devices) // known if size == -1 else size for size in shape]
    return jax.make_mesh(tuple(shape), axes, axis_types=(AxisType.Auto,) * 3, devices=devices)


def make_own_mesh(sizes: Mapping[str, int]) -> Mesh:
    """The mesh of this process alone, for work that is shared out by rows instead of devices.

    It is that of make_mesh where there is one process; of several, parameters are sharded over as
    many devices of this process as it has of fsdp.
    """
    if jax.process_count() == 1:
        return make_mesh(sizes)
    devices = jax.local_devices()
    fsdp = len(devices) if sizes["fsdp"] == -1 else math.gcd(sizes["fsdp"], len(devices))
    return make_mesh({"data": -1, "fsdp": fsdp, "expert": 1}, devices)


def slot_shards(mesh: Mesh) -> int:
    """How many shares the slots of a batch are split into."""
    return math.prod(mesh.shape[axis] for axis in meshes.SLOTS)


def check_slots(slots: int, mesh: Mesh) -> None:
    """Finds slots that the devices cannot share.

    Raises:
        UserError: their number is no multiple of the devices that share them.
    """
    if slots % slot_shards(mesh):
        raise UserError(
            f"train.slots={slots} cannot be shared by {slot_shards(mesh)} devices "
            "(mesh.data x mesh.fsdp): give a multiple"
        )


def spec_of(name: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The spec of one array by its path and shape."""
    for pattern, spec in RULES:
        if re.search(pattern, name):
            return P(*(axis if axis and size % mesh.shape[axis] == 0 else None
                       for axis, size in zip(spec, shape, strict=False)))  # fmt: skip
    shards = mesh.shape["fsdp"]
    divisible = [size for size in shape if size % shards == 0]
    if shards == 1 or not divisible or math.prod(shape) < MIN_SIZE:
        return P()
    axis = shape.index(max(divisible))
    return P(*[None] * axis, "fsdp")


def shardings(tree: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every leaf of a tree of arrays or shapes.

    Optimizer moments carry the path of their parameter as a suffix of their own, and have its
    shape: they are placed with it.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec_of(path_name(path), leaf.shape, mesh)), tree
    )


def abstract(make: Callable[[], Any], mesh: Mesh) -> Any:
    """Shapes, types and shardings of the arrays that `make` returns."""
    shapes = jax.eval_shape(make)
    return jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        shapes,
        shardings(shapes, mesh),
    )


def build(make: Callable[[], Any], mesh: Mesh) -> Any:
    """What `make` returns, every device making its own part."""
    return builder(make, abstract(make, mesh))()


def builder(make: Callable[..., Any], placed: Any) -> Callable[..., Any]:
    """`make` as a program in which every device makes its own part, as `abstract` placed them."""
    out = jax.tree.map(lambda leaf: leaf.sharding, placed)
    # It runs seldom. On a CPU, random numbers take XLA ten seconds to compile well, or two.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(make, out_shardings=out, compiler_options=options)


def abstract_batch(
    layout: Mapping[str, tuple[tuple[int, ...], type]], mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a global batch on the mesh, from slots.layout."""
    sharding = NamedSharding(mesh, SLOTS)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, dtype) in layout.items()
    }


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's slots of a batch onto the mesh, as one global batch."""
    sharding = NamedSharding(mesh, SLOTS)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def place_everywhere(tree: Any, mesh: Mesh) -> Any:
    """Host arrays, equal in all processes, whole onto every device of the mesh."""
    whole = NamedSharding(mesh, P())
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(whole, np.asarray(leaf)), tree
    )


def brought(tree: Any, mesh: Mesh) -> Any:
    """What lies on all devices of a run, placed on this process's own mesh."""
    if jax.process_count() == 1:
        return tree
    everywhere = NamedSharding(jax.tree.leaves(tree)[0].sharding.mesh, P())
    whole = jax.jit(lambda leaves: leaves, out_shardings=everywhere)(tree)
    local = jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), whole)
    return jax.device_put(local, shardings(local, mesh))


def table(params: Any, mesh: Mesh) -> str:
    """One line a parameter: path, shape, spec, bytes on each device."""
    lines = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        spec = spec_of(name, leaf.shape, mesh)
        shard = NamedSharding(mesh, spec).shard_shape(leaf.shape)
        size = math.prod(shard) * leaf.dtype.itemsize
        lines.append(f"  {name:<44} {leaf.shape!s:<20} {spec!s:<24} {size:>12,} B")
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    shape = "x".join(str(size) for size in mesh.shape.values())
    head = f"{total:,} parameters on a mesh {shape} (data x fsdp x expert)"
    return "\n".join([head, *lines, *_whole(params, mesh)])


def _whole(params: Any, mesh: Mesh) -> list[str]:
    """A warning of large parameters that every device has whole, though the mesh has fsdp."""
    if mesh.shape["fsdp"] == 1:
        return []
    large = [
        f"{path_name(path)} ({leaf.size * leaf.dtype.itemsize:,} B)"
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if leaf.size >= MIN_SIZE
        and NamedSharding(mesh, spec_of(path_name(path), leaf.shape, mesh)).is_fully_replicated
    ]
    if not large:
        return []
    return [
        "warning: large, and whole on every device, for mesh.fsdp="
        f"{mesh.shape['fsdp']} divides none of their dimensions: {', '.join(large)}"
    ]


def bytes_on_a_device(tree: Any) -> int:
    """What arrays, or shapes with shardings, take on each device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
