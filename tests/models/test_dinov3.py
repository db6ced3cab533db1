"""DINOv3 against Hugging Face's implementation, its sizes, and its parts by themselves."""

import dataclasses
import json
import math
import os
import pathlib
import runpy
import subprocess
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

from usfm.models import dinov3, functional, weights
from usfm.models.dinov3 import DINOv3, Variant

SCRIPT = pathlib.Path(__file__).parents[1] / "fixtures/make_dinov3.py"
MAKE = runpy.run_path(str(SCRIPT))
REFERENCE = np.load(MAKE["FILE"])
TINY = dinov3.VARIANTS["tiny"]


def from_huggingface(named) -> functional.Params:
    """Our parameters (or gradients) from arrays by Hugging Face names, as read from a file."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        arrays = {name: np.ascontiguousarray(array) for name, array in named.items()}
        safetensors.save_file(arrays, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"num_attention_heads": 2}))
        return weights.read(folder)[1]


def encoder(variant: Variant):
    """(make, run): a constructor for functional.init; (params, images, taps) -> tokens, maps."""

    def make(rngs):
        return DINOv3(variant, jnp.dtype("float32"), rngs)

    structure = functional.structure(make)

    def run(params, images, taps, **options):
        out = functional.merge(structure, params)(images, taps, **options)
        return out.tokens, out.maps

    return make, run


def assert_within(tolerance: float, ours, theirs) -> None:
    """Every leaf within an absolute tolerance, and the same leaves on both sides."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=jax.tree_util.keystr(path))


def test_the_reference_was_made_by_the_script_as_it_is():
    assert str(REFERENCE["script"]) == MAKE["script_hash"](), (
        "tests/fixtures/make_dinov3.py was changed: run it again, as its docstring says"
    )


@pytest.mark.parametrize("name", MAKE["CASES"])
def test_outputs_maps_and_gradients_are_those_of_transformers(name):
    case = MAKE["CASES"][name]
    variant = Variant(**case)
    make, run = encoder(variant)
    named, images = MAKE["weights"](case), MAKE["images"]()
    params = from_huggingface(named)
    shapes = jax.eval_shape(lambda key: functional.init(make, key), jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)

    @jax.jit
    def answer(params):
        outputs, pull_back = jax.vjp(
            lambda p: run(p, images, taps=tuple(range(variant.layers))), params
        )
        ones = tuple(jnp.asarray(MAKE["coefficients"](out.shape)) for out in outputs)
        return outputs, pull_back(ones)[0]

    outputs, gradients = answer(params)
    theirs = {key.removeprefix(f"{name}/"): REFERENCE[key] for key in REFERENCE}
    assert_within(1e-5, outputs, (theirs["tokens"], theirs["maps"]))
    expected = {
        key.removeprefix("grad/"): value for key, value in theirs.items() if key.startswith("grad/")
    }
    expected["embeddings.mask_token"] = np.zeros((1, 1, variant.width))  # not used here
    assert_within(1e-5, gradients, from_huggingface(expected))


LIVE = """
import runpy, sys
import numpy as np
make = runpy.run_path(sys.argv[1])
case = eval(sys.argv[2])
named = make["weights"](case)
np.savez(sys.argv[4], **make["reference"](case, named, make["images"](eval(sys.argv[3]))))
"""


@pytest.mark.parametrize("size", [(224, 224), (192, 256)])
def test_a_whole_vits16_is_that_of_transformers_live(tmp_path, size):
    python = os.environ.get("PEER_PY")
    if not python:
        pytest.skip("PEER_PY does not name a python that has torch and transformers")
    variant = dinov3.VARIANTS["vits16"]
    case = {k: v for k, v in dataclasses.asdict(variant).items() if k != "layer_scale"}
    shape, file = (2, *size, 3), tmp_path / "reference.npz"
    command = [python, "-c", LIVE, str(SCRIPT), repr(case), repr(shape), str(file)]
    subprocess.run(command, check=True)
    theirs = dict(np.load(file))
    _, run = encoder(variant)
    images, taps = MAKE["images"](shape), tuple(range(variant.layers))

    @jax.jit
    def answer(params):
        outputs, pull_back = jax.vjp(lambda p: run(p, images, taps=taps), params)
        ones = tuple(jnp.asarray(MAKE["coefficients"](out.shape)) for out in outputs)
        return outputs, pull_back(ones)[0]

    outputs, gradients = answer(from_huggingface(MAKE["weights"](case)))
    assert_within(1e-4, outputs, (theirs["tokens"], theirs["maps"]))
    expected = {k.removeprefix("grad/"): v for k, v in theirs.items() if k.startswith("grad/")}
    expected["embeddings.mask_token"] = np.zeros((1, 1, variant.width))  # not used here
    expected = from_huggingface(expected)
    # Gradients are sums over hundreds of tokens, of up to this size.
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    assert_within(1e-5 * max(largest, 10), gradients, expected)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("micro", 249_920),  # by docs/model.md
        ("tiny", 1_929_408),
        ("vits16", 21_596_544),
        ("vits16plus", 28_692_864),
        ("vitb16", 85_660_416),
        ("vitl16", 303_129_600),
        ("vitl16plus", 403_891_200),
        ("vith16plus", 840_592_640),
        ("vit7b16", 6_716_035_072),
    ],
)
def test_parameter_counts_are_the_published_ones_and_those_of_the_docs(name, parameters):
    make, _ = encoder(dinov3.VARIANTS[name])
    shapes = jax.eval_shape(lambda key: functional.init(make, key), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


def test_taps_of_the_published_depths():
    assert dinov3.VARIANTS["vitb16"].taps == (2, 5, 8, 11)
    assert dinov3.VARIANTS["vitl16"].taps == (5, 11, 17, 23)


def test_taps_pick_among_the_layers_and_leave_the_tokens_alone():
    variant = Variant(**MAKE["CASES"]["gelu"])
    _, run = encoder(variant)
    params = from_huggingface(MAKE["weights"](MAKE["CASES"]["gelu"]))
    tokens, maps = REFERENCE["gelu/tokens"], REFERENCE["gelu/maps"]
    some_tokens, some = jax.jit(lambda p: run(p, MAKE["images"](), (0, 2)))(params)
    np.testing.assert_allclose(some, maps[[0, 2]], atol=1e-5)
    np.testing.assert_allclose(some_tokens, tokens, atol=1e-5)
    np.testing.assert_array_equal(maps[-1].reshape(2, 6, -1), tokens[:, dinov3.PREFIX :])


def test_a_rope_scale_multiplies_all_coordinates():
    rows = 2 * (np.arange(2) + 0.5) / 2 - 1
    columns = 2 * (np.arange(3) + 0.5) / 3 - 1
    cos, sin = dinov3.rotary(2, 3, 8, 1.5)
    frequencies = 100.0 ** (-4 * np.arange(2) / 8)
    for place, (row, column) in enumerate((r, c) for r in rows for c in columns):
        angles = 2 * math.pi * 1.5 * np.concatenate([row * frequencies, column * frequencies])
        np.testing.assert_allclose(
            cos[dinov3.PREFIX + place], np.cos(np.tile(angles, 2)), atol=1e-5
        )
        np.testing.assert_allclose(
            sin[dinov3.PREFIX + place], np.sin(np.tile(angles, 2)), atol=1e-5
        )
    np.testing.assert_array_equal(cos[: dinov3.PREFIX], 1)
    np.testing.assert_array_equal(sin[: dinov3.PREFIX], 0)


def test_rotation_is_computed_in_float32_whatever_the_activations_are():
    x = jax.random.normal(jax.random.key(0), (1, 11, 2, 8)).astype(jnp.bfloat16)
    rope = dinov3.rotary(2, 3, 8, 1.0)
    assert rope[0].dtype == rope[1].dtype == jnp.float32
    turned = dinov3.rotate(x, *rope)
    assert turned.dtype == jnp.bfloat16
    exact = dinov3.rotate(x.astype(jnp.float32), *rope)
    np.testing.assert_array_equal(turned, exact.astype(jnp.bfloat16))


# Large logits: only their difference to the largest may be exponentiated. Gradients of q and k are
# then of the size of `scale`, and so is the tolerance.
@pytest.mark.parametrize(("scale", "tolerance"), [(1.0, 1e-5), (20.0, 2e-4)])
def test_attention_on_the_cpu_is_dot_product_attention(scale, tolerance):
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, cotangent = (jax.random.normal(key, (2, 7, 3, 8)) for key in keys)

    def with_gradients(attend):
        out, pull_back = jax.vjp(attend, scale * q, scale * k, v)
        return out, pull_back(cotangent)

    ours = jax.jit(lambda: with_gradients(dinov3._attend_cpu))()
    theirs = jax.jit(lambda: with_gradients(jax.nn.dot_product_attention))()
    assert_within(tolerance, ours, theirs)


def test_the_mask_token_stands_for_masked_patches():
    variant = Variant(**MAKE["CASES"]["gelu"])
    _, run = encoder(variant)
    params = from_huggingface(MAKE["weights"](MAKE["CASES"]["gelu"]))
    images = jnp.asarray(MAKE["images"]())  # 2 x 3 patches
    mask = jnp.zeros((2, 6), bool).at[0, 4].set(True)
    # The same by hand: a patch whose embedding is the mask token.
    embedding = params["patch_embed"]
    token = np.linalg.lstsq(
        np.asarray(embedding["kernel"]).T,
        np.asarray(params["mask_token"][0] - embedding["bias"]),
        rcond=None,
    )[0].reshape(16, 16, 3)
    by_hand = images.at[0, 16:32, 16:32].set(token)
    answer = jax.jit(lambda images, mask: run(params, images, (3,), mask=mask))
    for masked, expected in zip(
        answer(images, mask), answer(by_hand, jnp.zeros_like(mask)), strict=True
    ):
        np.testing.assert_allclose(masked, expected, atol=1e-4)  # lstsq is not exact


def test_dropped_branches_leave_an_image_as_it_was():
    variant = Variant(**MAKE["CASES"]["gelu"])
    _, run = encoder(variant)
    params = from_huggingface(MAKE["weights"](MAKE["CASES"]["gelu"]))
    images = jnp.asarray(MAKE["images"]())
    keep = jnp.ones((variant.layers, 2, 2)).at[1:, :, 0].set(0)
    tokens, maps = jax.jit(lambda keep: run(params, images, (0, 3), keep=keep))(keep)
    np.testing.assert_allclose(maps[1, 0], maps[0, 0], atol=1e-6)
    np.testing.assert_allclose(tokens[1], REFERENCE["gelu/tokens"][1], atol=1e-5)


def test_patches_are_the_input_of_a_stride_16_convolution():
    images = jax.random.normal(jax.random.key(0), (2, 32, 48, 3))
    kernel = jax.random.normal(jax.random.key(1), (16, 16, 3, 5))
    convolved = jax.lax.conv_general_dilated(
        images, kernel, (16, 16), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    product = dinov3.patches(images) @ kernel.reshape(-1, 5)
    np.testing.assert_allclose(product, convolved.reshape(2, 6, 5), rtol=1e-4, atol=1e-3)
