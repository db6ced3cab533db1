"""One small model's weights in every library's names, and files of them."""

import json
import pathlib
import re
import runpy
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

from usfm.models import weights

Named = dict[str, np.ndarray]

SCRIPT = pathlib.Path(__file__).parents[2] / "fixtures/make_dinov3.py"

META = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "storage_tokens",
    "embeddings.mask_token": "mask_token",
    "embeddings.patch_embeddings": "patch_embed.proj",
    r"layer\.(\d+)\.": r"blocks.\1.",
    "attention.o_proj": "attn.proj",
    r"layer_scale(\d).lambda1": r"ls\1.gamma",
}
TIMM = META | {
    "embeddings.register_tokens": "reg_token",
    r"layer_scale(\d).lambda1": r"gamma_\1",
    r"attention.([qv])_proj.bias": r"attn.\1_bias",
}
MLP = {
    ("meta", "gelu"): {"up": "fc1", "down": "fc2"},
    ("meta", "swiglu"): {"gate": "w1", "up": "w2", "down": "w3"},
    ("timm", "gelu"): {"up": "fc1", "down": "fc2"},
    ("timm", "swiglu"): {"gate": "fc1_g", "up": "fc1_x", "down": "fc2"},
}


def renamed(named: Named, patterns: dict[str, str]) -> Named:
    def rename(name: str) -> str:
        for pattern, new in patterns.items():
            name = re.sub(pattern, new, name)
        return name

    return {rename(name): array for name, array in named.items()}


@pytest.fixture(scope="session")
def make() -> dict[str, Any]:
    """The script of the reference: its CASES, weights() by Hugging Face's names and images()."""
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="session")
def spell(make) -> Callable[[str, str], Named]:
    """The weights of a case (gelu, swiglu) as a library (huggingface, meta, timm) names them."""

    def spell(case: str, library: str) -> Named:
        named = make["weights"](make["CASES"][case])
        if library == "huggingface":
            return named
        mlp = {f"mlp.{ours}_proj": f"mlp.{theirs}" for ours, theirs in MLP[library, case].items()}
        named = renamed(named, (META if library == "meta" else TIMM) | mlp)
        for i in range(make["CASES"][case]["layers"]):
            part = f"blocks.{i}.attention"
            qkv = [named.pop(f"{part}.{name}_proj.weight") for name in "qkv"]
            named[f"blocks.{i}.attn.qkv.weight"] = np.concatenate(qkv)
            if library == "meta" and case == "gelu":
                q, v = (named.pop(f"{part}.{name}_proj.bias") for name in "qv")
                named[f"blocks.{i}.attn.qkv.bias"] = np.concatenate([q, np.full_like(q, 7), v])
                mask = np.repeat(np.array([1, 0, 1], np.float32), len(q))
                named[f"blocks.{i}.attn.qkv.bias_mask"] = mask
        if library == "meta":
            named["mask_token"] = named["mask_token"][0]
            named["rope_embed.periods"] = np.ones(3, np.float32)
        return named

    return spell


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """A folder whose config.json says two attention heads."""
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 2}))
    return tmp_path


@pytest.fixture
def save(folder) -> Callable[..., pathlib.Path]:
    """Writes arrays as a safetensors file into `folder`."""

    def save(named: Named, name: str = "model.safetensors") -> pathlib.Path:
        arrays = {name: np.ascontiguousarray(array) for name, array in named.items()}
        safetensors.save_file(arrays, folder / name)
        return folder / name

    return save


@pytest.fixture(scope="session")
def reference(spell, tmp_path_factory) -> dict[str, tuple[Any, Any]]:
    """Variant and parameters of each case, as they are read from Hugging Face's names."""
    read = {}
    for case in ("gelu", "swiglu"):
        folder = tmp_path_factory.mktemp(case)
        (folder / "config.json").write_text(json.dumps({"num_attention_heads": 2}))
        safetensors.save_file(spell(case, "huggingface"), folder / "model.safetensors")
        read[case] = weights.read(folder)
    return read


@pytest.fixture(scope="session")
def assert_equal() -> Callable[[Any, Any], None]:
    """Asserts that two trees have the same leaves with the same values."""

    def assert_equal(ours: Any, theirs: Any) -> None:
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)

    return assert_equal
