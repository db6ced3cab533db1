"""Reading and resizing images and masks: the only place that decodes a file."""

import hashlib
import os

import cv2
import numpy as np
from PIL import Image

from usfm.errors import UserError


class ImageError(UserError):
    """A file that cannot be used as an image; the message says why, without naming the file."""


def _decode(path: str | os.PathLike) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except Image.UnidentifiedImageError:
        raise ImageError("is not an image, or is damaged at its start") from None
    except FileNotFoundError:
        raise
    except Exception as error:  # on damaged bytes a decoder may raise anything
        raise ImageError(f"cannot be decoded ({error})") from error


def _require_8_bits(image: Image.Image) -> None:
    if image.mode.startswith(("I", "F")):
        raise ImageError(f"has more than 8 bits a channel (mode {image.mode})")


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Reads an image as stored: no rotation by EXIF, transparency dropped.

    Returns:
        uint8 [H, W] for a grey image, uint8 [H, W, 3] RGB for a colour one.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: not an image, truncated, or more than 8 bits a channel.
    """
    image = _decode(path)
    _require_8_bits(image)
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L"))
    if "transparency" in image.info:
        # A palette with transparent entries has to pass through RGBA to keep its colours.
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def read_mask(path: str | os.PathLike) -> np.ndarray:
    """Reads the class id of every pixel: grey value, palette index or bit, never a colour.

    Returns:
        uint8 [H, W].

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: as read_image, or a colour image, which holds no class ids.
    """
    image = _decode(path)
    _require_8_bits(image)
    pixels = np.asarray(image).astype(np.uint8)
    if pixels.ndim == 2:
        return pixels
    colours = pixels[..., : 1 if image.mode == "LA" else 3]
    if np.any(colours != colours[..., :1]):
        raise ImageError("is a colour image")
    return np.ascontiguousarray(colours[..., 0])


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
