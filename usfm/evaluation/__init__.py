"""Evaluation: answers scored by the official metrics, beside a predictor that sees no image."""
