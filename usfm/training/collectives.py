"""What the devices of a program send each other, read from its HLO."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

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
