"""The real experiments are compiled for accelerators that are not there, and run in bfloat16."""

import importlib.util
import pathlib
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from usfm import config as usfm_config
from usfm.data.slots import layout, slots_per_type
from usfm.models import dinov3
from usfm.tasks.fm_uia import TASKS
from usfm.training import sharding
from usfm.training.program import make_program
from usfm.training.step import Own

EXPERIMENT = pathlib.Path(__file__).parents[2] / "configs/fm_uia.py"
ALL = tuple(TASKS[name] for name in sorted(TASKS))
FLASH = ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward")


@pytest.fixture
def accelerator(monkeypatch):
    """A host with cuDNN, as far as tracing looks for one."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91100)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda capability: False)
    monkeypatch.setattr(dinov3, "_has_cudnn", lambda dtype: dtype == jnp.bfloat16)


def experiment(**fields):
    spec = importlib.util.spec_from_file_location("experiment", EXPERIMENT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.update_from_flattened_dict(fields)
    return config


def made(config, tasks):
    """The step, and shapes of its arguments, on one device."""
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "expert": 1}, jax.devices()[:1])
    slots = slots_per_type(tasks, None, config.train.slots)
    program = make_program(config, tasks, slots, mesh)
    size = (config.data.image_size, config.data.image_size)
    of = layout(tasks, config.train.slots, config.train.examples_per_slot, size, 3)
    batch = {name: jax.ShapeDtypeStruct(*array) for name, array in of.items()}
    state = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), program.abstract)
    return program, (state, batch, Own(np.uint32(0))), mesh


@pytest.mark.parametrize("experts", [4, pytest.param(0, marks=pytest.mark.long)])
def test_the_step_of_fm_uia_lowers_for_tpus_and_gpus(accelerator, experts):
    config = experiment(**{"model.moe.experts": experts})
    assert (config.model.variant, config.model.dtype) == ("vits16", "bfloat16")
    program, arguments, mesh = made(config, ALL)
    unchecked = [jax.export.DisabledSafetyCheck.custom_call(name) for name in FLASH]
    with jax.set_mesh(mesh):
        texts = {
            platform: jax.export.export(
                cast(jax.stages.Wrapped, program.step),
                platforms=[platform],
                disabled_checks=unchecked,
            )(*arguments).mlir_module()
            for platform in ("tpu", "cuda")
        }
    for name in FLASH:
        assert f"@{name}(" in texts["cuda"]
        assert name not in texts["tpu"]


def test_a_step_in_bfloat16_is_that_in_float32_but_for_rounding():
    tasks = tuple(TASKS[name] for name in ("breast_2cls", "breast_3cls"))
    losses = {}
    for dtype in ("float32", "bfloat16"):
        config = usfm_config.debug(experiment())
        small = {f"model.decoder_width.{kind}": 8 for kind in config.model.decoder_width}
        small |= {"data.image_size": 32, "data.channels": 3, "train.slots": 2}
        small |= {"train.examples_per_slot": 2, "model.moe.experts": 2, "model.dtype": dtype}
        config.update_from_flattened_dict(small)
        program, (_, shapes, own), mesh = made(config, tasks)
        rng = np.random.default_rng(0)
        batch = {name: rng.uniform(0.2, 1.9, a.shape).astype(a.dtype) for name, a in shapes.items()}
        batch["image"] = rng.integers(0, 256, batch["image"].shape, np.uint8)
        batch["task"] = np.array([1, 0], np.int32)
        with jax.set_mesh(mesh):
            state = program.start(own.seed)
            state, metrics = program.step(state, sharding.place_batch(batch, mesh), own)
        assert metrics["ok"]
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))
        losses[dtype] = np.asarray(metrics["losses"])
    # bfloat16 has 8 bits, and a loss comes after some dozen roundings.
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.03)
    assert (losses["bfloat16"] != losses["float32"]).all()
