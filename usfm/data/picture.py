"""Pixels of the files that Pillow decodes: PNG, JPEG, BMP, TIFF, GIF, WebP, JPEG 2000."""

import os
import warnings

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from usfm.data.limits import MAX_PIXELS, ImageError, check_size, frame_index

# Those that hold photographs and screens. Pillow knows more, some through other programs.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "TIFF", "WEBP")
# Grey samples below 8 bits are stretched to 0..255 on reading; by how much.
STRETCH = {"L;2": 85, "L;4": 17}

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
    image, _ = _decode(path, frame)
    if image.mode.startswith("I;16"):
        return _top_byte(image)
    if image.mode in ("I", "F", "LAB"):
        raise ImageError(f"has no stated black and white (mode {image.mode})", _SAVE)
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
        raise ImageError(f"has values that are no class ids (mode {image.mode})", _SAVE)
    if image.mode in ("1", "L", "P"):
        return pixels.astype(np.uint8) // STRETCH.get(samples, 1)
    colours = pixels[..., : 1 if image.mode == "LA" else 3]
    if image.mode not in ("LA", "RGB", "RGBA") or np.any(colours != colours[..., :1]):
        raise ImageError("is a colour image", _IDS)
    if ";16" in samples:  # of which only the upper bytes were read
        raise ImageError("has 16 bits a colour", _IDS)
    return np.ascontiguousarray(colours[..., 0])


_SAVE = "save it with 8 or 16 bits a channel"
_IDS = "save class ids as an 8-bit grey PNG"


def count_frames(path: str) -> int:
    """The number of frames or pages."""
    with Image.open(path, formats=FORMATS) as image:
        # Beside its picture, a camera's JPEG of several (MPO) has previews of it.
        return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def stored_size(path: str) -> tuple[int, int]:
    """(height, width) before it is turned."""
    with Image.open(path, formats=FORMATS) as image:
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            return image.tag_v2[_HEIGHT], image.tag_v2[_WIDTH]
        return image.height, image.width


_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC = 256, 257, 258, 262  # tags of TIFF


def _decode(path: str | os.PathLike, frame: int | None) -> tuple[Image.Image, str]:
    """The image, and how its samples are laid out in the file, in Pillow's words (raw mode)."""
    try:
        index = frame_index(frame, count_frames(path))
        with Image.open(path, formats=FORMATS) as image:
            check_size(*image.size)
            if image.format == "PNG":
                image.verify()  # its checksums, which the decoder passes over
        with Image.open(path, formats=FORMATS) as image:
            image.seek(index)
            layout = image.tile[0].args if image.tile else ""
            ImageOps.exif_transpose(image, in_place=True)
    except Image.UnidentifiedImageError:
        raise ImageError("is not an image, or is damaged at its start") from None
    except Image.DecompressionBombError:
        raise ImageError(f"has more pixels than the limit of {MAX_PIXELS}") from None
    return image, layout if isinstance(layout, str) else str(layout[0])


def _top_byte(image: Image.Image) -> np.ndarray:
    """uint8 [H, W] of grey samples of more than 8 bits."""
    bits, white_is_zero = 16, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits, white_is_zero = image.tag_v2[_BITS][0], image.tag_v2.get(_PHOTOMETRIC) == 0
    grey = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    return 255 - grey if white_is_zero else grey
