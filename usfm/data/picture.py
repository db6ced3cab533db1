"""Pixels of the files that Pillow decodes: PNG, JPEG, BMP, TIFF, GIF, WebP, JPEG 2000."""

import contextlib
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageFile, ImageOps
from PIL.TiffImagePlugin import (
    IMAGELENGTH,
    IMAGEWIDTH,
    PHOTOMETRIC_INTERPRETATION,
    TiffImageFile,
)

from usfm.data.limits import MAX_PIXELS, ImageError, check_size, frame_index

# Those that hold photographs and screens. Pillow knows more, some through other programs.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "TIFF", "WEBP")
# Grey samples below 8 bits are stretched to 0..255 on reading; by how much.
STRETCH = {"L;2": 85, "L;4": 17}
SAVE = "save it with 8 or 16 bits a channel"
IDS = "save class ids as an 8-bit grey PNG"

# Pillow refuses twice this number, wherever it meets a size: in a header, a page or a tile.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
# What matters comes as an exception; the rest cannot name the file.
warnings.filterwarnings("ignore", module=r"PIL\.")


def read_image(path: str, frame: int | None) -> np.ndarray:
    """Reads an image in 8 bits, turned as its EXIF says, transparency dropped.

    Samples of more bits lose the lowest ones: those of b bits are divided by 2 ** (b - 8).

    Returns:
        uint8 [H, W] for a grey image, uint8 [H, W, 3] RGB for a colour one.
    """
    image, samples = _decode(path, frame)
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> (4 if samples.startswith("I;12") else 8)).astype(np.uint8)
        return 255 - grey if samples.endswith("I") else grey
    if image.mode in ("I", "F"):
        raise ImageError(f"has no stated black and white (mode {image.mode})", SAVE)
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L"))
    if image.mode == "RGBa" or "transparency" in image.info:
        # A palette with transparent entries has to pass through RGBA to keep its colours.
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def read_mask(path: str, frame: int | None) -> np.ndarray:
    """Reads the class id of every pixel: grey sample, palette index or bit, never a colour.

    Returns:
        uint8 [H, W].
    """
    image, samples = _decode(path, frame)
    pixels = np.asarray(image)
    if image.mode in ("I", "I;16", "I;16B") and pixels.min() >= 0 and pixels.max() <= 255:
        return pixels.astype(np.uint8)
    if image.mode.startswith(("I", "F")):
        raise ImageError(f"has values that are no class ids (mode {image.mode})", IDS)
    if image.mode in ("1", "L", "P"):
        return pixels.astype(np.uint8) // STRETCH.get(samples, 1)
    colours = pixels[..., : 1 if image.mode == "LA" else 3]
    if image.mode not in ("LA", "RGB", "RGBA") or np.any(colours != colours[..., :1]):
        raise ImageError("is a colour image", IDS)
    if ";16" in samples:  # of which only the upper bytes were read
        raise ImageError("has 16 bits a colour", IDS)
    return np.ascontiguousarray(colours[..., 0])


@contextlib.contextmanager
def _open(path: str) -> Iterator[ImageFile.ImageFile]:
    # Given a path, Pillow maps the file into memory: it crashes where the file is cut meanwhile,
    # and mixes up the rows of a TIFF that lies on its side.
    with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
        yield image


def count_frames(path: str) -> int:
    """The number of frames or pages."""
    with _open(path) as image:
        # Beside its picture, a camera's JPEG of several (MPO) has previews of it.
        return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def stored_size(path: str) -> tuple[int, int]:
    """(height, width) before it is turned."""
    with _open(path) as image:
        if isinstance(image, TiffImageFile):
            return image.tag_v2[IMAGELENGTH], image.tag_v2[IMAGEWIDTH]
        return image.height, image.width


def _decode(path: str, frame: int | None) -> tuple[Image.Image, str]:
    """The image, upright, and how its samples lie in the file, in Pillow's words (raw mode)."""
    try:
        index = frame_index(frame, count_frames(path))
        with _open(path) as image:
            check_size(*image.size)
            if image.format == "PNG":
                image.verify()  # its checksums, which the decoder passes over
        with _open(path) as image:
            image.seek(index)
            layout = image.tile[0].args if image.tile else ""
            samples = str(layout[0] if isinstance(layout, tuple) else layout)
            if isinstance(image, TiffImageFile) and image.mode == "I;16":
                # The only samples with a black 255 that Pillow leaves as they are.
                inverted = image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0
                samples += "I" if inverted else ""
            return ImageOps.exif_transpose(image), samples
    except Image.UnidentifiedImageError:
        raise ImageError("is not an image, or is damaged at its start") from None
    except Image.DecompressionBombError:
        raise ImageError(f"has more pixels than the limit of {MAX_PIXELS}") from None
