"""usfm: train ultrasound foundation models on any set of tasks (M2DINO, arXiv 2603.18123)."""

__version__ = "0.1.0"
