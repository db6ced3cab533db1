"""What a training step changes, and what it leaves alone."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from ml_collections import ConfigDict

from usfm import config as usfm_config
from usfm.models.functional import path_name
from usfm.tasks import TYPES, Task
from usfm.training import memory, sharding
from usfm.training import step as step_module
from usfm.training.checkpoint import Checkpoints
from usfm.training.program import Program, make_program
from usfm.training.state import TrainState
from usfm.training.step import Own

TASKS = (
    Task("cls2", "classification", num_classes=2),
    Task("cls3", "classification", num_classes=3),
)
STEPS = 4
EMA = 0.4
# Some of a stack, one leaf before it, and all of a decoder.
FREEZE = ("^encoder/block_0[13]/", "^encoder/patch_embed/", "^decoders/")


def make_batch(step: int) -> dict[str, Any]:
    """Two slots of two images."""
    rng = np.random.default_rng(step)
    return {
        "image": rng.integers(0, 256, (2, 2, 32, 32, 1), np.uint8),
        "task": np.array([0, 1], np.int32),
        "row": np.zeros((2, 2), np.int32),
        "valid": np.ones((2, 2), bool),
        "label": rng.integers(0, 2, (2, 2)).astype(np.int32),
    }


def named(tree) -> dict[str, np.ndarray]:
    """The leaves of a tree by their paths, on the host."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): np.array(leaf) for path, leaf in leaves}


def made(
    config: ConfigDict, tasks: tuple[Task, ...], slots: dict[str, int]
) -> tuple[Mesh, Program]:
    """The program of a config, and its mesh of one device."""
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "expert": 1}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        return mesh, make_program(config, tasks, slots, mesh)


Take = Callable[[TrainState, Any], Any]  # a step of (state, batch)


def start(**fields) -> tuple[Take, TrainState, TrainState]:
    """The step of a run, its initial state, and the shapes of that."""
    config = usfm_config.debug(usfm_config.base())
    config.update_from_flattened_dict(
        {"train.steps": 100, "optimizer.warmup": 0.0, "model.decoder_width.classification": 24}
        | fields
    )
    mesh, program = made(config, TASKS, {"classification": 2})
    own = Own(np.uint32(config.train.seed))
    with jax.set_mesh(mesh):
        state = program.start(own.seed)

    def in_mesh(state: TrainState, batch: Any) -> Any:
        with jax.set_mesh(mesh):
            return program.step(state, sharding.place_batch(batch, mesh), own)

    return in_mesh, state, program.abstract


@dataclasses.dataclass(frozen=True)
class Run:
    """Four steps, of which the third could not be made: the state before and after each."""

    step: Take
    abstract: TrainState
    states: list[dict[str, np.ndarray]]
    checkpoints: Any  # where the state after the second lies


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Any:
    step, state, abstract = start(
        **{"optimizer.freeze": FREEZE, "optimizer.layer_decay": 0.8, "train.ema": EMA}
    )
    states, directory = [named(state)], tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpoints(directory, keep=1) as checkpoints:
        for number in range(STEPS):
            state, _ = step(state, batch_of(number))
            states.append(named(state))
            if number == 1:
                checkpoints.save(2, state, {})
    return Run(step, abstract, states, directory)


def batch_of(number: int) -> dict[str, Any]:
    """As make_batch, but for the third: it has no valid image."""
    batch = make_batch(number)
    if number == 2:
        batch["valid"][:] = False
    return batch


def test_what_is_frozen_stays_to_the_bit_and_all_else_moves(run):
    before, after = run.states[0], run.states[-1]
    for name in (name for name in before if name.startswith("params/")):
        if name.startswith(("params/encoder/patch_embed/", "params/decoders/")):
            assert before[name].tobytes() == after[name].tobytes(), name
        elif name.startswith("params/encoder/blocks/"):
            same = [a.tobytes() == b.tobytes()
                    for a, b in zip(before[name], after[name], strict=True)]  # fmt: skip
            assert same == [False, True, False, True], name
        elif name != "params/encoder/mask_token":
            assert (before[name] != after[name]).any(), name


def test_what_is_wholly_frozen_has_no_moments_and_no_average(run):
    of = {kind: {name.split(kind, 1)[1] for name in run.states[0] if kind in name}
          for kind in ("params/", "/mu/", "/nu/", "ema/")}  # fmt: skip
    trainable = {n for n in of["params/"] if "patch_embed" not in n and "decoders" not in n}
    assert of["/mu/"] == of["/nu/"] == of["ema/"] == trainable
    assert "encoder/blocks/mlp/up/kernel" in trainable
    last = run.states[-1]
    for moment in (name for name in last if "/mu/encoder/blocks/" in name):
        moved = [layer.any() for layer in last[moment]]
        assert moved == [True, False, True, False]


def test_the_average_follows_the_parameters(run):
    kernel = "encoder/blocks/mlp/up/kernel"
    average = run.states[0][f"params/{kernel}"]
    np.testing.assert_array_equal(run.states[0][f"ema/{kernel}"], average)
    for number in (0, 1, 3):
        decay = min(EMA, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * run.states[number + 1][f"params/{kernel}"]
        np.testing.assert_allclose(run.states[number + 1][f"ema/{kernel}"], average, atol=1e-7)


def test_a_step_that_could_not_be_made_changes_nothing_but_its_number(run):
    before, after = dict(run.states[2]), dict(run.states[3])
    assert (before.pop("step"), after.pop("step")) == (2, 3)
    for name, array in before.items():
        assert array.tobytes() == after[name].tobytes(), name


def test_a_run_goes_on_from_a_checkpoint_to_the_bit(run):
    with Checkpoints(run.checkpoints) as checkpoints:
        state = checkpoints.restore(2, run.abstract)
    for number in (2, 3):
        state, _ = run.step(state, batch_of(number))
    resumed, straight = named(state), run.states[-1]
    assert resumed.keys() == straight.keys()
    for name, array in straight.items():
        assert resumed[name].tobytes() == array.tobytes(), name


def test_images_are_augmented_by_the_strength_of_their_type(monkeypatch):
    asked = {}

    def watched(batch, key, **options):
        asked.update(options)
        return augment(batch, key, **options)

    augment = step_module.augment
    monkeypatch.setattr(step_module, "augment", watched)
    config = usfm_config.debug(usfm_config.base())
    config.data.augment = 0.5
    config.data.augment_by_type.update(classification=0.25, detection=0.75)
    mesh, program = made(config, TASKS, {"classification": 2})
    with jax.set_mesh(mesh):
        jax.eval_shape(program.step, program.abstract, make_batch(0), Own(np.uint32(0)))
    assert asked["strength"].tolist() == [0.125, 0.125]
    assert asked["flip_ok"].tolist() == [True, True]


def test_an_encoder_with_low_rank_updates_learns_in_them_alone():
    # Beside pcgrad, which asks for the Gramian of what is trained.
    fields = {"model.lora.rank": 2, "multitask.method": "pcgrad", "train.ema": 0.0}
    step, state, _ = start(**fields)
    before = named(state.params)
    for number in range(2):  # the first moves lora_b, which was 0, and so the second lora_a
        state, metrics = step(state, make_batch(number))
        assert metrics["ok"]
    assert state.ema == {}
    moved = {name for name, leaf in named(state.params).items() if (leaf != before[name]).any()}
    of_encoder = {name for name in before if name.startswith("encoder/")}
    assert moved & of_encoder == {n for n in of_encoder if n.endswith(("lora_a", "lora_b"))}
    assert moved - of_encoder == before.keys() - of_encoder


ALL_TYPES = (
    Task("cls", "classification", num_classes=2),
    Task("det", "detection", num_classes=1),
    Task("pts", "regression", num_points=2),
    Task("seg", "segmentation", num_classes=2),
)


@pytest.mark.parametrize(
    ("engine", "method", "record"),
    [
        ("plain", "sum", False),
        ("layer", "gradnorm", False),
        ("stack", "upgrad", True),
        ("stack_map", "upgrad", True),
        ("stream", "graddrop", False),
    ],
)
def test_every_engine_takes_the_decoders_of_all_types(engine, method, record):
    config = usfm_config.debug(usfm_config.base())
    config.train.update(slots=4, examples_per_slot=2)
    config.multitask.update(engine=engine, method=method, record=record)
    mesh, program = made(config, ALL_TYPES, dict.fromkeys(TYPES, 1))
    with jax.set_mesh(mesh):
        batch = memory.abstract_batch(program, config, mesh)
        state, metrics = jax.eval_shape(program.step, program.abstract, batch, Own(np.uint32(0)))
    shapes, expected = (jax.tree.map(np.shape, tree) for tree in (state, program.abstract))
    assert shapes == expected
    if record:
        assert metrics["record"]["gramian"].shape[1:] == (4, 4)
