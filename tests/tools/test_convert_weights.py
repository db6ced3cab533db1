import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tools import convert_weights
from usfm import config as usfm_config
from usfm.models import weights
from usfm.models.dinov3 import VARIANTS
from usfm.models.lora import LoRA, merged
from usfm.models.weights.reading import shapes
from usfm.training.checkpoint import Checkpoints
from usfm.training.state import TrainState

TINY = VARIANTS["tiny"]


def random_encoder(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: rng.standard_normal(a.shape, np.float32), shapes(TINY))


def save_run(workdir: pathlib.Path, states: dict[int, TrainState]) -> None:
    """What training leaves behind, of model tiny."""
    workdir.mkdir()
    config = usfm_config.debug(usfm_config.base())
    config.model.lora.alpha = 6.0
    usfm_config.write(config, workdir / "config.json")
    with Checkpoints(workdir / "checkpoints", keep=10) as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, state, {"tasks": []})


def state(encoder: dict[str, Any], ema: dict[str, Any] | None = None) -> TrainState:
    params = {"encoder": encoder, "heads": {"detection": {"bias": jnp.ones(5)}}}
    return TrainState(jnp.int32(1), params, {}, multitask={}, ema=ema or {})


def assert_holds(directory: pathlib.Path, encoder: dict[str, Any]) -> None:
    variant, params = weights.read(directory)
    assert (variant.width, variant.layers, variant.heads) == (TINY.width, TINY.layers, TINY.heads)
    assert jax.tree.structure(params) == jax.tree.structure(encoder)
    jax.tree.map(np.testing.assert_array_equal, params, encoder)


def test_a_weight_file_is_converted(tmp_path, capsys):
    source = weights.export(random_encoder(), TINY, tmp_path / "a.safetensors")
    convert_weights.main([str(source), str(tmp_path / "b/c.safetensors")])
    assert (tmp_path / "b/c.safetensors").read_bytes() == source.read_bytes()
    assert "4 layers of width 192 and 3 heads" in capsys.readouterr().out


def test_the_newest_checkpoint_of_a_run_is_converted(tmp_path):
    old, new = random_encoder(0), random_encoder(1)
    save_run(tmp_path / "run", {1: state(old), 2: state(new)})
    convert_weights.main([str(tmp_path / "run"), str(tmp_path / "out")])
    assert_holds(tmp_path / "out", new)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["model_type"], config["num_attention_heads"]) == ("dinov3_vit", 3)


def test_averaged_weights_are_taken_where_there_are_some(tmp_path):
    trained, averaged = random_encoder(0), random_encoder(1)
    frozen = averaged | {"patch_embed": {"kernel": None, "bias": None}}
    save_run(tmp_path / "run", {1: state(trained, {"encoder": frozen, "heads": {}})})
    convert_weights.main([str(tmp_path / "run"), str(tmp_path / "out")])
    assert_holds(tmp_path / "out", averaged | {"patch_embed": trained["patch_embed"]})


def test_low_rank_updates_of_a_run_are_merged_with_its_alpha(tmp_path):
    encoder = random_encoder()
    rng = np.random.default_rng(1)
    encoder["blocks"]["attn"]["qkv"] |= {
        "lora_a": rng.standard_normal((TINY.layers, TINY.width, 2), np.float32),
        "lora_b": rng.standard_normal((TINY.layers, 2, 3 * TINY.width), np.float32),
    }
    save_run(tmp_path / "run", {1: state(encoder)})
    convert_weights.main([str(tmp_path / "run"), str(tmp_path / "out")])
    assert_holds(tmp_path / "out", merged(encoder, LoRA(2, 6.0)))


def test_mixtures_are_refused(tmp_path):
    save_run(tmp_path / "run", {1: state(random_encoder() | {"moe_blocks": {"w": jnp.ones(2)}})})
    with pytest.raises(SystemExit, match=r"^convert_weights: .*mixture-of-experts .* exported"):
        convert_weights.main([str(tmp_path / "run"), str(tmp_path / "out")])


def test_nothing_is_overwritten(tmp_path):
    source = weights.export(random_encoder(), TINY, tmp_path / "a.safetensors")
    for target in (tmp_path / "a.safetensors", tmp_path / "b.safetensors"):
        with pytest.raises(SystemExit, match=r"^convert_weights: .*(a.safetensors|json) exists"):
            convert_weights.main([str(source), str(target)])


def test_what_cannot_be_read_is_one_clear_line(tmp_path):
    out = str(tmp_path / "out")
    with pytest.raises(SystemExit, match=r"^convert_weights: there is no weight file .*none$"):
        convert_weights.main([str(tmp_path / "none"), out])
    save_run(tmp_path / "run", {})
    with pytest.raises(SystemExit, match=r"^convert_weights: .*run holds no checkpoint yet"):
        convert_weights.main([str(tmp_path / "run"), out])
    assert not (tmp_path / "out").exists()
