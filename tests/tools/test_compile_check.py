import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from usfm import mesh as meshes
from usfm.training import sharding
from usfm.training.collectives import Collective, collectives, table

TOOL = pathlib.Path(__file__).parents[2] / "tools/compile_check.py"

# As XLA prints a program that calls a fusion and turns a loop five times.
HLO = """\
HloModule jit_step, is_scheduled=true

%body.1 (arg: (s32[], f32[8])) -> (s32[], f32[8]) {
  %all-gather.1 = f32[8,16]{1,0} all-gather(%p), channel_id=1, metadata={op_name="jit(step)/dot"}
  ROOT %tuple = (s32[], f32[8]) tuple(%i, %x)
}

%cond.1 (arg: (s32[], f32[8])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %while.1 = (s32[], f32[8]) while(%t), condition=%cond.1, body=%body.1, \
backend_config={"known_trip_count":{"n":"5"}}
  ROOT %all-reduce.2 = (bf16[3]{0}, /*index=1*/f32[2,2]{1,0}) all-reduce(%a, %b), channel_id=2
}
"""


def test_collectives_are_counted_as_often_as_their_loop_turns():
    found = list(collectives(HLO))
    assert found == [
        Collective("all-gather", "f32[8, 16]", 8 * 16 * 4, 5, "jit(step)/dot"),
        Collective("all-reduce", "bf16[3], f32[2, 2]", 3 * 2 + 4 * 4, 1, ""),
    ]
    lines = table(found).splitlines()
    assert lines[1].split() == ["all-gather", "5", "0.00"]
    assert lines[2].split() == ["all-reduce", "1", "0.00"]
    assert lines[5] == "  5 x 0.00 MiB  all-gather f32[8, 16]  jit(step)/dot"
    assert table([]) == "no collectives"


def test_a_program_that_gathers_its_layers_is_seen_to():
    mesh = sharding.make_mesh({"data": 1, "fsdp": 8, "expert": 1})
    layers = jax.ShapeDtypeStruct((3, 64, 64), jnp.float32,
                                  sharding=NamedSharding(mesh, P(None, None, "fsdp")))  # fmt: skip
    x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=NamedSharding(mesh, sharding.SLOTS))
    with jax.set_mesh(mesh):
        run = jax.jit(lambda w, x: jax.lax.scan(
            lambda x, w: (jnp.tanh(x @ meshes.whole(w)), None), x, w)[0])  # fmt: skip
        text = str(run.lower(layers, x).compile().as_text())
    found = list(collectives(text))
    assert {one.kind for one in found} == {"all-gather"}
    assert sum(one.times * one.size for one in found) == 3 * 64 * 64 * 4


@pytest.mark.long
def test_the_tool_compiles_an_experiment_for_devices_that_are_not_there(tmp_path):
    done = subprocess.run(
        [sys.executable, str(TOOL), f"{TOOL.parents[1]}/configs/fm_uia.py:debug", "--devices=4",
         "--config.mesh.data=1", "--config.mesh.fsdp=4", "--config.train.slots=4",
         "--config.tasks=breast_2cls", "--config.data.image_size=32"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "on a mesh 1x4x1" in done.stdout
    assert "a step takes" in done.stdout
    assert "all-gather" in done.stdout
