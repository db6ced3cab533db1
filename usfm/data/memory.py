"""Memory for pixels that is used again.

The system zeroes the pages of fresh memory, which takes as long as writing a batch's pixels there.
"""

import math
import weakref

import numpy as np

_free: dict[int, list[np.ndarray]] = {}  # bytes -> blocks of so many that nobody holds


def empty(shape: tuple[int, ...]) -> np.ndarray:
    """A uint8 array of any contents, whose memory is used again once it and all its views are gone.

    Blocks are kept for one size at a time, that of the batches being made.
    """
    size = math.prod(shape)
    if size not in _free:
        _free.clear()
        _free[size] = []
    free = _free[size]
    try:
        block = free.pop()
    except IndexError:
        block = np.empty(size, np.uint8)
    # Of an array over a foreign buffer all views hold that array, so none outlives it.
    array = np.frombuffer(block.data, np.uint8)
    weakref.finalize(array, free.append, block)
    return array.reshape(shape)
