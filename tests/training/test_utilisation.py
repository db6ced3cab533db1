import jax
import jax.numpy as jnp
import pytest
from jax import lax

from usfm.training.utilisation import flops, peak


def count(function, *shapes):
    return flops(jax.make_jaxpr(function)(*(jnp.zeros(shape) for shape in shapes)))


def test_products_are_counted_forward_and_backward_and_as_often_as_loops_run():
    product = 2 * 3 * 5 * 7

    def layers(w, x):
        return lax.scan(lambda y, _: (jnp.tanh(y @ w @ w.T), None), x, length=4)[0].sum()

    assert count(lambda a, b: a @ b, (3, 5), (5, 7)) == product
    assert count(layers, (5, 7), (3, 5)) == 4 * 2 * product
    # Each product has two in its gradient.
    assert count(jax.jit(jax.grad(layers)), (5, 7), (3, 5)) == 3 * 4 * 2 * product
    # What is computed again counts again: the first of the two products.
    again = jax.checkpoint(lambda w, x: jnp.tanh(jnp.tanh(x @ w) @ w.T).sum())
    assert count(jax.grad(again, argnums=(0, 1)), (5, 7), (3, 5)) >= 7 * product


def test_batched_products_convolutions_and_the_dearer_branch_are_counted():
    assert count(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (2, 3, 5), (2, 5, 7)) == 2 * 210
    wide = (1, 8, 8, 3), (3, 3, 3, 4)

    def convolve(x, kernel, **settings):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, padding="SAME", dimension_numbers=numbers, **settings
        )

    assert count(lambda x, k: convolve(x, k, window_strides=(1, 1)), *wide) == 2 * 64 * 4 * 27
    assert count(lambda x, k: convolve(x, k, window_strides=(2, 2)), *wide) == 2 * 16 * 4 * 27
    branches = [lambda x: x @ x, lambda x: x @ x @ x]
    assert count(lambda x: lax.switch(x[0, 0].astype(int), branches, x), (4, 4)) == 2 * 2 * 64


@pytest.mark.parametrize(
    ("kind", "rate"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", None),
        ("cpu", None),
    ],
)
def test_the_peak_is_that_of_the_device_or_not_known(kind, rate):
    assert peak(kind) == rate
