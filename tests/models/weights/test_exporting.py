"""What is written for Hugging Face's transformers."""

import os
import pathlib
import subprocess

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

from usfm.errors import UserError
from usfm.models import weights
from usfm.models.dinov3 import VARIANTS
from usfm.models.lora import LoRA

REFERENCE = np.load(pathlib.Path(__file__).parents[2] / "fixtures/dinov3.npz")


@pytest.mark.parametrize("case", ["gelu", "swiglu"])
def test_export_gives_back_every_byte(case, reference, folder, spell, assert_equal):
    variant, params = reference[case]
    file = weights.export(jax.device_put(params), variant, folder / "out")
    assert file == folder / "out/model.safetensors"
    written = safetensors.load_file(file)
    named = spell(case, "huggingface")
    assert written.keys() == named.keys()
    for name, array in named.items():
        assert written[name].tobytes() == array.tobytes(), name
    assert_equal(weights.read(folder / "out"), reference[case])


def test_export_takes_a_file_name_too(reference, folder, assert_equal):
    variant, params = reference["gelu"]
    file = weights.export(params, variant, folder / "a/b.safetensors")
    assert sorted(path.name for path in file.parent.iterdir()) == ["b.safetensors", "config.json"]
    assert_equal(weights.read(file), reference["gelu"])


def test_low_rank_updates_are_merged_into_what_is_exported(reference, folder, assert_equal):
    variant, params = reference["gelu"]
    a = np.random.default_rng(0).standard_normal((4, 24, 3), np.float32)
    b = np.random.default_rng(1).standard_normal((4, 3, 24), np.float32)
    out = params["blocks"]["attn"]["out"]
    attention = params["blocks"]["attn"] | {"out": out | {"lora_a": a, "lora_b": b}}
    with_lora = params | {"blocks": params["blocks"] | {"attn": attention}}
    with pytest.raises(UserError, match="without its alpha"):
        weights.export(with_lora, variant, folder)
    _, merged = weights.read(weights.export(with_lora, variant, folder, lora_alpha=6))
    expected = out["kernel"] + LoRA(3, 6).scale * a @ b
    np.testing.assert_allclose(merged["blocks"]["attn"]["out"]["kernel"], expected, atol=1e-5)
    merged["blocks"]["attn"]["out"]["kernel"] = out["kernel"]
    assert_equal(merged, params)


def test_mixtures_and_other_parameters_are_not_exported(reference, folder):
    variant, params = reference["gelu"]
    with pytest.raises(UserError, match="mixture-of-experts layers cannot be exported"):
        weights.export(params | {"moe_blocks": {}}, variant, folder / "out")
    with pytest.raises(ValueError, match="not the parameters of an encoder of Variant"):
        weights.export(params, VARIANTS["tiny"], folder / "out")
    assert not (folder / "out").exists()


PEER = """
import sys, numpy, torch, transformers
folder, images = sys.argv[1:]
model, info = transformers.DINOv3ViTModel.from_pretrained(folder, output_loading_info=True)
faults = [info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")]
assert not any(faults), faults
with torch.no_grad():
    tokens = model.eval()(torch.tensor(numpy.load(images)).permute(0, 3, 1, 2)).last_hidden_state
numpy.save(f"{folder}/tokens.npy", tokens.numpy())
torch.save(model.state_dict(), f"{folder}/model.pth")
model.save_pretrained(f"{folder}/again")
"""


@pytest.mark.parametrize("case", ["gelu", "swiglu"])
def test_transformers_loads_what_is_exported(case, reference, folder, assert_equal, make):
    python = os.environ.get("PEER_PY")
    if not python:
        pytest.skip("PEER_PY does not name a python that has torch and transformers")
    variant, params = reference[case]
    file = weights.export(params, variant, folder / "out")
    np.save(folder / "images.npy", make["images"]())
    arguments = [python, "-c", PEER, folder / "out", folder / "images.npy"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    tokens = np.load(folder / "out/tokens.npy")
    np.testing.assert_allclose(tokens, REFERENCE[f"{case}/tokens"], rtol=0, atol=1e-5)
    assert (folder / "out/again/model.safetensors").read_bytes() == file.read_bytes()
    assert_equal(weights.read(folder / "out/model.pth"), reference[case])
