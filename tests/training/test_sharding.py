"""Where arrays live, and that it does not change what is learned."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from usfm import config as usfm_config
from usfm.models.functional import path_name
from usfm.models.lora import LoRA
from usfm.models.m2dino import M2DINO
from usfm.models.moe import Mixture
from usfm.tasks import TYPES, Task
from usfm.training import optimizer as optimizers
from usfm.training import sharding
from usfm.training.state import TrainState, initial
from usfm.training.step import Own, make_step

# Two types are enough, and quicker to compile; all of them are trained in test_train.py.
TASKS = (
    Task("cls2", "classification", num_classes=2),
    Task("cls3", "classification", num_classes=3, flip_ok=False),
    Task("pts2", "regression", num_points=2),
    Task("pts3", "regression", num_points=3),
)
MODEL = M2DINO(TASKS, variant="tiny", decoder_width=dict.fromkeys(TYPES, 8))
SLOTS = {"classification": 4, "regression": 4}
LEARNING_RATE = 1e-3
# One process makes what these tests share.
pytestmark = pytest.mark.xdist_group("sharding")
UP = "encoder/blocks/mlp/up/kernel"  # a matrix of each of 4 layers: [4, 192, 768]


def make_optimizer(model: M2DINO = MODEL) -> optax.GradientTransformation:
    config = usfm_config.base().optimizer
    config.update(learning_rate=LEARNING_RATE, warmup=0.0)
    return optimizers.make(config, 100, model.layers)


def make_mesh(data: int, fsdp: int, expert: int = 1) -> jax.sharding.Mesh:
    sizes = {"data": data, "fsdp": fsdp, "expert": expert}
    return sharding.make_mesh(sizes, jax.devices()[: data * fsdp * expert])


def make_batch(step: int) -> dict[str, np.ndarray]:
    """As the pipeline makes it: one image a slot, not all valid, each step another mix."""
    rng = np.random.default_rng(step)
    return {
        "image": rng.integers(0, 256, (8, 1, 32, 32, 1), np.uint8),
        "task": np.array([0, 0, 1, step % 2, 2, 3, 2, 2], np.int32),
        "row": np.zeros((8, 1), np.int32),
        "valid": np.array([1, 1, 1, 1, 1, step != 1, 0, 1], bool)[:, None],
        "label": rng.integers(0, 2, (8, 1)).astype(np.int32),
        "points": rng.uniform(0.3, 0.7, (8, 1, 3, 2)).astype(np.float32),
        "points_valid": np.ones((8, 1, 3), bool),
    }


def named(tree) -> dict[str, Any]:
    """The leaves of a tree by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): leaf for path, leaf in leaves}


@dataclasses.dataclass(frozen=True)
class Run:
    """Metrics of every step, and the parameters before and after them, by path."""

    metrics: list[dict[str, np.ndarray]]
    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]


def three_steps(data: int, fsdp: int, expert: int = 1, model: M2DINO = MODEL, **changes) -> Run:
    """Three whole training steps: augmentation, surgery and update."""
    config = usfm_config.base()
    surgery = {"multitask.method": "pcgrad", "train.on_nonfinite": "skip_task"}
    config.update_from_flattened_dict(surgery | changes)
    mesh = make_mesh(data, fsdp, expert)
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(model)
        make = functools.partial(initial, model, optimizer, config, 0)
        state, abstract = sharding.build(make, mesh), sharding.abstract(make, mesh)
        if model.mixture is not None:
            state = dataclasses.replace(state, params=perturbed(state.params))
        before = jax.device_get(named(state.params))
        step = make_step(model, SLOTS, optimizer, config, abstract)
        metrics = []
        for number in range(3):
            state, of_step = step(
                state, sharding.place_batch(make_batch(number), mesh), Own(np.uint32(0))
            )
            metrics.append(jax.device_get(of_step))
    return Run(metrics, before, jax.device_get(named(state.params)))


def perturbed(params):
    """Unequal experts: of equal ones a router's gradient is rounding, which Adam makes steps of."""
    rng = np.random.default_rng(0)

    def leaf(value: jax.Array) -> jax.Array:
        noise = 0.02 * rng.standard_normal(value.shape, np.float32)
        return jax.device_put(np.asarray(value) + noise, value.sharding)

    return jax.tree.map(leaf, params)


@pytest.fixture(scope="module")
def one_device():
    return three_steps(1, 1)


def test_eight_devices_learn_what_one_learns(one_device):
    """With gradients kept apart; in one pass, meshes of other sizes are in test_meshes.py."""
    assert_equal(three_steps(2, 4), one_device)


def test_experts_on_an_axis_of_their_own_learn_the_same():
    # Of so much capacity that none asks elsewhere, whichever tokens are sorted together.
    mixture = Mixture(experts=4, layers=(2, 3), top_k=2, capacity=2.0)
    model = dataclasses.replace(MODEL, mixture=mixture)
    changes = {"multitask.method": "sum", "train.on_nonfinite": "stop"}
    one, eight = (three_steps(*mesh, model, **changes) for mesh in ((1, 1, 1), (2, 2, 2)))
    assert_equal(eight, one)
    for ours, theirs in zip(eight.metrics, one.metrics, strict=True):
        np.testing.assert_allclose(ours["routing"], theirs["routing"], atol=1e-5)
        assert theirs["dropped"] == ours["dropped"] == 0


def assert_equal(run: Run, one_device: Run) -> None:
    for ours, theirs in zip(run.metrics, one_device.metrics, strict=True):
        assert ours["ok"]
        np.testing.assert_array_equal(ours["present"], theirs["present"])
        np.testing.assert_allclose(ours["losses"], theirs["losses"], rtol=1e-5)
        np.testing.assert_allclose(ours["grad_norm"], theirs["grad_norm"], rtol=1e-4)
    # Sums of float32 in another order differ in the last digits. Adam divides a gradient by its own
    # size: where it is next to nothing, these digits become a share of the learning rate.
    for name, theirs in one_device.after.items():
        np.testing.assert_allclose(run.before[name], one_device.before[name], atol=1e-6)
        np.testing.assert_allclose(
            run.after[name], theirs, rtol=0, atol=0.02 * LEARNING_RATE, err_msg=name
        )


def test_experts_are_spread_over_their_axis_and_fsdp():
    model = dataclasses.replace(MODEL, mixture=Mixture(experts=4, layers=(2, 3)), lora=LoRA(rank=3))
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "expert": 2})
    placed = named(sharding.abstract(lambda: model.init(jax.random.key(0)), mesh))
    shards = {name: leaf.sharding.shard_shape(leaf.shape) for name, leaf in placed.items()}
    mlp = "encoder/moe_blocks/mlp"
    assert shards[f"{mlp}/up/kernel"] == (2, 2, 96, 768)
    assert shards[f"{mlp}/down/kernel"] == (2, 2, 384, 192)
    assert shards[f"{mlp}/down/bias"] == (2, 2, 192)
    assert shards[f"{mlp}/up/lora_a"] == (2, 2, 96, 3)
    assert shards[f"{mlp}/up/lora_b"] == (2, 2, 3, 384)
    assert shards[UP] == (2, 192, 384)  # the default, for the plain layers


def test_an_axis_that_does_not_divide_a_dimension_is_left_out():
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "expert": 8})
    spec = sharding.spec_of("encoder/moe_blocks/mlp/up/kernel", (2, 6, 192, 768), mesh)
    assert spec == P(None, None, "fsdp")


def test_three_steps_move_every_parameter_that_is_used(one_device):
    still = [name for name, leaf in one_device.after.items()
             if (leaf == one_device.before[name]).all()]  # fmt: skip
    assert still == ["encoder/mask_token"]
    # pts3 has no valid image in the second step.
    assert [list(m["present"]) for m in one_device.metrics] == [
        [True] * 4, [True, True, True, False], [True] * 4
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "fsdp", "shard"), [(8, 1, (4, 192, 768)), (1, 8, (4, 192, 96)), (2, 4, (4, 192, 192))]
)
def test_parameters_moments_and_averages_are_sharded_over_fsdp(data, fsdp, shard):
    mesh = make_mesh(data, fsdp)
    optimizer = make_optimizer()
    shapes = jax.eval_shape(lambda: MODEL.init(jax.random.key(0)))
    state = jax.eval_shape(
        lambda: TrainState(jnp.int32(0), shapes, optimizer.init(shapes), {}, ema=shapes)
    )
    placed = named(sharding.shardings(state, mesh))
    leaves = named(state)
    assert placed[f"params/{UP}"].shard_shape(leaves[f"params/{UP}"].shape) == shard
    moments = 0
    for name, where in placed.items():
        for moment in ("/mu/", "/nu/"):
            if moment in name:
                moments += 1
                assert where == placed["params/" + name.split(moment)[1]]
        if name.startswith("ema/"):
            assert where == placed["params/" + name.removeprefix("ema/")]
    assert moments == 2 * len(jax.tree.leaves(shapes))


def test_small_or_indivisible_arrays_are_whole_on_every_device():
    mesh = make_mesh(1, 8)
    big = 8 * math.ceil(math.sqrt(sharding.MIN_SIZE) / 8)
    assert sharding.spec_of("a/kernel", (big + 8, big), mesh) == P("fsdp")
    assert sharding.spec_of("a/kernel", (big + 8, 2 * big), mesh) == P(None, "fsdp")
    assert sharding.spec_of("a/kernel", (8, 8), mesh) == P()
    assert sharding.spec_of("a/kernel", (1001, 1001), mesh) == P()
    assert sharding.spec_of("a/kernel", (1024, 1024), make_mesh(8, 1)) == P()


def test_the_first_rule_that_matches_decides(monkeypatch):
    monkeypatch.setattr(
        sharding, "RULES", ((r"experts/", P("expert")), (r"kernel$", P(None, "fsdp")))
    )
    mesh = make_mesh(1, 8)
    assert sharding.spec_of("encoder/experts/kernel", (8, 1024, 512), mesh) == P("expert")
    assert sharding.spec_of("encoder/up/kernel", (1024, 512), mesh) == P(None, "fsdp")
    assert sharding.spec_of("encoder/up/scale", (2**15,), mesh) == P("fsdp")


def test_the_slots_of_a_batch_are_spread_over_data_and_fsdp():
    mesh = make_mesh(2, 4)
    assert sharding.slot_shards(mesh) == 8
    batch = make_batch(0)
    placed = sharding.place_batch(batch, mesh)
    for name, array in batch.items():
        np.testing.assert_array_equal(placed[name], array)
        assert {shard.data.shape for shard in placed[name].addressable_shards} == {
            (1, *array.shape[1:])
        }


def test_the_table_names_every_parameter_and_its_share():
    shapes = jax.eval_shape(lambda: MODEL.init(jax.random.key(0)))
    lines = sharding.table(shapes, make_mesh(2, 4)).splitlines()
    leaves = named(shapes)
    total = sum(leaf.size for leaf in leaves.values())
    assert lines[0] == f"{total:,} parameters on a mesh 2x4x1 (data x fsdp x expert)"
    assert [line.split()[0] for line in lines[1:]] == list(leaves)
    (line,) = [line for line in lines if UP in line]
    assert line.endswith(f"{4 * 192 * 768 * 4 // 4:,} B")


@pytest.mark.parametrize(
    ("sizes", "shape"), [((-1, 1, 1), (8, 1, 1)), ((2, -1, 2), (2, 2, 2)), ((2, 2, 2), (2, 2, 2))]
)
def test_one_size_of_a_mesh_may_be_the_rest(sizes, shape):
    mesh = sharding.make_mesh(dict(zip(("data", "fsdp", "expert"), sizes, strict=True)))
    assert tuple(mesh.shape.values()) == shape
    assert mesh.axis_names == ("data", "fsdp", "expert")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 1, 1), "mesh 3x1x1 does not fit 8 devices"),
        ((16, 1, 1), "mesh 16x1x1 does not fit 8 devices"),
        ((-1, 3, 1), "mesh -1x3x1 does not fit 8 devices"),
        ((2, 2, 1), "mesh 2x2x1 does not fit 8 devices"),
        ((-1, -1, 1), "mesh -1x-1x1: sizes are 1 or more, and at most one is -1"),
        ((8, 0, 1), "mesh 8x0x1: sizes are 1 or more, and at most one is -1"),
        ((-2, 1, 1), "mesh -2x1x1: sizes are 1 or more, and at most one is -1"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(dict(zip(("data", "fsdp", "expert"), sizes, strict=True)))
