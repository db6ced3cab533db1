"""Muon: orthogonalised steps of hidden matrices, Adam's of all else."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from usfm import config as usfm_config
from usfm.models.functional import path_name
from usfm.tasks import Task
from usfm.training import optimizer, sharding
from usfm.training.program import make_model

RATE = 0.1
LAYERS = {"encoder/blocks": (0, 1)}


def config(name="muon", **fields):
    config = usfm_config.base().optimizer
    config.update({"name": name, "learning_rate": RATE, "warmup": 0.0, "weight_decay": 0.0})
    config.update({"clip_norm": 1e9} | fields)
    return config


def first_step(config, grads, params=None):
    """The updates of step 0, like the gradients."""
    params = jax.tree.map(jnp.zeros_like, grads) if params is None else params
    made = optimizer.make(config, 1, LAYERS)
    return made.update(grads, made.init(params), params)[0]


def conditioned(rng, *shape):
    """Matrices of singular values from .3 to 1, in two axes behind others."""
    *batch, rows, columns = shape
    u, _, v = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    values = rng.uniform(0.3, 1, (*batch, 1, min(rows, columns)))
    return jnp.asarray((u * values) @ v, jnp.float32)


RNG = np.random.default_rng(0)
GRADS = {
    "encoder": {
        "blocks": {"mlp": {"kernel": conditioned(RNG, 2, 6, 12)}},
        "moe_blocks": {
            "router": {"kernel": conditioned(RNG, 1, 8, 4)},
            "mlp": {"kernel": conditioned(RNG, 1, 3, 8, 5)},
        },
        "patch_embed": {"kernel": conditioned(RNG, 8, 4)},
        "norm": {"scale": jnp.array([3.0, -4.0])},
    },
    "decoders": {
        "detection": {"conv1": {"kernel": conditioned(RNG, 36, 7).reshape(3, 3, 4, 7)}},
        "classification": {"query": conditioned(RNG, 3, 4)},
    },
    "heads": {"detection": {"kernel": conditioned(RNG, 2, 4, 5)}},
}
# As matrices, one a layer or an expert.
HIDDEN = {
    "encoder/blocks/mlp/kernel": (2, 6, 12),
    "encoder/moe_blocks/mlp/kernel": (3, 8, 5),
    "decoders/detection/conv1/kernel": (1, 36, 7),  # all of a window is inputs
}


leaves = jax.tree_util.tree_leaves_with_path


def named(tree):
    return {path_name(path): np.asarray(leaf) for path, leaf in leaves(tree)}


@pytest.mark.parametrize("name", HIDDEN)
def test_a_hidden_matrix_moves_alike_in_all_directions_of_its_gradient(name):
    updates, grads = (
        named(tree)[name].reshape(HIDDEN[name]) for tree in (first_step(config(), GRADS), GRADS)
    )
    for update, grad in zip(updates, grads, strict=True):
        u, _, v = np.linalg.svd(grad, full_matrices=False)
        turned = u.T @ update @ v.T
        sizes = -np.diag(turned)
        np.testing.assert_allclose(turned, np.diag(-sizes), atol=1e-5)
        # Three steps bring all to within .6 to 1.3 of what Adam's would have: a mean square of .04.
        expected = RATE * 0.2 * np.sqrt(max(grad.shape))
        assert (sizes > 0.6 * expected).all()
        assert (sizes < 1.3 * expected).all()


def test_all_else_moves_as_by_adam():
    muon, adam = (named(first_step(config(name), GRADS)) for name in ("muon", "adamw"))
    others = muon.keys() - HIDDEN.keys()
    assert len(others) == len(muon) - len(HIDDEN) == 5
    for name in others:
        np.testing.assert_array_equal(muon[name], adam[name])
    for name in HIDDEN:
        assert (muon[name] != adam[name]).any()


def test_the_matrices_of_blocks_and_decoders_are_hidden_and_nothing_else():
    whole = usfm_config.debug(usfm_config.base())
    whole.model.moe.experts = 2
    whole.optimizer.name = "muon"
    tasks = (
        Task("cls", "classification", num_classes=2),
        Task("det", "detection", num_classes=1),
        Task("seg", "segmentation", num_classes=2),
    )
    model = make_model(whole, tasks)
    params = jax.eval_shape(model.init, jax.random.key(0))
    made = optimizer.make(whole.optimizer, 100, model.layers)
    state = jax.eval_shape(made.init, params)
    moments = optax.tree.get(state, "MuonState").mu
    hidden, names = ({path_name(path) for path, _ in leaves(tree)} for tree in (moments, params))
    assert hidden == {
        name
        for name in names
        if name.endswith("/kernel")
        and not name.startswith(("heads/", "encoder/patch_embed/"))
        and "/router/" not in name
    }
    assert len(hidden) > 20


def test_rates_by_layer_and_decay_hold_for_matrices_too():
    params = jax.tree.map(jnp.ones_like, GRADS)
    plain = named(first_step(config(), GRADS, params))
    decayed = named(first_step(config(weight_decay=0.5), GRADS, params))
    frozen = named(first_step(config(freeze=("block_01/",)), GRADS, params))
    slower = named(first_step(config(layer_decay=0.5), GRADS, params))
    kernel = "encoder/blocks/mlp/kernel"
    np.testing.assert_allclose(decayed[kernel], plain[kernel] - RATE * 0.5, rtol=1e-5)
    np.testing.assert_array_equal(frozen[kernel][0], plain[kernel][0])
    assert not frozen[kernel][1].any()
    np.testing.assert_allclose(slower[kernel][0], plain[kernel][0] / 4, rtol=1e-6)


def test_what_is_frozen_as_a_whole_has_no_momentum():
    grads = GRADS | {"encoder": {"blocks": {"mlp": {"kernel": None}}}}
    updates = first_step(config(), grads)
    assert updates["encoder"]["blocks"]["mlp"]["kernel"] is None
    assert updates["decoders"]["detection"]["conv1"]["kernel"].any()


def test_a_matrix_in_shards_moves_as_a_whole_one():
    grads = {"encoder": {"blocks": {"mlp": {"kernel": conditioned(RNG, 2, 16, 24)}}}}
    mesh = sharding.make_mesh({"data": 1, "fsdp": 8, "expert": 1})
    shards = NamedSharding(mesh, P(None, "fsdp"))
    step = jax.jit(lambda grads: first_step(config(), grads), out_shardings=shards)
    np.testing.assert_allclose(
        jax.tree.leaves(step(jax.device_put(grads, shards)))[0],
        jax.tree.leaves(first_step(config(), grads))[0],
        atol=1e-6,  # float32's rounding in sums of 24 products of at most .1
    )


def test_the_preconditioner_of_a_matrix_is_the_length_of_its_step_for_that_of_its_momentum():
    made = optimizer.make(config(), 1, LAYERS)
    _, state = made.update(GRADS, made.init(GRADS), GRADS)
    scales = optimizer.preconditioner(state, config())
    adam = optimizer.make(config("adamw"), 1, LAYERS)
    _, of_adam = adam.update(GRADS, adam.init(GRADS), GRADS)
    of_adam = named(optimizer.preconditioner(of_adam, config("adamw")))
    assert jax.tree.structure(scales) == jax.tree.structure(GRADS)
    updates = named(first_step(config(), GRADS))
    for name, scale in named(scales).items():
        if name not in HIDDEN:
            np.testing.assert_array_equal(scale, of_adam[name])
            continue
        grads = named(GRADS)[name]  # of one step, they are the momentum
        scaled, step = (
            (a**2).reshape(HIDDEN[name]).sum((1, 2)) for a in (scale * grads, updates[name])
        )
        # A step of singular values of .6 to 1.3 is not quite as long as one of 1.
        np.testing.assert_allclose(RATE**2 * scaled, step, rtol=0.3)
