"""The models, and the weights they start from."""

from usfm.models.weights import load_encoder

__all__ = ["load_encoder"]
