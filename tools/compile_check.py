"""Compiles the training step of an experiment for devices that need not be there.

python tools/compile_check.py configs/NAME.py [--devices=8] [--config.FIELD=VALUE ...]

Prints the memory that a step takes on each device, and what devices send each other in a step, by
kind, as XLA compiles it for so many CPU devices. Nothing is run and no data is read: the tasks are
those of FM_UIA that `tasks` names. XLA's backends for GPUs and TPUs fuse and move some of these
collectives (an all-reduce of gradients becomes a reduce-scatter there), but the parameters that
are gathered, and activations that should stay where they are, are the same.
"""

import collections
import dataclasses
import math
import pathlib
import re
import sys
from collections.abc import Iterator

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from absl import flags
from ml_collections import config_flags

from usfm import command
from usfm.errors import UserError

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4,
          "s64": 8, "u64": 8, "f64": 8}  # fmt: skip

_HEAD = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*\) -> .* \{$")
_COLLECTIVE = re.compile(rf" = (?P<shape>.*?) (?P<kind>{'|'.join(KINDS)})\(")
_ARRAY = re.compile(r"(?P<type>[a-z]+\d*)\[(?P<shape>[\d,]*)\]")
_CALLED = re.compile(r"(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')
_ORIGIN = re.compile(r'op_name="([^"]*)"')

_CONFIG = config_flags.DEFINE_config_file("config", None, "Not needed: CONFIG is given by itself.")
_DEVICES = flags.DEFINE_integer("devices", 8, "How many devices to compile for.", lower_bound=1)


@dataclasses.dataclass(frozen=True)
class Collective:
    """An exchange between devices.

    Attributes:
        kind: one of KINDS.
        shapes: of what each device has after it.
        size: bytes of that.
        times: how often it comes in a step.
        origin: the operation that it serves.
    """

    kind: str
    shapes: str
    size: int
    times: int
    origin: str


def collectives(hlo: str) -> Iterator[Collective]:
    """The collectives of a compiled program, from its text.

    Args:
        hlo: of an SPMD program, after XLA's optimizations.
    """
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in hlo.splitlines():
        if head := _HEAD.match(line):
            name = head["name"]
            computations[name] = []
            entry = name if head["entry"] else entry
        elif name:
            computations[name].append(line)
    yield from _of(computations, entry, 1)


def _of(computations: dict[str, list[str]], name: str, times: int) -> Iterator[Collective]:
    """Those of a computation that is called so often, and of what it calls."""
    for line in computations[name]:
        if found := _COLLECTIVE.search(line):
            arrays = [
                (array["type"], [int(size) for size in array["shape"].split(",") if size])
                for array in _ARRAY.finditer(found["shape"])
            ]
            size = sum(_BYTES[kind] * math.prod(shape) for kind, shape in arrays)
            shapes = ", ".join(f"{kind}{shape}" for kind, shape in arrays[:3])
            shapes += f", and {len(arrays) - 3} more" if len(arrays) > 3 else ""
            origin = _ORIGIN.search(line)
            yield Collective(found["kind"], shapes, size, times, origin[1] if origin else "")
            continue
        called = _CALLED.findall(line)
        for branches in _BRANCHES.findall(line):
            called += [branch.strip().lstrip("%") for branch in branches.split(",")]
        trips = _TRIPS.search(line)
        for inner in called:
            yield from _of(computations, inner, times * int(trips[1]) if trips else times)


def table(found: list[Collective], largest: int = 8) -> str:
    """How often each kind comes and what it moves, and the largest ones."""
    count: collections.Counter[str] = collections.Counter()
    size: collections.Counter[str] = collections.Counter()
    for one in found:
        count[one.kind] += one.times
        size[one.kind] += one.times * one.size
    lines = [f"{'collective':<20} {'a step':>8} {'MiB a device':>14}"]
    lines += [f"{kind:<20} {count[kind]:>8,} {size[kind] / 2**20:>14,.2f}"
              for kind in KINDS if count[kind]]  # fmt: skip
    lines += ["", "the largest:"]
    for one in sorted(found, key=lambda one: -one.times * one.size)[:largest]:
        lines.append(
            f"  {one.times} x {one.size / 2**20:.2f} MiB  {one.kind} {one.shapes}  {one.origin}"
        )
    return "\n".join(lines if found else ["no collectives"])


def main() -> None:
    """Compiles and prints."""
    if not _CONFIG.value:
        raise UserError("give a config file: python tools/compile_check.py configs/NAME.py")
    import jax
    import numpy as np

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", _DEVICES.value)
    from usfm import config as usfm_config
    from usfm.data.slots import slots_per_type
    from usfm.tasks.fm_uia import TASKS
    from usfm.tasks.plans import select
    from usfm.training import memory, sharding
    from usfm.training.program import make_program
    from usfm.training.step import Own

    config = _CONFIG.value
    config.data.root = config.data.root or "not read"
    usfm_config.check(config)
    tasks = select(list(TASKS.values()), config.tasks)
    slots = slots_per_type(tasks, None, config.train.slots)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_slots(config.train.slots, mesh)
    with jax.set_mesh(mesh):
        program = make_program(config, tasks, slots, mesh)
        own = sharding.place_everywhere(Own(np.uint32(0)), mesh)
        compiled = memory.compile_step(program.recorded_step, program, config, own, mesh)
    print(sharding.table(program.abstract.params, mesh))
    print(f"\na step takes {memory.memory_of(compiled)} on each device\n")
    print(table(list(collectives(str(compiled.as_text())))))


if __name__ == "__main__":
    # config_flags reads sys.argv itself, so that is where CONFIG has to become --config=CONFIG.
    if sys.argv[1:] and not sys.argv[1].startswith("-"):
        sys.argv[1] = f"--config={sys.argv[1]}"
    command.run(main)
