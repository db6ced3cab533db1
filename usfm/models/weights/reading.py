"""Reads an encoder's parameters from a weight file, and says at once all that is wrong with it."""

import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from usfm.errors import UserError
from usfm.models import functional
from usfm.models.dinov3 import DINOv3, Variant
from usfm.models.functional import Params
from usfm.models.weights import files, names
from usfm.models.weights.names import Spelling
from usfm.models.weights.sizes import sizes
from usfm.models.weights.tensor import Tensor

_FLOATING = ("float16", "bfloat16", "float32", "float64")


def read(path: str | pathlib.Path) -> tuple[Variant, Params]:
    """Reads an encoder of any size.

    Args:
        path: a .safetensors file, the index of a sharded one, a directory that holds either, or a
            .pth; with the names of Hugging Face, Meta or timm. The number of attention heads comes
            from config.json beside it; without one, heads are 64 wide, or 128 at width 4096.

    Returns:
        The sizes (layer_scale stays the default: it is of fresh parameters only), and float32
        NumPy parameters. On a CPU, jax.device_put takes them over without a copy.

    Raises:
        UserError: lists every missing, unexpected and misshapen name.
    """
    path = pathlib.Path(path).expanduser()
    with files.opened(path) as tensors:
        found = {_without_prefix(full): full for full in tensors}
        plain = {name: tensors[full] for name, full in found.items()}
        spelling = names.recognise(plain)
        variant = sizes(plain, spelling, path)
        places = names.expand(spelling, variant.layers)
        blank = jax.tree.map(lambda a: np.broadcast_to(np.float32(0), a.shape), shapes(variant))
        _add_fused_bias(blank, variant)
        faults = list(_faults(tensors, found, places, blank))
        if faults:
            raise UserError(
                f"{path} seems to hold a DINOv3 encoder of {variant.layers} layers and width "
                f"{variant.width}, but not all of it fits:\n" + "\n".join(faults)
            )
        params = jax.tree.map(lambda a: _zeros(a.shape), blank)
        _add_fused_bias(params, variant)
        for name, tensor in plain.items():
            if name in places:
                places[name].view(params)[...] = tensor.read()
    if variant.qv_bias:
        biased = _split_bias(params["blocks"]["attn"])
        of_keys = [
            found[name]
            for name, place in places.items()
            if place.path.endswith("qkv_bias") and place.third in (None, 1)
            if name in found and place.layer in biased
        ]
        if of_keys:
            raise UserError(
                f"{path} has biases on the keys, which DINOv3 has not: {', '.join(of_keys)}"
            )
    return variant, params


def shapes(variant: Variant) -> Params:
    """The shapes of an encoder's parameters."""

    def make(rngs: Any) -> DINOv3:
        return DINOv3(variant, jnp.dtype("float32"), rngs)

    return jax.eval_shape(lambda key: functional.init(make, key), jax.random.key(0))


def _without_prefix(name: str) -> str:
    # Of Hugging Face's models within models, and of Meta's training checkpoints.
    return re.sub(r"^(model|backbone)\.", "", name)


def _faults(
    tensors: Mapping[str, Tensor], found: Mapping[str, str], places: Spelling, blank: Params
) -> Iterator[str]:
    """One line for each name that should not be as it is.

    Args:
        tensors: by their names in the file.
        found: those names by themselves without a prefix.
        places: of all that should be there, by names without a prefix.
        blank: parameters of the right shapes.
    """
    prefixes = {name.split(".")[0]: full.removesuffix(name) for name, full in found.items()}
    for name, place in places.items():
        expected = list(place.view(blank).shape)
        if name not in found:
            if not place.optional:
                yield f"  missing: {prefixes.get(name.split('.')[0], '')}{name} {expected}"
            continue
        tensor = tensors[found[name]]
        if list(tensor.shape) != expected:
            yield f"  misshapen: {found[name]} {list(tensor.shape)}, expected {expected}"
        elif tensor.dtype not in _FLOATING:
            yield f"  {tensor.dtype}: {found[name]}, expected {', '.join(_FLOATING)}"
    needed = {full for name, full in found.items() if name in places}
    for full, tensor in tensors.items():
        if full not in needed and not names.NOT_NEEDED.fullmatch(_without_prefix(full)):
            yield f"  unexpected: {full} {list(tensor.shape)}"


def _add_fused_bias(params: Params, variant: Variant) -> None:
    """Adds the two arrays that names.Place tells of, as they are where a file has neither."""
    if variant.qv_bias:
        shape = (variant.layers, 3 * variant.width)
        fused = {"qkv_bias": np.zeros(shape, np.float32), "bias_mask": np.ones(shape, np.float32)}
        params["blocks"]["attn"].update(fused)


def _split_bias(attention: Params) -> set[int]:
    """Takes these two apart into q_bias and v_bias; returns the layers whose keys have a bias."""
    bias, mask = attention.pop("qkv_bias"), attention.pop("bias_mask")
    (q, k, v), (mask_q, mask_k, mask_v) = (np.split(a, 3, axis=-1) for a in (bias, mask))
    # Meta's model adds bias * mask. It makes masks of NaN and then sets them; one that was never
    # set says nothing of q and v.
    for name, part, kept in (("q_bias", q, mask_q), ("v_bias", v, mask_v)):
        attention[name][...] = part * np.where(np.isnan(kept), 1, kept)
    biased = (np.nan_to_num(k) != 0) & (np.nan_to_num(mask_k) != 0)
    return set(np.flatnonzero(biased.any(axis=-1)).tolist())


def _zeros(shape: tuple[int, ...]) -> np.ndarray:
    # JAX takes over memory that is aligned to 64 bytes.
    size = 4 * math.prod(shape)
    memory = np.zeros(size + 63, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(np.float32).reshape(shape)
