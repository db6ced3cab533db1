"""DICOM files to read."""

import pathlib
from collections.abc import Callable

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)


def save_dicom(
    path: pathlib.Path,
    pixels: np.ndarray,
    *,
    kind: str = "",
    encoding: str = ExplicitVRLittleEndian,
    frames: list[bytes] | None = None,
    compress: bool = False,
    **elements,
) -> pathlib.Path:
    """Writes a file of DICOM.

    Args:
        path: where to.
        pixels: [H, W], [H, W, 3], or [F, H, W] and [F, H, W, 3] where NumberOfFrames is given.
        kind: photometric interpretation; by the shape of the pixels where it is not given.
        encoding: transfer syntax.
        frames: compressed, instead of the pixels.
        compress: by pydicom, to the encoding.
        elements: more of them, or others than those of the pixels.
    """
    shape = pixels.shape["NumberOfFrames" in elements :]
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(encoding) if not compress else ExplicitVRLittleEndian
    dataset.SOPClassUID = UltrasoundMultiFrameImageStorage
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    dataset.Rows, dataset.Columns = shape[:2]
    dataset.SamplesPerPixel = 3 if len(shape) == 3 else 1
    dataset.PhotometricInterpretation = kind or ("RGB" if len(shape) == 3 else "MONOCHROME2")
    if len(shape) == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    data = pixels.tobytes() if frames is None else encapsulate(frames)
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OW" if pixels.itemsize == 2 else "OB"
    for name, value in elements.items():
        setattr(dataset, name, value)
    if compress:
        dataset.compress(encoding, generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture(name="save_dicom")
def _save_dicom() -> Callable[..., pathlib.Path]:
    return save_dicom
