"""Writes an encoder as Hugging Face's transformers does."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
from safetensors import numpy as safetensors

from usfm.errors import UserError
from usfm.models.dinov3 import PATCH, REGISTERS, ROPE_BASE, Variant
from usfm.models.functional import Params
from usfm.models.lora import LoRA, merged
from usfm.models.weights import files, names
from usfm.models.weights.reading import shapes


def export(
    params: Params,
    variant: Variant,
    path: str | pathlib.Path,
    *,
    lora_alpha: float | None = None,
) -> pathlib.Path:
    """Writes weights that transformers.DINOv3ViTModel.from_pretrained reads.

    Args:
        params: of a plain encoder, or of one with LoRA, which is merged into the kernels.
        variant: its sizes.
        path: a directory, which will hold model.safetensors, or the .safetensors file itself;
            config.json is written beside it.
        lora_alpha: of LoRA's scale alpha / rank; needed where there is LoRA.

    Returns:
        The path of the weights.

    Raises:
        UserError: there are mixture-of-experts layers, for which transformers has no names, or
            LoRA without its alpha.
        ValueError: the parameters are not of these sizes.
    """
    if "moe_blocks" in params:
        raise UserError(
            "an encoder with mixture-of-experts layers cannot be exported: DINOv3 of transformers "
            "has none; train with model.moe.experts=0 for weights to export"
        )
    params = jax.tree.map(np.asarray, _without_lora(params, lora_alpha))
    if jax.tree.map(np.shape, params) != jax.tree.map(lambda a: a.shape, shapes(variant)):
        raise ValueError(f"these are not the parameters of an encoder of {variant}")
    if variant.qv_bias:
        attention = params["blocks"]["attn"]
        q, v = attention["q_bias"], attention["v_bias"]
        attention["qkv_bias"] = np.concatenate([q, np.zeros_like(q), v], axis=-1)
    spelling = names.huggingface(variant.gated, variant.qv_bias)
    tensors = {
        name: np.ascontiguousarray(place.view(params), np.float32)
        for name, place in names.expand(spelling, variant.layers).items()
        if not place.optional
    }
    file = file_of(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    # transformers asks for this format.
    safetensors.save_file(tensors, file, metadata={"format": "pt"})
    text = json.dumps(config(variant), indent=2, sort_keys=True)
    file.with_name("config.json").write_text(text + "\n")
    return file


def file_of(path: str | pathlib.Path) -> pathlib.Path:
    """The weight file that `export` writes for a path."""
    path = pathlib.Path(path).expanduser()
    return path if path.suffix == ".safetensors" else path / files.SINGLE


def config(variant: Variant) -> dict[str, Any]:
    """The fields of transformers' DINOv3ViTConfig."""
    return {
        "architectures": ["DINOv3ViTModel"],
        "model_type": "dinov3_vit",
        "dtype": "float32",
        "hidden_size": variant.width,
        "num_hidden_layers": variant.layers,
        "num_attention_heads": variant.heads,
        "intermediate_size": variant.mlp_width,
        "use_gated_mlp": variant.gated,
        "hidden_act": "silu" if variant.gated else "gelu",
        "query_bias": variant.qv_bias,
        "key_bias": False,
        "value_bias": variant.qv_bias,
        "proj_bias": True,
        "mlp_bias": True,
        "layer_norm_eps": 1e-5,
        "layerscale_value": variant.layer_scale,
        "num_register_tokens": REGISTERS,
        "patch_size": PATCH,
        "num_channels": 3,
        "image_size": 224,
        "rope_theta": ROPE_BASE,
        "pos_embed_rescale": 2.0,
    }


def _without_lora(params: Params, alpha: float | None) -> Params:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    ranks = {leaf.shape[-1] for path, leaf in leaves if path[-1].key == "lora_a"}
    if not ranks:
        return params
    if alpha is None:
        raise UserError("the encoder has LoRA, which cannot be merged without its alpha")
    (rank,) = ranks
    return merged(params, LoRA(rank, alpha))
