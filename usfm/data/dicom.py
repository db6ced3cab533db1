"""Frames of DICOM files in 8 bits, cropped to where the ultrasound is.

After the DICOM standard, part 3 (C.8.5.5 ultrasound regions, C.11 lookup tables).
"""

import numpy as np
import pydicom
from pydicom.pixels import (
    apply_color_lut,
    apply_modality_lut,
    apply_voi,
    apply_windowing,
    pixel_array,
)

from usfm.data.dicom_file import GREY, PALETTE, check_pixel_data, frames, open_dicom
from usfm.data.limits import ImageError, frame_index

TWO_D = 1  # of RegionSpatialFormat: an image, not a motion or velocity trace


def count_frames(path: str) -> int:
    """The number of frames."""
    with open_dicom(path) as (_, header):
        return frames(header)


def stored_size(path: str) -> tuple[int, int]:
    """(height, width) before it is cropped."""
    with open_dicom(path) as (_, header):
        return header.Rows, header.Columns


def burned_in(path: str) -> bool:
    """Whether the file says that its pixels show who was examined."""
    with open_dicom(path) as (_, header):
        return str(header.get("BurnedInAnnotation", "")).strip().upper() == "YES"


def read_image(path: str, frame: int | None) -> np.ndarray:
    """Reads a frame in 8 bits.

    Grey values go through the modality table and the (first) window or VOI table. What the window
    has, or without one the bits stored, is spread over 0..255, black to white. Colours of b bits
    are divided by 2 ** (b - 8).

    Returns:
        uint8 [H, W] for a grey frame, uint8 [H, W, 3] RGB for a colour one, of the rectangle
        around the 2D ultrasound regions (around all regions, where none is 2D), if there are any.
    """
    with open_dicom(path) as (file, header):
        index = frame_index(frame, frames(header))
        check_pixel_data(file, header, index)
    pixels = pixel_array(path, index=index)
    if header.PhotometricInterpretation in GREY:
        pixels = _grey(pixels, header)
    elif header.PhotometricInterpretation == PALETTE:
        colours = apply_color_lut(pixels, header)
        pixels = (colours >> (8 * colours.itemsize - 8)).astype(np.uint8)
    else:
        pixels = (pixels >> (header.BitsStored - 8)).astype(np.uint8)
    return np.ascontiguousarray(_cropped(pixels, header))


def _grey(pixels: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
    values = apply_modality_lut(pixels, header)
    black, white = _extent(header)
    if header.get("VOILUTSequence"):
        values = apply_voi(values, header)
        black, white = 0, 2 ** header.VOILUTSequence[0].LUTDescriptor[2] - 1
    elif header.get("WindowCenter") is not None and header.get("WindowWidth") is not None:
        values = apply_windowing(values, header)
    else:  # a window turns the scale by itself where the slope is negative
        black, white = sorted((black, white))
    if not np.isfinite([black, white]).all() or black == white:
        raise ImageError(f"has no range of grey values ({black:g} to {white:g})")
    grey = np.rint((values - black) * (255 / (white - black))).clip(0, 255).astype(np.uint8)
    return 255 - grey if header.PhotometricInterpretation == "MONOCHROME1" else grey


def _extent(header: pydicom.Dataset) -> tuple[float, float]:
    """What the least and the largest stored value become by the modality table."""
    if header.get("ModalityLUTSequence"):
        return 0, 2 ** header.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    least = -(2 ** (header.BitsStored - 1)) if header.PixelRepresentation else 0
    slope, intercept = header.get("RescaleSlope", 1), header.get("RescaleIntercept", 0)
    return (
        float(least * slope + intercept),
        float((least + 2**header.BitsStored - 1) * slope + intercept),
    )


def _cropped(pixels: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
    regions = list(header.get("SequenceOfUltrasoundRegions") or ())
    regions = [each for each in regions if each.get("RegionSpatialFormat") == TWO_D] or regions
    if not regions:
        return pixels
    left = min(region.RegionLocationMinX0 for region in regions)
    top = min(region.RegionLocationMinY0 for region in regions)
    right = max(region.RegionLocationMaxX1 for region in regions)
    bottom = max(region.RegionLocationMaxY1 for region in regions)
    cropped = pixels[max(top, 0) : bottom + 1, max(left, 0) : right + 1]  # ends are inside
    if not cropped.size:
        where = f"({left}, {top}) to ({right}, {bottom})"
        raise ImageError(f"has its ultrasound region outside of its pixels: {where}")
    return cropped
