import jax
import numpy as np
import pytest

from usfm.data import memory

SHAPE = (2, 3, 640)


def address(array) -> int:
    return array.__array_interface__["data"][0]


@pytest.fixture(autouse=True)
def _nothing_is_free(monkeypatch):
    monkeypatch.setattr(memory, "_free", {})


def test_memory_that_nobody_holds_is_used_again():
    first = memory.empty(SHAPE)
    assert (first.shape, first.dtype) == (SHAPE, np.uint8)
    at = address(first)
    second = memory.empty(SHAPE)
    assert address(second) != at
    del first
    assert address(memory.empty((6, 640))) == at


@pytest.mark.parametrize(
    "hold",
    [
        lambda array: array[1],
        lambda array: array[:, 1:2, ::2].T,
        lambda array: array.reshape(-1).view(np.int32)[3:],
        lambda array: memoryview(array),
        lambda array: jax.device_put(array, jax.devices()[0]),
    ],
    ids=["slice", "transposed", "viewed", "memoryview", "jax"],
)
def test_memory_that_something_holds_is_left_alone(hold):
    array = memory.empty(SHAPE)
    array[:] = 7
    held = hold(array)
    before = np.array(held)
    del array
    others = [memory.empty(SHAPE) for _ in range(3)]
    for other in others:
        other[:] = 9
    np.testing.assert_array_equal(np.asarray(held), before)


def test_blocks_of_another_size_are_given_back():
    first = memory.empty(SHAPE)
    del first
    memory.empty((5,))
    assert list(memory._free) == [5]
