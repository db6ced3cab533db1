"""Phantoms: physically plausible B-mode images with exact labels, written as an FM_UIA folder."""

from usfm.data.phantoms.folder import TASKS, write_folder

__all__ = ["TASKS", "write_folder"]
