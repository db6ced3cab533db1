"""Compiles the training step of an experiment for devices that need not be there.

python tools/compile_check.py configs/NAME.py [--devices=8] [--config.FIELD=VALUE ...]

Prints the memory that a step takes on each device, and what devices send each other in a step, by
kind, as XLA compiles it for so many CPU devices. Nothing is run and no data is read: the tasks are
those of FM_UIA that `tasks` names. XLA's backends for GPUs and TPUs fuse and move some of these
collectives (an all-reduce of gradients becomes a reduce-scatter there), but the parameters that
are gathered, and activations that should stay where they are, are the same.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from absl import flags
from ml_collections import config_flags

from usfm import command
from usfm.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "Not needed: CONFIG is given by itself.")
_DEVICES = flags.DEFINE_integer("devices", 8, "How many devices to compile for.", lower_bound=1)


def main() -> None:
    """Compiles and prints."""
    if not _CONFIG.value:
        raise UserError("give a config file: python tools/compile_check.py configs/NAME.py")
    import jax
    import numpy as np

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", _DEVICES.value)
    from usfm import checks
    from usfm.data.slots import slots_per_type
    from usfm.tasks.fm_uia import TASKS
    from usfm.tasks.plans import select
    from usfm.training import memory, sharding
    from usfm.training.collectives import collectives, table
    from usfm.training.program import make_program
    from usfm.training.step import Own

    config = _CONFIG.value
    config.data.root = config.data.root or "not read"
    checks.check(config)
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
