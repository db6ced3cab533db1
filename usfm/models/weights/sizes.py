"""Reads an encoder's sizes from its weights."""

import collections
import pathlib
from collections.abc import Mapping

from usfm.errors import UserError
from usfm.models.dinov3 import ROPE_BASE, Variant
from usfm.models.weights import files, names
from usfm.models.weights.names import Spelling
from usfm.models.weights.tensor import Tensor


def sizes(tensors: Mapping[str, Tensor], spelling: Spelling, path: pathlib.Path) -> Variant:
    """The sizes that most of the tensors agree on; those that do not are misshapen.

    Args:
        tensors: by their names without a prefix.
        spelling: as names.recognise tells it.
        path: of the weights; config.json beside it has the number of heads.

    Raises:
        UserError: there is no encoder, or config.json tells of one that is built otherwise.
    """
    layers = []
    lengths: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for name, tensor in tensors.items():
        template, layer = names.split(name)
        if template in spelling:
            layers += [layer] if layer is not None else []
            lengths[spelling[template].path].update(tensor.shape[:1])
    widths = lengths["norm/scale"] + lengths["blocks/norm1/scale"]
    if not layers or not widths:
        first = ", ".join(list(tensors)[:3])
        raise UserError(f"{path} holds no DINOv3 encoder: its tensors are named {first}, ...")
    paths = {place.path for place in spelling.values()}
    ((width, _),) = widths.most_common(1)
    wide = lengths["blocks/mlp/up/kernel"] or collections.Counter([4 * width])
    gated = "blocks/mlp/gate/kernel" in paths
    return Variant(
        width=width,
        layers=max(layers) + 1,
        heads=_heads(width, gated, path),
        mlp_width=wide.most_common(1)[0][0],
        gated=gated,
        qv_bias="blocks/attn/qkv_bias" in paths,
    )


def _heads(width: int, gated: bool, path: pathlib.Path) -> int:
    config = files.config_beside(path)
    built = {
        "hidden_act": "silu" if gated else "gelu",
        "layer_norm_eps": 1e-5,
        "rope_theta": ROPE_BASE,
    }
    for name, ours in built.items():
        if config.get(name, ours) != ours:
            raise UserError(
                f"config.json beside {path} says {name}={config[name]!r}; DINOv3 has {ours!r}. "
                "If it belongs to other weights, move these into a directory of their own"
            )
    heads = config.get("num_attention_heads", width // (128 if width == 4096 else 64))
    if not isinstance(heads, int) or heads < 1 or width % (4 * heads):
        raise UserError(
            f"{path}: width {width} does not make {heads} heads of a multiple of 4; say their "
            "number as num_attention_heads in config.json beside it"
        )
    return heads
