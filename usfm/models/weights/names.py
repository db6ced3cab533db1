"""Where each tensor of a weight file belongs among our parameters, in every spelling of its name.

Hugging Face's transformers, Meta's own code and timm (models/eva.py) hold the same tensors under
other names. Each part of the model is spelt by itself, because files are met that mix libraries.
"""

import collections
import dataclasses
import functools
import operator
import re
from collections.abc import Collection
from typing import Any

import numpy as np

from usfm.models.dinov3 import PATCH
from usfm.models.functional import Params

# Not needed: positions, which we compute; the norm of the local crops in Meta's pre-training; and
# the heads beside the backbone in Meta's training checkpoints.
NOT_NEEDED = re.compile(
    r"(rope|rope_embed|rope_embeddings)\.(periods|inv_freq)|local_cls_norm\..+|(dino|ibot)_head\..+"
)


@dataclasses.dataclass(frozen=True)
class Place:
    """The part of one parameter that a tensor of a file holds.

    Attributes:
        path: the parameter's. Two are not the model's own: blocks/attn/qkv_bias [L, 3D], the biases
            of q, k and v in one, as the kernel is, and blocks/attn/bias_mask, which Meta
            multiplies them by.
        order: how the file arranges it: same, linear (transposed), convolution, or batched (with a
            leading axis of 1).
        third: of the parameter's last axis, 0 for q, 1 for k, 2 for v; None for all of it.
        optional: it may be absent.
        layer: on the parameter's leading axis; None where it has none.
    """

    path: str
    order: str = "same"
    third: int | None = None
    optional: bool = False
    layer: int | None = None

    def view(self, params: Params) -> np.ndarray:
        """The place as the file arranges it. No copy: writing to it writes to params."""
        array: Any = functools.reduce(operator.getitem, self.path.split("/"), params)
        if self.layer is not None:
            array = array[self.layer]
        if self.third is not None:
            width = array.shape[-1] // 3
            array = array[..., self.third * width : (self.third + 1) * width]
        match self.order:
            case "linear":
                return array.T
            case "convolution":  # [16 * 16 * 3, D] to [D, 3, 16, 16]
                return array.reshape(PATCH, PATCH, 3, -1).transpose(3, 2, 0, 1)
            case "batched":
                return array[None]
        return array


# Names of tensors, {} standing for the number of a layer, and the places of what they name.
Spelling = dict[str, Place]


def _linear(name: str, path: str) -> Spelling:
    kernel, bias = Place(f"{path}/kernel", "linear"), Place(f"{path}/bias")
    return {f"{name}.weight": kernel, f"{name}.bias": bias}


def _norm(name: str, path: str) -> Spelling:
    return {f"{name}.weight": Place(f"{path}/scale"), f"{name}.bias": Place(f"{path}/bias")}


def _embeddings(cls: str, registers: str, patches: str, mask: Spelling) -> Spelling:
    return mask | {
        cls: Place("cls_token", "batched"),
        registers: Place("register_tokens", "batched"),
        f"{patches}.weight": Place("patch_embed/kernel", "convolution"),
        f"{patches}.bias": Place("patch_embed/bias"),
    }


def _biases(pattern: str) -> Spelling:
    # Keys have no bias, which some files say by zeros.
    return {
        pattern.format(name): Place("attn/qkv_bias", third=third, optional=name == "k")
        for third, name in enumerate("qkv")
    }


def _mlp(up: str, down: str, gate: str | None = None) -> Spelling:
    gated = _linear(f"mlp.{gate}", "mlp/gate") if gate else {}
    return gated | _linear(f"mlp.{up}", "mlp/up") | _linear(f"mlp.{down}", "mlp/down")


# A part of the model as Hugging Face, Meta and timm spell it.
Part = tuple[Spelling, Spelling, Spelling]


def _in_blocks(huggingface: Spelling, meta: Spelling, timm: Spelling) -> Part:
    def within(layer: str, spelling: Spelling) -> Spelling:
        return {
            f"{layer}.{{}}.{name}": dataclasses.replace(place, path=f"blocks/{place.path}")
            for name, place in spelling.items()
        }

    return within("layer", huggingface), within("blocks", meta), within("blocks", timm)


_FUSED = {"attn.qkv.weight": Place("attn/qkv/kernel", "linear")} | _linear("attn.proj", "attn/out")
_EMBEDDINGS: Part = (
    _embeddings(
        "embeddings.cls_token",
        "embeddings.register_tokens",
        "embeddings.patch_embeddings",
        {"embeddings.mask_token": Place("mask_token", "batched")},
    ),
    _embeddings(
        "cls_token", "storage_tokens", "patch_embed.proj", {"mask_token": Place("mask_token")}
    ),
    _embeddings(  # timm leaves the mask token out: only pre-training uses it
        "cls_token",
        "reg_token",
        "patch_embed.proj",
        {"mask_token": Place("mask_token", "batched", optional=True)},
    ),
)
_NORM: Part = (_norm("norm", "norm"),) * 3
_NORMS = _in_blocks(*(_norm("norm1", "norm1") | _norm("norm2", "norm2"),) * 3)
_ATTENTION = _in_blocks(
    {
        f"attention.{name}_proj.weight": Place("attn/qkv/kernel", "linear", third)
        for third, name in enumerate("qkv")
    }
    | _linear("attention.o_proj", "attn/out"),
    _FUSED,
    _FUSED,
)
_BIASES = _in_blocks(
    _biases("attention.{}_proj.bias"),
    {
        "attn.qkv.bias": Place("attn/qkv_bias"),
        "attn.qkv.bias_mask": Place("attn/bias_mask", optional=True),
    },
    _biases("attn.{}_bias"),
)
_SCALES = _in_blocks(
    {f"layer_scale{i}.lambda1": Place(f"layer_scale{i}") for i in (1, 2)},
    {f"ls{i}.gamma": Place(f"layer_scale{i}") for i in (1, 2)},
    {f"gamma_{i}": Place(f"layer_scale{i}") for i in (1, 2)},
)
_MLP = _in_blocks(_mlp("up_proj", "down_proj"), _mlp("fc1", "fc2"), _mlp("fc1", "fc2"))
_GATED_MLP = _in_blocks(
    _mlp("up_proj", "down_proj", "gate_proj"),
    _mlp("w2", "w3", "w1"),
    _mlp("fc1_x", "fc2", "fc1_g"),
)


def parts(gated: bool, qv_bias: bool) -> list[Part]:
    """All parts of a model."""
    mlp = _GATED_MLP if gated else _MLP
    return [_EMBEDDINGS, _NORM, _NORMS, _ATTENTION, *[_BIASES] * qv_bias, _SCALES, mlp]


def huggingface(gated: bool, qv_bias: bool) -> Spelling:
    """The names that transformers writes."""
    return functools.reduce(operator.or_, (part[0] for part in parts(gated, qv_bias)))


def recognise(names: Collection[str]) -> Spelling:
    """The names that a file of the model that these names come from should have.

    The model is gated if any gate is named, and has q and v biases if any is. Every part is spelt
    as most of its names are; where none is there, as most of the file is.
    """
    count = collections.Counter(split(name)[0] for name in names)

    def named(part: Part, path: str) -> bool:
        places = [place_of for spelling in part for place_of in spelling.items()]
        return any(count[name] for name, place in places if place.path == path)

    present = parts(
        named(_GATED_MLP, "blocks/mlp/gate/kernel"), named(_BIASES, "blocks/attn/qkv_bias")
    )
    totals = [sum(count[name] for part in present for name in part[i]) for i in range(3)]
    library = totals.index(max(totals))

    def choose(part: Part) -> Spelling:
        usual = part[library]
        return max((usual, *part), key=lambda spelling: sum(count[name] for name in spelling))

    return functools.reduce(operator.or_, map(choose, present))


def split(name: str) -> tuple[str, int | None]:
    """layer.7.norm1.bias to layer.{}.norm1.bias and 7."""
    match = re.fullmatch(r"(layer|blocks)\.(\d+)\.(.+)", name)
    return (f"{match[1]}.{{}}.{match[3]}", int(match[2])) if match else (name, None)


def expand(spelling: Spelling, layers: int) -> Spelling:
    """The places of all names of a model of so many layers."""
    return {
        name.format(layer): dataclasses.replace(place, layer=layer)
        for name, place in spelling.items()
        for layer in (range(layers) if "{}" in name else [None])
    }
