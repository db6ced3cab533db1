"""Pretrained encoders as functions of images."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from usfm.errors import UserError
from usfm.models import load_encoder, weights
from usfm.models.dinov3 import Variant

REFERENCE = np.load(pathlib.Path(__file__).parents[2] / "fixtures/dinov3.npz")


@pytest.mark.parametrize("case", ["gelu", "swiglu"])
def test_a_loaded_encoder_answers_as_transformers_does(case, save, spell, make):
    encoder = load_encoder(save(spell(case, "huggingface")))
    assert encoder.variant == Variant(**make["CASES"][case])
    answer = encoder(make["images"]())
    assert answer.keys() == {"tokens", "maps"}
    for name, value in answer.items():
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, REFERENCE[f"{case}/{name}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 32, 48), np.float32),
        np.zeros((2, 3, 32, 48), np.float32),
        np.zeros((2, 32, 40, 3), np.float32),
        np.zeros((0, 32, 48, 3), np.float32),
        np.zeros((2, 32, 48, 3), np.uint8),
    ],
)
def test_images_of_another_form_are_refused(images, reference):
    encoder = weights.Encoder(*reference["gelu"])
    with pytest.raises(UserError, match=r"^images are (\[|uint8)"):
        encoder(images)
