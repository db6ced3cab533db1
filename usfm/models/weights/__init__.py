"""Weights of encoders: from Hugging Face, Meta and timm, and to Hugging Face."""

from usfm.models.weights.encoder import Encoder, load_encoder
from usfm.models.weights.exporting import export, file_of
from usfm.models.weights.reading import read

__all__ = ["Encoder", "export", "file_of", "load_encoder", "read"]
