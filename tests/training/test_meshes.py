"""That a mesh of any sizes learns what one device learns, and what lies where on it."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from usfm import config as usfm_config
from usfm import processes
from usfm.errors import UserError
from usfm.models import dinov3
from usfm.models.dinov3 import Variant
from usfm.models.functional import path_name
from usfm.objectives import chain, multitask
from usfm.objectives.routing import RouterLoss
from usfm.tasks import TYPES, Task
from usfm.training import checkpoint, memory, room, sharding
from usfm.training.checkpoint import Checkpoints
from usfm.training.collectives import collectives
from usfm.training.program import make_program
from usfm.training.step import Own, functions_of

ROOT = pathlib.Path(__file__).parents[2]
TASKS = (
    Task("cls2", "classification", num_classes=2),
    Task("cls3", "classification", num_classes=3, flip_ok=False),
)
# One type, whose decoder is quick to compile; uneven slots of two are in test_spread_slots.py.
SLOTS = {"classification": 8}
MESHES = ((8, 1, 1), (2, 4, 1), (1, 8, 1), (2, 2, 2))
STEPS = 20
# Three plain layers and a mixture of all experts.
SMALL = Variant(64, 4, 2, 128, layer_scale=0.5)
UP = "encoder/blocks/mlp/up/kernel"  # [3, 64, 128]
EXPERTS = "encoder/moe_blocks/mlp/up/kernel"  # [1, 4, 64, 128]
SHARDS = {  # of the two
    (1, 1, 1): ((3, 64, 128), (1, 4, 64, 128)),
    (1, 2, 1): ((3, 64, 64), (1, 4, 32, 128)),
    (8, 1, 1): ((3, 64, 128), (1, 4, 64, 128)),
    (2, 4, 1): ((3, 64, 32), (1, 4, 16, 128)),
    (1, 8, 1): ((3, 64, 16), (1, 4, 8, 128)),
    (2, 2, 2): ((3, 64, 64), (1, 2, 32, 128)),
}
# One process makes what these tests share.
pytestmark = pytest.mark.xdist_group("meshes")


@contextlib.contextmanager
def small_encoder() -> Iterator[None]:
    """An encoder of which all matrices are spread though they are small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(dinov3.VARIANTS, "small", SMALL)
        patch.setattr(sharding, "MIN_SIZE", 2**10)
        yield


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    with small_encoder():
        yield


def make_config(**fields):
    config = usfm_config.base()
    small = {f"model.decoder_width.{kind}": 16 for kind in TYPES}
    small |= {"model.variant": "small", "model.dtype": "float32", "model.moe.layers": (3,)}
    small |= {"train.slots": 8, "train.examples_per_slot": 2, "data.image_size": 32,
              "data.channels": 1, "train.steps": STEPS}  # fmt: skip
    config.update_from_flattened_dict(small | fields)
    return config


def make_mesh(data: int, fsdp: int, expert: int) -> jax.sharding.Mesh:
    sizes = {"data": data, "fsdp": fsdp, "expert": expert}
    return sharding.make_mesh(sizes, jax.devices()[: data * fsdp * expert])


def make_batch(step: int) -> dict[str, np.ndarray]:
    """As the pipeline makes it: not all images valid, each step another mix."""
    rng = np.random.default_rng(step)
    return {
        "image": rng.integers(0, 256, (8, 2, 32, 32, 1), np.uint8),
        "task": np.array([0, 0, 1, 1, 0, 1, 0, step % 2], np.int32),
        "row": np.zeros((8, 2), np.int32),
        "valid": rng.uniform(size=(8, 2)) < 0.8,
        "label": rng.integers(0, 2, (8, 2)).astype(np.int32),
    }


def named(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): leaf for path, leaf in leaves}


def perturbed(shapes: Any, dtype: str) -> Any:
    """Parameters far from their first values: of equal experts a router's gradient is rounding."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: (rng.standard_normal(leaf.shape) * leaf.shape[-1] ** -0.5).astype(dtype),
        shapes,
    )


def program_on(mesh: jax.sharding.Mesh, **fields):
    return make_program(make_config(**fields), TASKS, SLOTS, mesh)


def gradients(sizes: tuple[int, int, int]) -> Any:
    """The gradient of the summed losses, routers' included, in float64."""
    mesh = make_mesh(*sizes)
    with jax.enable_x64(True), jax.set_mesh(mesh):
        model = program_on(mesh, **{"model.dtype": "float64"}).model
        params = perturbed(jax.eval_shape(model.init, jax.random.key(0)), "float64")
        params = jax.device_put(params, sharding.shardings(params, mesh))
        batch = make_batch(0)
        image = np.random.default_rng(0).standard_normal((8, 2, 32, 32, 3))
        batch |= {"image": image}
        functions = functions_of(model, SLOTS, lambda params: params, RouterLoss(0.01, 0.001))

        @functools.partial(jax.jit, out_shardings=sharding.shardings(params, mesh))
        def gradient(params, batch):
            weighting, key = chain.make("sum"), jax.random.key(1)
            return multitask.answer(
                functions, params, batch, weighting.init(2), key, weighting=weighting
            ).grads

        return gradient(params, place(batch, mesh))


def place(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> Any:
    """The batch on the mesh; each process hands in the slots of its own."""
    mine = np.array_split(np.arange(8), jax.process_count())[jax.process_index()]
    return sharding.place_batch({name: array[mine] for name, array in batch.items()}, mesh)


def write_what_two_learn(coordinator: str, process: int, directory: str) -> None:
    """What one of two processes does, of a device each: both compute, the first writes."""
    processes.start(coordinator, 2, process)
    sizes = (1, 2, 1)
    with small_encoder():
        found = {"gradients": named(gradients(sizes)), "trained": twenty_steps(sizes)[0]}
        abstract = program_on(make_mesh(*sizes)).abstract
    with Checkpoints(pathlib.Path(directory, "of_one")) as saved:
        state = saved.restore(STEPS, abstract)
    save_in_spite(pathlib.Path(directory, "of_two"), state)
    for name, arrays in found.items():
        assert {shard.data.shape for shard in arrays[UP].addressable_shards} == {SHARDS[sizes][0]}
        with jax.enable_x64(True):
            whole = multihost_utils.process_allgather(arrays, tiled=True)
        if processes.is_first():
            np.savez(pathlib.Path(directory, name), **whole)


def save_in_spite(path: pathlib.Path, state: Any) -> None:
    """Saves of two processes, of which some cannot be: both know, go on and make up for it."""
    with pytest.MonkeyPatch.context() as patch, Checkpoints(path, keep=1) as saved:
        patch.setattr(checkpoint, "PAUSE", 0.1)
        saved.save(1, state, {})
        saved.wait()
        if not processes.is_first():  # sees another disk than the first does
            patch.setattr(room.shutil, "disk_usage", lambda _: mock.Mock(free=10))
        with pytest.raises(UserError, match=r"steps after 1 up to 2 .* no space left on the disk"):
            saved.save(2, state, {}, last=True)
        patch.undo()
        processes.wait()
        if processes.is_first():
            shutil.rmtree(path)
            path.write_text("in the way")
        processes.wait()
        saved.save(3, state, {})
        processes.wait()
        if processes.is_first():
            path.unlink()
        processes.wait()
        saved.save(STEPS, state, {}, last=True)
        assert saved.steps() == [STEPS]


@pytest.fixture(scope="module")
def exact():
    return jax.device_get(named(gradients((1, 1, 1))))


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_gradients_are_those_of_one_device_to_ten_digits(exact, sizes):
    found = named(gradients(sizes))
    for name, shape in zip((UP, EXPERTS), SHARDS[sizes], strict=True):
        assert {shard.data.shape for shard in found[name].addressable_shards} == {shape}
    assert_exact(found, exact)


def test_two_processes_learn_what_one_does(exact, trained_on_one, free_address, tmp_path):
    with Checkpoints(tmp_path / "of_one", keep=1) as saved:
        saved.save(STEPS, program_on(make_mesh(1, 1, 1)).start(np.uint32(0)), {}, last=True)
    code = "from tests.training import test_meshes; test_meshes.write_what_two_learn(*{})"
    address = free_address()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code.format((address, number, str(tmp_path)))],
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    errors = [process.communicate(timeout=600)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "".join(errors)
    with np.load(tmp_path / "gradients.npz") as found:
        assert_exact(found, exact)
    with np.load(tmp_path / "trained.npz") as found:
        assert_close(found, trained_on_one)
    # What one process saves two can go on from, and what two save one can.
    of_one, of_two = (arrays_of(tmp_path / name) for name in ("of_one", "of_two"))
    assert of_one.keys() == of_two.keys()
    for name, array in of_one.items():
        np.testing.assert_array_equal(of_two[name], array, err_msg=name)


def arrays_of(path: pathlib.Path) -> dict[str, np.ndarray]:
    with Checkpoints(path) as saved:
        return saved.arrays(STEPS)


def assert_exact(found: Mapping[str, Any], exact: dict[str, np.ndarray]) -> None:
    assert sorted(found) == sorted(exact)
    for name, theirs in exact.items():
        assert found[name].dtype == np.float64
        difference = np.linalg.norm(np.asarray(found[name]) - theirs)
        assert difference <= 1e-10 * np.linalg.norm(theirs), name
    assert np.linalg.norm(exact["encoder/moe_blocks/mlp/router/kernel"]) > 0


def twenty_steps(sizes: tuple[int, int, int]) -> tuple[dict[str, Any], Any]:
    """All parameters after so many steps of the whole program, and the program's text."""
    mesh = make_mesh(*sizes)
    with jax.set_mesh(mesh):
        program = program_on(mesh)
        own = sharding.place_everywhere(Own(np.uint32(0)), mesh)
        step = memory.compile_step(program.step, program, make_config(), own, mesh)
        params = perturbed(program.abstract.params, "float32")
        params = jax.device_put(params, sharding.shardings(params, mesh))
        state = dataclasses.replace(
            program.start(own.seed), params=params, ema=jax.tree.map(jnp.copy, params)
        )
        for number in range(STEPS):
            state, metrics = step(state, place(make_batch(number), mesh), own)
            assert metrics["ok"]
        assert named(state.params)[UP].sharding.shard_shape((3, 64, 128)) == SHARDS[sizes][0]
        return named(state.params), str(step.as_text())


def assert_close(found: Mapping[str, Any], theirs: dict[str, np.ndarray]) -> None:
    assert sorted(found) == sorted(theirs)
    for name, array in theirs.items():
        difference = np.linalg.norm(np.asarray(found[name]) - array)
        assert difference <= 1e-5 * np.linalg.norm(array), name


@pytest.fixture(scope="module")
def trained_on_one():
    return jax.device_get(twenty_steps((1, 1, 1))[0])


@pytest.mark.parametrize(
    "sizes",
    [pytest.param(sizes, marks=() if sizes[1] in (8, 2) else pytest.mark.long) for sizes in MESHES],
    ids=str,
)
def test_twenty_steps_end_where_those_of_one_device_do(trained_on_one, sizes):
    found, text = twenty_steps(sizes)
    assert_close(found, trained_on_one)
    # FSDP gathers parameters, and no activations: what is gathered is no larger than a parameter.
    largest = max(leaf.size for leaf in trained_on_one.values()) * 4
    gathered = [one for one in collectives(text) if one.kind == "all-gather"]
    assert bool(gathered) == (sizes[1] > 1)
    assert all(one.size <= largest for one in gathered)
