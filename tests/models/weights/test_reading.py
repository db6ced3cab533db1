"""Weight files in every spelling, good ones and bad ones."""

import collections
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usfm.errors import UserError
from usfm.models import weights
from usfm.models.dinov3 import Variant
from usfm.models.weights import names
from usfm.models.weights.reading import shapes
from usfm.models.weights.sizes import sizes
from usfm.models.weights.tensor import Tensor


@pytest.mark.parametrize("case", ["gelu", "swiglu"])
@pytest.mark.parametrize("library", ["meta", "timm"])
def test_the_names_of_meta_and_timm_are_read(case, library, reference, save, spell, assert_equal):
    named = spell(case, library)
    assert named.keys() & spell(case, "huggingface").keys() == {"norm.weight", "norm.bias"}
    variant, params = weights.read(save(named))
    assert variant == reference[case][0]
    assert_equal(params, reference[case][1])


@pytest.mark.parametrize("pattern", [r"^", r"^(?=layer|norm)"])
def test_names_may_have_a_prefix(pattern, reference, save, spell, assert_equal):
    named = {
        re.sub(pattern, "model.", name): array
        for name, array in spell("gelu", "huggingface").items()
    }
    assert_equal(weights.read(save(named)), reference["gelu"])


def test_parts_may_be_named_as_different_libraries_do(reference, save, spell, assert_equal):
    timm, ours = spell("gelu", "timm"), spell("gelu", "meta")
    mixed = {name: array for name, array in timm.items() if not re.search("_bias|gamma", name)}
    mixed |= {name: array for name, array in ours.items() if re.search("qkv.bias|gamma", name)}
    assert_equal(weights.read(save(mixed)), reference["gelu"])


def test_the_mask_token_that_timm_leaves_out_is_zero(save, spell):
    named = spell("gelu", "timm")
    del named["mask_token"]
    _, params = weights.read(save(named))
    np.testing.assert_array_equal(params["mask_token"], np.zeros((1, 24)))


def test_a_teacher_of_metas_training_is_read_without_its_heads(
    reference, save, spell, assert_equal
):
    named = {f"backbone.{name}": array for name, array in spell("gelu", "meta").items()}
    named["dino_head.mlp.0.weight"] = named["backbone.local_cls_norm.weight"] = np.ones(3)
    assert_equal(weights.read(save(named)), reference["gelu"])


def test_a_sharded_file_is_read_by_its_index_or_its_directory(
    reference, folder, save, spell, assert_equal
):
    shards: dict[str, dict[str, np.ndarray]] = collections.defaultdict(dict)
    for i, (name, array) in enumerate(spell("gelu", "huggingface").items()):
        shards[f"model-{i % 3}.safetensors"][name] = array
    for shard, part in shards.items():
        save(part, name=shard)
    index = folder / "model.safetensors.index.json"
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    index.write_text(json.dumps({"weight_map": weight_map}))
    for path in (index, folder, str(folder)):
        assert_equal(weights.read(path), reference["gelu"])
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-1.safetensors is missing"):
        weights.read(index)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floating_types_become_float32(dtype, save, spell):
    named = {
        name: array.astype(jnp.dtype(dtype)) for name, array in spell("gelu", "huggingface").items()
    }
    _, params = weights.read(save(named))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    expected = named["layer.1.mlp.up_proj.weight"].astype(np.float32).T
    np.testing.assert_array_equal(params["blocks"]["mlp"]["up"]["kernel"][1], expected)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_all_that_does_not_fit_is_listed_at_once(prefix, save, spell):
    named = {prefix + name: array for name, array in spell("gelu", "huggingface").items()}
    del named[f"{prefix}layer.2.norm1.bias"], named[f"{prefix}embeddings.cls_token"]
    named[f"{prefix}layer.1.mlp.up_proj.weight"] = np.zeros((48, 23), np.float32)
    named[f"{prefix}embeddings.register_tokens"] = np.zeros((1, 3, 24), np.float32)
    named[f"{prefix}norm.weight"] = np.zeros(24, np.int8)
    named["pooler.dense.weight"] = np.zeros((24, 24), np.float32)
    with pytest.raises(UserError) as error:
        weights.read(save(named))
    assert set(str(error.value).splitlines()[1:]) == {
        f"  missing: {prefix}layer.2.norm1.bias [24]",
        f"  missing: {prefix}embeddings.cls_token [1, 1, 24]",
        f"  misshapen: {prefix}layer.1.mlp.up_proj.weight [48, 23], expected [48, 24]",
        f"  misshapen: {prefix}embeddings.register_tokens [1, 3, 24], expected [1, 4, 24]",
        f"  I8: {prefix}norm.weight, expected float16, bfloat16, float32, float64",
        "  unexpected: pooler.dense.weight [24, 24]",
    }


def test_what_is_missing_is_named_as_the_library_would(save, spell):
    named = spell("gelu", "meta")
    for name in [name for name in named if "ls1" in name or "fc2" in name]:
        del named[name]
    with pytest.raises(UserError) as error:
        weights.read(save(named))
    missing = {line.split()[1] for line in str(error.value).splitlines()[1:]}
    assert missing == {
        f"blocks.{i}.{name}"
        for i in range(4)
        for name in ("ls1.gamma", "mlp.fc2.weight", "mlp.fc2.bias")
    }


def test_a_name_with_and_without_its_prefix_is_unexpected(save, spell):
    named = spell("gelu", "huggingface")
    named["model.norm.weight"] = named["norm.weight"]
    with pytest.raises(UserError, match=r"unexpected: (model\.)?norm\.weight \[24\]$"):
        weights.read(save(named))


def test_other_models_and_other_files_are_told_so(folder, save, spell):
    with pytest.raises(UserError, match=r"no DINOv3 encoder: its tensors are named conv1\.weight"):
        weights.read(save({"conv1.weight": np.zeros((3, 3))}))
    (folder / "notes.txt").write_text("not weights")
    with pytest.raises(UserError, match=r"notes.txt is neither safetensors nor"):
        weights.read(folder / "notes.txt")
    with pytest.raises(UserError, match=r"there is no weight file .*none\.pth"):
        weights.read(folder / "none.pth")
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds neither model.safetensors nor"):
        weights.read(folder / "empty")
    path = save(spell("gelu", "huggingface"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"is damaged .*; fetch it again"):
        weights.read(path)


@pytest.mark.parametrize(
    ("bias", "mask"), [(0, 1), (np.nan, 1), (7, 0), (7, np.nan), (0, None), (np.nan, None)]
)
def test_biases_of_the_keys_that_come_to_nothing_are_dropped(
    bias, mask, reference, save, spell, assert_equal
):
    named = spell("gelu", "meta")
    for i in range(4):
        named[f"blocks.{i}.attn.qkv.bias"][24:48] = bias
        if mask is None:
            del named[f"blocks.{i}.attn.qkv.bias_mask"]
        else:
            named[f"blocks.{i}.attn.qkv.bias_mask"][24:48] = mask
    assert_equal(weights.read(save(named))[1], reference["gelu"][1])


def test_biases_of_the_keys_are_refused_by_name(save, spell):
    named = spell("gelu", "meta")
    named["blocks.2.attn.qkv.bias_mask"][30] = 1
    with pytest.raises(UserError, match=r"biases on the keys.*: blocks\.2\.attn\.qkv\.bias$"):
        weights.read(save(named))
    named = spell("gelu", "huggingface") | {
        f"layer.{i}.attention.k_proj.bias": np.float32(np.arange(24) == i) * (i == 3)
        for i in range(4)
    }
    with pytest.raises(UserError, match=r"keys.*: layer\.3\.attention\.k_proj\.bias$"):
        weights.read(save(named))


def test_metas_mask_multiplies_the_biases_as_in_its_model(save, spell):
    named = spell("gelu", "meta")
    named["blocks.0.attn.qkv.bias_mask"][:] = 0  # as in the published files, whose biases are zero
    _, params = weights.read(save(named))
    assert not params["blocks"]["attn"]["q_bias"][0].any()
    assert not params["blocks"]["attn"]["v_bias"][0].any()
    assert params["blocks"]["attn"]["v_bias"][1].all()


def described(width: int, layers: int) -> dict[str, Tensor]:
    """The tensors of an encoder whose values nobody reads."""
    variant = Variant(width, layers, 1, 4 * width)
    blank = jax.tree.map(lambda a: np.broadcast_to(np.float32(0), a.shape), shapes(variant))
    blank["blocks"]["attn"]["qkv_bias"] = np.broadcast_to(np.float32(0), (layers, 3 * width))
    places = names.expand(names.huggingface(gated=False, qv_bias=True), layers)
    return {
        name: Tensor(place.view(blank).shape, "float32", lambda: pytest.fail("read"))
        for name, place in places.items()
        if not place.optional
    }


@pytest.mark.parametrize(("width", "heads"), [(128, 2), (384, 6), (4096, 32)])
def test_without_config_json_heads_have_their_published_width(width, heads, tmp_path):
    tensors = described(width, 3)
    found = sizes(tensors, names.recognise(tensors), tmp_path / "x.safetensors")
    assert found == Variant(width, 3, heads, 4 * width)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "width 24 does not make 0 heads"),
        ({"num_attention_heads": 5}, "width 24 does not make 5 heads"),
        ({"num_attention_heads": 2, "rope_theta": 10_000.0}, "says rope_theta=10000.0; DINOv3 has"),
        ({"num_attention_heads": 2, "hidden_act": "relu"}, "says hidden_act='relu'"),
    ],
)
def test_a_config_json_that_does_not_fit_is_told(config, message, folder, save, spell):
    path = save(spell("gelu", "huggingface"))
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=re.escape(message)):
        weights.read(path)


PEAK = """
import os, re, sys, jax
from usfm.models import load_encoder

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

small, large = sys.argv[1:]
load_encoder(small)  # brings in all code
before = peak()
jax.block_until_ready(load_encoder(large).params)
print((peak() - before) / os.path.getsize(large))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="asks Linux for the peak")
def test_loading_holds_the_weights_once(save, spell):
    small = save(spell("gelu", "huggingface"), name="small.safetensors")
    rng = np.random.default_rng(0)
    tensors = described(512, 12).items()
    large = save({name: rng.standard_normal(t.shape, np.float32) for name, t in tensors})
    assert large.stat().st_size > 100 << 20
    arguments = [sys.executable, "-c", PEAK, str(small), str(large)]
    root = pathlib.Path(__file__).parents[3]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert 0.5 < float(done.stdout) < 1.5
