"""What a step needs is known before the first of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usfm import config as usfm_config
from usfm.data.folder import read_folder
from usfm.data.source import open_splits
from usfm.errors import UserError
from usfm.tasks.fm_uia import TASKS
from usfm.training import memory, remedies, sharding
from usfm.training import train as train_module
from usfm.training.program import make_program

SOME = tuple(TASKS[name] for name in ("FUGC", "breast_2cls", "lung_2cls"))


def test_a_step_that_will_not_fit_is_refused_before_anything_is_begun(
    one_device_mesh, make_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(memory, "room", lambda mesh: 50 * 2**20)
    config = make_config(**{"train.examples_per_slot": 2})
    folder = read_folder(config.data.root, tasks=config.tasks)
    with pytest.raises(UserError) as caught:
        train_module.train(config, tmp_path, folder, open_splits(config, folder))
    first, *helps = str(caught.value).splitlines()
    assert first.startswith("a step needs ")
    assert first.endswith(" on each device, which has 50 MiB. What would help:")
    assert 1 <= len(helps) <= 3
    assert all(line.startswith("  --config.") for line in helps)
    assert not (tmp_path / "config.json").exists()
    assert not (tmp_path / "metrics.jsonl").exists()


def wide():
    """Wide images and a small model: mostly activations."""
    config = usfm_config.debug(usfm_config.base())
    config.update_from_flattened_dict({"train.slots": 8, "model.variant": "tiny"})
    return config


def test_remedies_come_by_their_price_and_say_whether_they_are_enough():
    mesh = sharding.make_mesh({"data": 8, "fsdp": 1, "expert": 1})
    takes = 2**30
    lines = remedies.of(wide(), SOME, mesh, round(0.6 * takes), takes=takes).splitlines()
    changes = [line.split(": ")[0].strip() for line in lines]
    assert changes[0] == "--config.mesh.data=1 --config.mesh.fsdp=8 --config.mesh.expert=1"
    assert changes[1] in ("--config.train.accumulate=2", "--config.train.accumulate=4")
    assert changes[2] == "--config.model.remat=full"
    for line in lines:
        size = int(line.split("about ")[1].split(" MiB")[0].replace(",", ""))
        assert size < 1024
        assert (", fits;" in line) == (size <= 0.6 * 1024)


def test_vitb16_of_eight_experts_is_an_eighth_on_each_of_eight_devices():
    config = usfm_config.base()
    config.update_from_flattened_dict({"model.variant": "vitb16", "model.moe.experts": 8})
    mesh = sharding.make_mesh({"data": 1, "fsdp": 8, "expert": 1})
    state = make_program(config, tuple(TASKS.values()), {}, mesh).abstract
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) > 280e6
    assert sharding.bytes_on_a_device(state) / (whole / 8) == pytest.approx(1, abs=0.05)


def test_what_a_tiny_state_takes_is_what_its_shapes_say():
    config = wide()
    mesh = sharding.make_mesh({"data": 1, "fsdp": 8, "expert": 1})
    program = make_program(config, SOME, {}, mesh)
    state = program.start(np.uint32(0))
    taken = dict.fromkeys(mesh.devices.flat, 0)
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            taken[shard.device] += shard.data.nbytes
    assert set(taken.values()) == {sharding.bytes_on_a_device(program.abstract)}
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert max(taken.values()) / (whole / 8) == pytest.approx(1, abs=0.05)


def test_parameters_that_stay_whole_though_they_are_large_are_named():
    mesh = sharding.make_mesh({"data": 1, "fsdp": 8, "expert": 1})
    shape = jax.ShapeDtypeStruct
    params = {"odd": {"kernel": shape((1001, 1001), jnp.float32)},
              "even": {"kernel": shape((1024, 1024), jnp.float32)},
              "small": {"bias": shape((999,), jnp.float32)}}  # fmt: skip
    warning = sharding.table(params, mesh).splitlines()[-1]
    assert warning.startswith("warning: large, and whole on every device")
    assert warning.endswith(": odd/kernel (4,008,004 B)")
    alone = sharding.make_mesh({"data": 8, "fsdp": 1, "expert": 1})
    assert "warning" not in sharding.table(params, alone)
