"""A tensor of a weight file before it is read."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tensor:
    """What a file says of a tensor, and how to get its values.

    Attributes:
        shape: as in the file.
        dtype: NumPy's name of it, such as bfloat16.
        read: reads the values anew each time; the file must still be open.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]
