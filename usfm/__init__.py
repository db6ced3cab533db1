"""usfm: train ultrasound foundation models on any set of tasks (M2DINO, arXiv 2603.18123).

`usfm.Model` and `usfm.load` use a trained one from Python (docs/predict.md).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from usfm.api import Model, load

__all__ = ["Model", "__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports the two when they are asked for: the command line must not wait for JAX."""
    if name in ("Model", "load"):
        from usfm import api

        return getattr(api, name)
    raise AttributeError(f"module 'usfm' has no attribute {name!r}")
