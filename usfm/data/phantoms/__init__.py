"""Phantoms: physically plausible B-mode images with exact labels, written as an FM_UIA folder."""

from usfm.data.phantoms.folder import TASKS, write_folder
from usfm.data.phantoms.planted import write_planted
from usfm.data.phantoms.related import RELATED
from usfm.data.phantoms.signs import write_signs

__all__ = ["RELATED", "TASKS", "write_folder", "write_planted", "write_signs"]
