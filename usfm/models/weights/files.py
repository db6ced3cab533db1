"""Opens weight files: safetensors, whole or sharded, and PyTorch's .pth."""

import contextlib
import functools
import json
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import safetensors

from usfm.errors import UserError
from usfm.models.weights import pth
from usfm.models.weights.tensor import Tensor

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[dict[str, Tensor]]:
    """The tensors of a weight file by name, to be read while it is open.

    Args:
        path: a .safetensors file, the index of a sharded one, a directory that holds either, or
            what torch.save wrote.

    Raises:
        UserError: there is no such file, or it is damaged or of another kind.
    """
    path = _file(path)
    if path.suffix == ".json":
        shards = [path.parent / name for name in sorted(set(_weight_map(path).values()))]
        yield {k: tensor for shard in shards for k, tensor in _safetensors(shard).items()}
    elif zipfile.is_zipfile(path):
        with pth.opened(path) as tensors:
            yield tensors
    else:
        yield _safetensors(path)


def config_beside(path: pathlib.Path) -> dict[str, Any]:
    """What config.json in the same directory says; {} where there is none."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    return _json(file) if file.exists() else {}


def _file(path: pathlib.Path) -> pathlib.Path:
    if path.is_dir():
        for name in (INDEX, SINGLE):
            if (path / name).exists():
                return path / name
        raise UserError(f"{path} holds neither {SINGLE} nor {INDEX}: give the weight file itself")
    if not path.exists():
        raise UserError(f"there is no weight file {path}")
    return path


def _weight_map(index: pathlib.Path) -> dict[str, str]:
    weight_map = _json(index).get("weight_map")
    if not weight_map or not isinstance(weight_map, dict):
        raise UserError(f"{index} has no weight_map: it is not the index of a sharded weight file")
    return weight_map


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object")
    return content


def _safetensors(path: pathlib.Path) -> dict[str, Tensor]:
    if not path.exists():
        raise UserError(f"{path} is missing: the index beside it names it as a shard")
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(b"\x80"):
        raise UserError(
            f"{path} is in PyTorch's old format, a bare pickle. Convert it where torch is "
            "installed: torch.save(torch.load(OLD, map_location='cpu', weights_only=True), NEW)"
        )
    if start.startswith(b"PK"):
        raise UserError(f"{path} is cut off (a zip archive without its end); fetch it again")
    if not start.endswith(b"{"):
        raise UserError(f"{path} is neither safetensors nor what torch.save writes")
    try:
        # pread: pages of a mapped file would count as this process's memory, a second copy.
        file = safetensors.safe_open(path, framework="numpy", backend="pread")
        parts = {name: file.get_slice(name) for name in file.offset_keys()}
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); fetch it again") from error
    return {
        name: Tensor(
            tuple(part.get_shape()),
            _DTYPES.get(part.get_dtype(), part.get_dtype()),
            functools.partial(_read, path, file, name),
        )
        for name, part in parts.items()
    }


def _read(path: pathlib.Path, file: Any, name: str) -> np.ndarray:
    try:
        return file.get_tensor(name)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); fetch it again") from error
