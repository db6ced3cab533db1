"""Compiles a step before it is run, so that what will not fit is said before any work is lost."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any, cast

import jax
from jax.stages import Compiled
from ml_collections import ConfigDict

from usfm.data.slots import layout
from usfm.data.source import say
from usfm.errors import UserError
from usfm.training import remedies, sharding
from usfm.training.program import Program
from usfm.training.step import Own, Step


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes that a step takes on each device, as the compiler planned it.

    Attributes:
        state: the train state, which the new one replaces.
        batch: a batch, and what else goes in.
        temporaries: activations, gradients and all that is gone after a step.
        rest: metrics, and the program itself.
    """

    state: int
    batch: int
    temporaries: int
    rest: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.state + self.batch + self.temporaries + self.rest

    def __str__(self) -> str:
        return (
            f"{mib(self.total)} (state {mib(self.state)}, batch {mib(self.batch)}, "
            f"activations and gradients {mib(self.temporaries)})"
        )


def mib(size: int) -> str:
    """Bytes in words."""
    return f"{size / 2**20:,.0f} MiB"


def compile_step(
    step: Step, program: Program, config: ConfigDict, own: Own, mesh: jax.sharding.Mesh
) -> Compiled:
    """A step of a program as an executable, of which JAX keeps one for equal arguments.

    Args:
        step: of the program.
        program: of the config.
        config: the run's.
        own: placed, of a run.
        mesh: of the program.

    Raises:
        UserError: the compiler found no room; it names what would help.
    """
    jitted = cast(jax.stages.Wrapped, step)
    lowered = jitted.lower(program.abstract, abstract_batch(program, config, mesh), own)
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        # A TPU's compiler plans all memory, and says so where there is none left.
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"a step does not fit: {str(error).splitlines()[0]}. What would help:\n"
            + remedies.of(config, program.model.tasks, mesh, room(mesh))
        ) from None


def abstract_batch(
    program: Program, config: ConfigDict, mesh: jax.sharding.Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes, types and shardings of a run's batches."""
    size = (config.data.image_size, config.data.image_size)
    shapes = layout(program.model.tasks, config.train.slots, config.train.examples_per_slot, size,
                    config.data.channels)  # fmt: skip
    return sharding.abstract_batch(shapes, mesh)


def compile_steps(
    program: Program, config: ConfigDict, own: Own, mesh: jax.sharding.Mesh
) -> Mapping[Step, Compiled]:
    """The executables of all steps of a program, checked against the memory there is.

    Args:
        program: of the config.
        config: the run's.
        own: placed, of the run.
        mesh: of the program.

    Raises:
        UserError: a step will not fit; it names the three cheapest changes that would help.
    """
    found = {
        step: compile_step(step, program, config, own, mesh)
        for step in (program.step, program.recorded_step)
    }
    dearest = max(map(memory_of, found.values()), key=lambda memory: memory.total)
    limit = room(mesh)
    say(f"a step needs {dearest} of {mib(limit)} on each device")
    if dearest.total > limit:
        raise UserError(
            f"a step needs {dearest} on each device, which has {mib(limit)}. What would help:\n"
            + remedies.of(config, program.model.tasks, mesh, limit, takes=dearest.total)
        )
    return found


def memory_of(compiled: Compiled) -> Memory:
    """What an executable takes on each device."""
    analysis: Any = compiled.memory_analysis()
    state = analysis.alias_size_in_bytes
    return Memory(
        state=state,
        batch=analysis.argument_size_in_bytes - state,
        temporaries=analysis.temp_size_in_bytes,
        rest=analysis.output_size_in_bytes - state + analysis.generated_code_size_in_bytes,
    )


def room(mesh: jax.sharding.Mesh) -> int:
    """Bytes that each device has: its own, or its share of the host's."""
    device = mesh.local_devices[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # What a container may use of it.
    limit = pathlib.Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        host = min(host, int(text))
    return host // len(mesh.local_devices)
