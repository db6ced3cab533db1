import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usfm.models.product import product


@pytest.fixture
def operands():
    chance = np.random.default_rng(0)
    return jnp.asarray(chance.normal(size=(3, 4, 5))), jnp.asarray(chance.normal(size=(5, 5)))


def plain(rows, kernel):
    return rows @ kernel


def once(function):
    return lambda rows, kernel: jnp.sin(function(rows, kernel)).sum()


def in_turns(function):
    def scanned(rows, kernel):
        last, _ = jax.lax.scan(lambda x, _: (jnp.sin(function(x, kernel)), None), rows, length=3)
        return last.sum()

    return scanned


def of_each(function):
    """Each of the first axis with a kernel of its own, as experts have."""

    def mapped(rows, kernel):
        kernels = kernel * jnp.arange(1.0, 4)[:, None, None]
        return jnp.sin(jax.vmap(function)(rows, kernels)).sum()

    return mapped


def by_slot(function):
    """The kernel's derivative of each of the first axis, as task gradients are."""

    def mapped(rows, kernel):
        derivatives = jax.vmap(jax.grad(once(function), 1), (0, None))(rows, kernel)
        return jnp.square(derivatives).sum()

    return mapped


def computed_again(function):
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return jax.checkpoint(once(function), policy=policy)


@pytest.mark.parametrize("use", [once, in_turns, of_each, by_slot, computed_again])
def test_it_and_its_derivatives_are_those_of_the_plain_product(operands, use):
    with jax.enable_x64(True):
        rows, kernel = (jnp.asarray(a, jnp.float64) for a in operands)
        # by_slot differentiates a derivative: so the rule for derivatives has one itself.
        ours, theirs = (
            jax.value_and_grad(use(function), (0, 1))(rows, kernel) for function in (product, plain)
        )
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-12, atol=1e-12)


def test_types_are_kept(operands):
    rows, kernel = (a.astype(jnp.bfloat16) for a in operands)
    derivatives = jax.grad(lambda *both: product(*both).astype(jnp.float32).sum(), (0, 1))
    assert product(rows, kernel).dtype == jnp.bfloat16
    assert [a.dtype for a in derivatives(rows, kernel)] == [jnp.bfloat16] * 2


def products(function, *operands):
    """The shapes of the results of all matrix products in a traced function."""
    equations = jax.make_jaxpr(function)(*operands).jaxpr.eqns
    return [e.outvars[0].aval.shape for e in equations if e.primitive.name == "dot_general"]


def test_the_derivative_of_a_frozen_operand_is_not_computed(operands):
    rows, kernel = operands
    kernel = kernel[:, :2]
    forward, of_rows, of_kernel = (3, 4, 2), (3, 4, 5), (5, 2)
    loss = once(product)
    assert products(jax.grad(loss, 0), rows, kernel) == [forward, of_rows]
    # As the kernel lies: not turned round, as JAX's own rule has it.
    assert products(jax.grad(loss, 1), rows, kernel) == [forward, of_kernel]
    assert products(jax.grad(loss, (0, 1)), rows, kernel) == [forward, of_rows, of_kernel]
