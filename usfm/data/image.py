"""Reading and resizing images and masks: the only place where files are decoded."""

import contextlib
import hashlib
import os
import re
import textwrap
import types
from collections.abc import Iterator

import cv2
import numpy as np

from usfm.data import picture
from usfm.data.limits import ImageError

# A frame of a file of several: its number, from 1 as DICOM counts, stands behind the path.
FRAME = re.compile(r"(.+)#(\d{1,9})", re.DOTALL)


def split_frame(path: str | os.PathLike) -> tuple[str, int | None]:
    """Splits "clip.dcm#12" into file and frame; None where no frame is named.

    A file of that very name is that file.
    """
    text = str(path)
    named = FRAME.fullmatch(text)
    if named is None or os.path.exists(text):
        return text, None
    return named[1], int(named[2])


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Reads an image as a viewer shows it: in 8 bits, turned by EXIF, transparency dropped.

    A DICOM file is cropped to its ultrasound region. docs/data.md says what becomes of which file.

    Args:
        path: of the file, with "#" and the number of a frame behind it where it has several.

    Returns:
        uint8 [H, W] for a grey image, uint8 [H, W, 3] RGB for a colour one.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: not an image, damaged, of several frames, too large, or without a stated black
            and white.
    """
    with _decoding(path) as (file, frame, decoder):
        return decoder.read_image(file, frame)


def read_mask(path: str | os.PathLike) -> np.ndarray:
    """Reads the class id of every pixel: grey value, palette index or bit, never a colour.

    Turned by EXIF as an image is.

    Args:
        path: as read_image takes it.

    Returns:
        uint8 [H, W].

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: as read_image, or a colour image or DICOM, which hold no class ids.
    """
    with _decoding(path) as (file, frame, decoder):
        if decoder is not picture:
            raise ImageError("is DICOM, which holds no class ids", "give the mask as a PNG")
        return picture.read_mask(file, frame)


def count_frames(path: str | os.PathLike) -> int:
    """The number of frames or pages of a file; raises as read_image does."""
    with _decoding(path) as (file, _, decoder):
        count, size = decoder.count_frames(file), os.path.getsize(file)
        if count > size / 8:  # not even the headers of the frames
            raise ImageError(f"says that it holds {count} frames, in {size} bytes")
        return count


def stored_size(path: str | os.PathLike) -> tuple[int, int]:
    """(height, width) before an image is turned or cropped; raises as read_image does."""
    with _decoding(path) as (file, _, decoder):
        return decoder.stored_size(file)


def burned_in(path: str | os.PathLike) -> bool:
    """Whether a file says that its pixels show who was examined; raises as read_image does."""
    with _decoding(path) as (file, _, decoder):
        return decoder is not picture and decoder.burned_in(file)


@contextlib.contextmanager
def _decoding(path: str | os.PathLike) -> Iterator[tuple[str, int | None, types.ModuleType]]:
    """The file, the frame and the module that decodes it; all that goes wrong names the file."""
    file, frame = split_frame(path)
    try:
        with open(file, "rb") as opened:
            is_dicom = opened.read(132)[128:] == b"DICM"
        if is_dicom:
            from usfm.data import dicom  # takes half a second, for what few folders hold

            yield file, frame, dicom
        else:
            yield file, frame, picture
    except FileNotFoundError:
        raise
    except ImageError as error:
        error.path = str(path)
        raise
    except Exception as error:  # on damaged bytes a decoder may raise anything
        # pydicom puts whole tracebacks and pixels into its messages.
        why = textwrap.shorten(str(error), 160, placeholder=" ...") or type(error).__name__
        damaged = ImageError(f"cannot be decoded ({why})")
        damaged.path = str(path)
        raise damaged from error


def content_hash(pixels: np.ndarray) -> str:
    """Names pixel content, whatever the file's format: equal arrays, equal names.

    A colour image whose channels agree counts as the grey image it is.

    Args:
        pixels: uint8 [H, W] or [H, W, 3].

    Returns:
        32 hexadecimal digits.
    """
    if pixels.ndim == 3 and np.all(pixels == pixels[..., :1]):
        pixels = pixels[..., 0]
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(pixels.tobytes())
    return digest.hexdigest()


def resize_image(image: np.ndarray, size: tuple[int, int], channels: int) -> np.ndarray:
    """Resizes to a fixed size, aspect not kept: sides shrink by area and grow linearly.

    Args:
        image: uint8 [H, W] or [H, W, 3] RGB.
        size: (height, width) to resize to.
        channels: 1 for grey, 3 for RGB.

    Returns:
        uint8 [height, width, channels].
    """
    if channels not in (1, 3):
        raise ValueError(f"an image has 1 or 3 channels, not {channels}")
    if image.ndim == 3 and channels == 1:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    height, width = size
    # cv2's INTER_AREA averages only where both sides shrink, hence two steps.
    shrunk = (min(width, image.shape[1]), min(height, image.shape[0]))
    image = cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    if image.ndim == 2:
        image = np.repeat(image[..., None], channels, axis=-1)
    return image


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a mask to the nearest pixel's class.

    Args:
        mask: uint8 [H, W] class ids.
        size: (height, width) to resize to.

    Returns:
        uint8 [height, width].
    """
    # The EXACT kind samples at pixel centres, as resize_image does; INTER_NEAREST is shifted.
    return cv2.resize(mask, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT)
