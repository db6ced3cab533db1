"""The header of a DICOM file, and whether what follows it is what it says, before any decoding.

After the DICOM standard, parts 3 (C.7.6.3, image pixels) and 5 (A.4 and G, compressed frames).
"""

import contextlib
import io
import logging
import os
import struct
import warnings
from collections.abc import Iterator
from typing import BinaryIO

import pydicom
from PIL import Image
from pydicom.encaps import get_frame
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import get_decoder
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, RLELossless

from usfm.data.limits import ImageError, check_size

# What the pixels cannot be read without.
NEEDED = (
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
)
# What else has a say in them. Elements of other names, private ones of megabytes too, are skipped.
USED = (
    "NumberOfFrames",
    "PlanarConfiguration",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "VOILUTSequence",
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in ("Red", "Green", "Blue")),
    *(f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "SequenceOfUltrasoundRegions",
    "BurnedInAnnotation",
)
GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PALETTE = "PALETTE COLOR"

# What matters comes as an exception; the rest cannot name the file.
warnings.filterwarnings("ignore", module=r"pydicom\.")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def open_dicom(path: str) -> Iterator[tuple[BinaryIO, pydicom.Dataset]]:
    """Opens a file at its pixel data.

    Yields:
        The file, and those elements in front of the pixel data that are used.

    Raises:
        ImageError: its encoding or its kind of image is not read here.
    """
    _check_encoding(read_file_meta_info(path).get("TransferSyntaxUID"))
    with open(path, "rb") as file:
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=[*NEEDED, *USED])
        _check_header(header)
        yield file, header


def _check_encoding(encoding: UID | None) -> None:
    if encoding is None:
        raise ImageError("does not say how it is encoded (no Transfer Syntax UID)")
    remedy = "decompress it with a DICOM tool, such as dcmdjpeg or gdcmconv"
    try:
        known = get_decoder(encoding).is_available
    except NotImplementedError:
        known = False
    # A deflated file is inflated at once, to whatever size.
    if not known or encoding == DeflatedExplicitVRLittleEndian:
        raise ImageError(f"is encoded in a way that is not read here ({encoding.name})", remedy)


def _check_header(header: pydicom.Dataset) -> None:
    lacking = [name for name in NEEDED if header.get(name) in (None, "")]
    if lacking:
        raise ImageError(f"lacks {', '.join(lacking)}: it may hold something else than an image")
    check_size(header.Columns, header.Rows)
    if frames(header) < 1:
        raise ImageError(f"says that it holds {frames(header)} frames")
    kind = header.PhotometricInterpretation
    samples = {**dict.fromkeys((*GREY, PALETTE), 1), **dict.fromkeys(COLOUR, 3)}.get(kind)
    if samples is None:
        raise ImageError(f"has the photometric interpretation {kind}, which is not read here")
    if header.SamplesPerPixel != samples:
        raise ImageError(f"is {kind}, but has {header.SamplesPerPixel} samples a pixel")
    allocated, stored = header.BitsAllocated, header.BitsStored
    fewest = 8 if samples == 3 else 1
    if allocated not in (8, 16) or not fewest <= stored <= allocated:
        raise ImageError(f"has {stored} of {allocated} bits a sample, which is not read here")
    if header.PixelRepresentation not in ((0, 1) if kind in GREY else (0,)):
        raise ImageError(f"is {kind}, but has the pixel representation of negative values")


def frames(header: pydicom.Dataset) -> int:
    """The number of frames."""
    return int(header.get("NumberOfFrames") or 1)


def check_pixel_data(file: BinaryIO, header: pydicom.Dataset, index: int) -> None:
    """Compares what the header says of the pixels with what is there, before it is decoded.

    Args:
        file: at the pixel data.
        header: what stands before them.
        index: the frame that is to be decoded, from 0.
    """
    encoding = header.file_meta.TransferSyntaxUID
    order = "<" if encoding.is_little_endian else ">"
    start = file.read(8)
    if len(start) < 8 or struct.unpack(f"{order}HH", start[:4]) != (0x7FE0, 0x0010):
        raise ImageError("holds no pixel data")
    length = start[4:] if encoding.is_implicit_VR else file.read(4)
    if not encoding.is_encapsulated:
        expected = get_expected_length(header)
        (given,) = struct.unpack(f"{order}L", length)
        if given not in (expected, expected + expected % 2):
            raise ImageError(f"holds {given} bytes of pixels, where its header asks {expected}")
        if os.fstat(file.fileno()).st_size - file.tell() < expected:
            raise ImageError("is truncated")
        return
    tables = header.get("ExtendedOffsetTable"), header.get("ExtendedOffsetTableLengths")
    frame = get_frame(
        file,
        index,
        number_of_frames=frames(header),
        extended_offsets=tables if all(tables) else None,
    )
    if encoding == RLELossless:
        _check_rle(frame, header)
        return
    with Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")) as image:
        if image.size != (header.Columns, header.Rows):
            said = f"{header.Columns} x {header.Rows}"
            raise ImageError(f"is {image.width} x {image.height}, where its header says {said}")
        if header.BitsStored > 8 and not image.mode.startswith("I"):
            raise ImageError(f"has 8 bits, where its header says {header.BitsStored}")


def _check_rle(frame: bytes, header: pydicom.Dataset) -> None:
    """Raises where a segment holds more or fewer bytes than the header says."""
    starts = struct.unpack("<16L", frame[:64])
    segments = starts[1 : 1 + starts[0]]
    expected = header.Rows * header.Columns
    for start, end in zip(segments, (*segments[1:], len(frame)), strict=True):
        place, held = start, 0
        while place < end:
            code = frame[place]
            if code < 128:  # as many bytes as they are, but for one and the padding at the end
                held += min(code + 1, end - place - 1)
                place += code + 2
            else:  # the next byte so many times; 128 stands for nothing
                held += 257 - code if code > 128 else 0
                place += 2 if code > 128 else 1
        if held != expected:
            raise ImageError(f"holds {held} bytes a segment, where its header asks {expected}")
