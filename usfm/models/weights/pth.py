"""Reads what torch.save wrote, without torch and without running anything the file asks for.

A .pth is a zip archive: data.pkl says how the tensors are made of storages, and data/KEY holds the
bytes of each storage. A pickle may name any callable; this one may name those that make tensors.
"""

import collections
import contextlib
import dataclasses
import functools
import io
import pathlib
import pickle
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from usfm.errors import UserError
from usfm.models.weights.tensor import Tensor

# Under these a training checkpoint keeps the weights among other things.
NESTED = ("teacher", "model", "state_dict")

_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_AGAIN = "save its tensors alone, with torch.save(model.state_dict(), PATH)"


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[dict[str, Tensor]]:
    """The tensors of a .pth by name; other values beside them are left out.

    Raises:
        UserError: it is damaged, no file of torch.save, or names anything but tensors.
    """
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is damaged ({error}); fetch it again") from error
    with archive:
        pickled = [name for name in archive.namelist() if f"/{name}".endswith("/data.pkl")]
        if len(pickled) != 1:
            raise UserError(f"{path} is a zip archive, but not one of torch.save (no data.pkl)")
        file = _File(path, archive, pickled[0].removesuffix("data.pkl"))
        if file.has("byteorder") and file.bytes("byteorder") != b"little":
            raise UserError(f"{path} was written on a big-endian machine: write it on another")
        try:
            saved = _Unpickler(file).load()
        except UserError:
            raise
        except Exception as error:  # a damaged pickle may raise anything
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(
                f"{path} cannot be read ({why}); fetch it again, or {_AGAIN}"
            ) from error
        yield _state_dict(saved, path)


@dataclasses.dataclass(frozen=True)
class _File:
    path: pathlib.Path
    archive: zipfile.ZipFile
    folder: str  # of data.pkl within the archive, with its slash

    def has(self, name: str) -> bool:
        return f"{self.folder}{name}" in self.archive.namelist()

    def bytes(self, name: str) -> bytes:
        try:
            return self.archive.read(f"{self.folder}{name}")
        except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
            raise UserError(f"{self.path} is damaged ({error}); fetch it again") from error


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str


class _Unpickler(pickle.Unpickler):
    """Makes dicts, numbers and strings, as pickles do by themselves, and Tensors."""

    def __init__(self, file: _File):
        super().__init__(io.BytesIO(file.bytes("data.pkl")))
        self._file = file

    def find_class(self, module: str, name: str) -> Any:
        """The only door through which a pickle gets at callables."""
        match module, name:
            case "collections", "OrderedDict":
                return collections.OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return self._rebuild_tensor
            case "torch._utils", "_rebuild_parameter":
                return lambda tensor, *_: tensor
            case "torch", _ if name in _DTYPES:
                return _DTYPES[name]
        raise UserError(
            f"{self._file.path} asks for {module}.{name}, which makes no tensor: nothing of it was "
            f"run. If you trust the file, open it where it was made and {_AGAIN}"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage, from what torch writes in the place of its bytes."""
        kind, dtype, key, _, _ = pid
        if kind != "storage" or dtype not in _DTYPES.values():
            raise UserError(f"{self._file.path} holds {kind!r} {dtype!r}, which is no storage")
        return _Storage(str(key), dtype)

    def _rebuild_tensor(
        self,
        storage: _Storage,
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        *_: Any,
    ) -> Tensor:
        size, stride = tuple(map(int, size)), tuple(map(int, stride))
        if len(size) != len(stride) or min((0, int(offset), *size, *stride)) < 0:
            raise UserError(f"{self._file.path}: a tensor of size {size}, stride {stride}")
        read = functools.partial(_read, self._file, storage, int(offset), size, stride)
        return Tensor(size, storage.dtype, read)


def _read(
    file: _File, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> np.ndarray:
    dtype = jnp.dtype(storage.dtype)
    if 0 in size:
        return np.zeros(size, dtype)
    data = file.bytes(f"data/{storage.key}")
    needed = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if len(data) < needed * dtype.itemsize:  # as_strided would read what lies beyond
        raise UserError(f"{file.path} is damaged (data/{storage.key} is too short); fetch it again")
    flat = np.frombuffer(data, dtype, needed - offset, offset * dtype.itemsize)
    strides = [step * dtype.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(flat, size, strides, writeable=False)


def _state_dict(saved: Any, path: pathlib.Path) -> dict[str, Tensor]:
    while isinstance(saved, dict):
        tensors = {str(k): value for k, value in saved.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
        saved = next((saved[k] for k in NESTED if isinstance(saved.get(k), dict)), None)
    keys = ", ".join(NESTED)
    raise UserError(f"{path} holds no tensors by name, neither at its top nor under {keys}")
