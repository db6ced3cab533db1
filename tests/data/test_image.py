import numpy as np
import pytest
from PIL import Image

from usfm.data.image import (
    ImageError,
    content_hash,
    read_image,
    read_mask,
    resize_image,
    resize_mask,
)

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (30, 40), np.uint8)
RGB = RNG.integers(0, 256, (30, 40, 3), np.uint8)


def save(path, array, mode=None):
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
@pytest.mark.parametrize("pixels", [GREY, RGB], ids=["grey", "rgb"])
def test_lossless_files_are_read_as_written(tmp_path, pixels, suffix):
    np.testing.assert_array_equal(read_image(save(tmp_path / f"a{suffix}", pixels)), pixels)


def test_transparency_is_dropped(tmp_path):
    rgba = np.concatenate([RGB, GREY[..., None]], axis=-1)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", rgba)), RGB)


def test_a_palette_image_is_read_as_its_colours(tmp_path):
    colours = np.zeros((4, 4, 3), np.uint8)
    colours[:2] = 200, 10, 30
    image = Image.fromarray(colours).quantize(2)
    image.save(tmp_path / "a.png", transparency=bytes([255, 0]))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), colours)


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize("suffix", [".png", ".bmp", ".jpg"])
def test_a_truncated_file_is_refused(tmp_path, suffix, read):
    path = save(tmp_path / f"a{suffix}", GREY)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(ImageError):
        read(path)


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_what_is_no_8_bit_image_is_refused(tmp_path, read):
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(ImageError, match="not an image"):
        read(tmp_path / "text.png")
    deep = save(tmp_path / "deep.png", GREY.astype(np.uint16) * 200)
    with pytest.raises(ImageError, match="8 bits"):
        read(deep)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing.png")


def test_a_mask_is_read_as_class_ids_however_it_is_stored(tmp_path):
    mask = (GREY % 3).astype(np.uint8)
    palette = Image.frombytes("P", (40, 30), mask.tobytes())
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.save(tmp_path / "palette.png")
    save(tmp_path / "grey.png", mask)
    save(tmp_path / "rgb.png", np.repeat(mask[..., None], 3, axis=-1))
    for name in ("palette", "grey", "rgb"):
        np.testing.assert_array_equal(read_mask(tmp_path / f"{name}.png"), mask)
    save(tmp_path / "bit.png", np.where(mask == 1, 255, 0).astype(np.uint8), mode="1")
    np.testing.assert_array_equal(read_mask(tmp_path / "bit.png"), mask == 1)


def test_a_colour_mask_is_refused(tmp_path):
    with pytest.raises(ImageError, match="colour"):
        read_mask(save(tmp_path / "a.png", RGB))


def test_content_hash_tells_pixels_and_shapes_apart_but_not_grey_from_grey_as_rgb():
    assert content_hash(GREY) == content_hash(np.repeat(GREY[..., None], 3, axis=-1))
    changed = GREY.copy()
    changed[0, 0] ^= 1
    assert len({content_hash(pixels) for pixels in (GREY, changed, GREY.reshape(40, 30), RGB)}) == 4


@pytest.mark.parametrize("size", [(15, 20), (64, 64), (10, 80)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pixels", [GREY, RGB], ids=["grey", "rgb"])
def test_resizing_gives_the_asked_shape_and_keeps_the_mean(pixels, channels, size):
    resized = resize_image(pixels, size, channels)
    assert resized.shape == (*size, channels)
    assert resized.dtype == np.uint8
    assert abs(resized.mean() - pixels.mean()) < 4


def test_each_side_shrinks_by_area_even_while_the_other_grows():
    stripes = np.tile(np.array([0, 200], np.uint8), (4, 32))
    np.testing.assert_array_equal(resize_image(stripes, (8, 16), 1), 100)


def test_grey_to_rgb_repeats_and_rgb_to_grey_weighs():
    np.testing.assert_array_equal(resize_image(GREY, GREY.shape, 3), GREY[..., None].repeat(3, 2))
    green = np.zeros((2, 2, 3), np.uint8)
    green[..., 1] = 100
    np.testing.assert_array_equal(resize_image(green, (2, 2), 1), 59)


def test_channels_other_than_1_and_3_are_refused():
    with pytest.raises(ValueError, match="1 or 3 channels"):
        resize_image(GREY, (8, 8), 2)


def test_a_mask_is_sampled_at_pixel_centres():
    mask = np.arange(9, dtype=np.uint8)[None].repeat(9, axis=0)
    np.testing.assert_array_equal(resize_mask(mask, (3, 3)), [[1, 4, 7]] * 3)
    assert set(np.unique(resize_mask(mask, (20, 20)))) == set(range(9))
