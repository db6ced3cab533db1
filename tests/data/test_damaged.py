"""Hundreds of damaged and odd files: each is refused by name or read right, and none does harm.

All are made here, from one seed. Damage that a format cannot notice, such as a changed sample of
a BMP, may change what it reached and nothing else.
"""

import csv
import io
import re
import struct

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid

from usfm.data.folder import FolderError, read_folder
from usfm.data.image import ImageError, content_hash, count_frames, read_image, read_mask

# Both warn of what they repair; where that is not enough, they raise.
pytestmark = [
    pytest.mark.filterwarnings("ignore:::pydicom"),
    pytest.mark.filterwarnings("ignore:::PIL"),
]

HEIGHT, WIDTH = 24, 32
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
GREY = (100 + 70 * np.sin(COLUMNS / 3) + 50 * np.cos(ROWS / 4)).astype(np.uint8)
RGB = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)

PICTURES: dict[str, tuple[np.ndarray, dict]] = {
    "grey.png": (GREY, {}),
    "rgb.png": (RGB, {}),
    "grey.jpg": (GREY, {}),
    "progressive.jpg": (RGB, {"progressive": True}),
    "grey.bmp": (GREY, {}),
    "rgb.bmp": (RGB, {}),
    "grey.tif": (GREY, {}),
    "lzw.tif": (RGB, {"compression": "tiff_lzw"}),
    "grey.gif": (GREY, {}),
    "rgb.webp": (RGB, {"lossless": True}),
    "rgb.jp2": (RGB, {}),
}
DICOM: dict[str, tuple[np.ndarray, dict]] = {
    "plain.dcm": (GREY, {}),
    "implicit.dcm": (RGB, {"encoding": uid.ImplicitVRLittleEndian}),
    "rle.dcm": (RGB, {"encoding": uid.RLELossless, "compress": True}),
    "jpeg.dcm": (RGB, {"encoding": uid.JPEGBaseline8Bit, "kind": "YBR_FULL_422"}),
    "jpeg2000.dcm": (RGB, {"encoding": uid.JPEG2000Lossless, "kind": "YBR_RCT"}),
}
# Their samples are the end of the file, as they are.
UNCOMPRESSED = ("grey.bmp", "rgb.bmp", "grey.tif", "plain.dcm", "implicit.dcm")
DAMAGES = 24  # of each of the files above: 384 in all


@pytest.fixture
def whole(tmp_path, save_dicom):
    """Writes one of the files above, without damage."""

    def write(name):
        path = tmp_path / name
        if name in PICTURES:
            pixels, options = PICTURES[name]
            Image.fromarray(pixels).save(path, **options)
            return path
        pixels, options = DICOM[name]
        if "kind" in options:
            file = io.BytesIO()
            format = "JPEG2000" if "2000" in name else "JPEG"
            Image.fromarray(pixels).save(file, format, no_jp2=True)
            options = options | {"frames": [file.getvalue()]}
        return save_dicom(path, pixels, **options)

    return write


def damaged(data, number, rng):
    """One of DAMAGES damages, and which bytes it reached; None where the file was cut."""
    spoilt = bytearray(data)
    size = len(data)
    if number < 10:
        return data[: size * number // 10 + int(rng.integers(size // 10))], None
    if number < 12:
        return data[: size - 1 - 7 * (number - 10)], None
    if number < 20:
        places = rng.integers(size if number < 16 else min(size, 400), size=1)
        spoilt[places[0]] ^= int(rng.integers(1, 256))
    elif number < 23:
        start = 0 if number == 20 else int(rng.integers(size))
        places = np.arange(start, min(size, start + 40))
        spoilt[start : start + 40] = bytes(len(places))
    else:
        places = np.arange(16)
        spoilt[:16] = rng.bytes(16)
    return bytes(spoilt), places


@pytest.mark.parametrize("name", [*PICTURES, *DICOM])
def test_damage_is_noticed_or_stays_where_it_is(name, whole):
    path = whole(name)
    data, pixels = path.read_bytes(), read_image(path)
    rng = np.random.default_rng([len(data), *name.encode()])
    said = []
    for number in range(DAMAGES):
        spoilt, places = damaged(data, number, rng)
        path.write_bytes(spoilt)
        try:
            read = read_image(path)
        except ImageError as error:
            said.append(str(error))
            continue
        case = f"{name}, damage {number}"
        assert read.dtype == np.uint8, case
        assert read.ndim in (2, 3), case
        if places is None or name.endswith(".png"):  # cut, or with checksums
            np.testing.assert_array_equal(read, pixels, case)
        elif name in UNCOMPRESSED and places.min() >= len(data) - pixels.size:
            assert read.shape == pixels.shape, case
            assert np.count_nonzero(read != pixels) <= 3 * len(places), case
    assert len(said) >= 10  # of the 12 that are cut, at least
    assert all(re.fullmatch(rf"{re.escape(str(path))} [^\n]+; [^\n]+", line) for line in said)


@pytest.mark.parametrize("name", [*PICTURES, *DICOM])
def test_a_damaged_mask_is_noticed_too(name, whole):
    path = whole(name)
    data = path.read_bytes()
    for share in (0.2, 0.6, 0.9):
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(ImageError, match=re.escape(str(path))):
            read_mask(path)


def test_a_name_may_say_another_format(whole, tmp_path):
    for name in (*PICTURES, *DICOM):
        path = whole(name)
        pixels = read_image(path)
        for suffix in (".png", ".dcm", ""):
            (tmp_path / f"other{suffix}").write_bytes(path.read_bytes())
            np.testing.assert_array_equal(read_image(tmp_path / f"other{suffix}"), pixels)


NOT_IMAGES = {
    "empty": b"",
    "one byte": b"\x89",
    "zeros": bytes(5000),
    "text": b"image_path,mask\n" * 50,
    "page": b"<html><body>404 Not Found</body></html>",
    "archive": b"PK\x03\x04" + bytes(range(256)) * 4,
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "document": b"%PDF-1.7\n" + bytes(500),
    "program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "drawing": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "only png": b"\x89PNG\r\n\x1a\n",
    "only jpeg": b"\xff\xd8\xff\xe0",
    "only gif": b"GIF89a",
    "only tiff": b"II*\0\x08\0\0\0",
    "endless tiff": b"II*\0\x08\0\0\0\0\0\x08\0\0\0" + bytes(20),
    "only dicom": bytes(128) + b"DICM",
    "noisy dicom": bytes(128) + b"DICM" + bytes(range(256)) * 9,
}


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize("data", NOT_IMAGES.values(), ids=NOT_IMAGES)
def test_what_is_no_image_is_named(tmp_path, data, read):
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=re.escape(str(path))):
        read(path)


# Where a format keeps its width and height: behind which bytes, how far, and as what.
SIZES = {
    "grey.bmp": [(b"BM", 18, "<ll")],
    "grey.gif": [(b"GIF", 6, "<HH")],
    "grey.jpg": [(b"\xff\xc0", 5, ">HH")],
    "progressive.jpg": [(b"\xff\xc2", 5, ">HH")],
    "rgb.jp2": [(b"ihdr", 4, ">LL")],
    "rgb.webp": [(b"VP8L", 9, "<HH")],
    "grey.tif": [(struct.pack("<HHL", tag, 4, 1), 8, "<L") for tag in (256, 257)],
}


@pytest.mark.parametrize("name", SIZES)
def test_a_small_file_that_claims_a_huge_size_is_refused(name, whole):
    path = whole(name)
    data = bytearray(path.read_bytes())
    for mark, offset, layout in SIZES[name]:
        largest = 2 ** (8 * struct.calcsize(layout[:2]) - 1) - 1
        struct.pack_into(layout, data, data.index(mark) + offset, *[largest] * (len(layout) - 1))
    path.write_bytes(data)
    with pytest.raises(ImageError, match=rf"{re.escape(str(path))} .*the limit of"):
        read_image(path)


LIES = {
    "more rows": {"Rows": HEIGHT + 1},
    "fewer rows": {"Rows": HEIGHT - 1},
    "more columns": {"Columns": WIDTH + 1},
    "fewer columns": {"Columns": WIDTH - 1},
    "huge": {"Rows": 65535, "Columns": 65535},
    "nothing": {"Rows": 0},
    "two heights": {"Rows": [HEIGHT, HEIGHT]},
    "no width": {"Columns": None},
    "frames": {"NumberOfFrames": 3},
    "negative frames": {"NumberOfFrames": -1},
    "16 bits": {"BitsAllocated": 16, "BitsStored": 16},
    "32 bits": {"BitsAllocated": 32, "BitsStored": 32},
    "more bits than room": {"BitsStored": 12},
    "signs": {"PixelRepresentation": 1},
    "grey": {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"},
    "four samples": {"SamplesPerPixel": 4},
    "ink": {"PhotometricInterpretation": "CMYK"},
    "no kind": {"PhotometricInterpretation": None},
    "no palette": {"SamplesPerPixel": 1, "PhotometricInterpretation": "PALETTE COLOR"},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
@pytest.mark.parametrize("name", ["implicit.dcm", "rle.dcm", "jpeg.dcm", "jpeg2000.dcm"])
def test_a_header_that_lies_is_found_out(name, lie, whole):
    path = whole(name)
    change(path, **lie)
    with pytest.raises(ImageError, match=re.escape(str(path))):
        read_image(f"{path}#{max(1, lie.get('NumberOfFrames', 1))}")


@pytest.mark.parametrize("name", ["jpeg.dcm", "jpeg2000.dcm"])
def test_a_header_that_turns_its_frames_is_found_out(name, whole):
    path = whole(name)
    change(path, Rows=WIDTH, Columns=HEIGHT)
    with pytest.raises(ImageError, match="is 32 x 24, where its header says 24 x 32"):
        read_image(path)


def test_more_frames_than_a_file_has_room_for_are_not_listed(whole):
    path = whole("rle.dcm")
    change(path, NumberOfFrames=10**9)
    with pytest.raises(ImageError, match="says that it holds 1000000000 frames, in"):
        count_frames(path)


def test_dicom_without_pixels_or_encoding_is_named(whole):
    path = whole("plain.dcm")
    change(path, PixelData=None)
    with pytest.raises(ImageError, match=r"plain\.dcm holds no pixel data"):
        read_image(path)
    header = path.read_bytes()
    path.write_bytes(header.replace(b"\x02\x00\x10\x00UI", b"\x02\x00\x11\x00UI"))
    with pytest.raises(ImageError, match=r"no Transfer Syntax UID"):
        read_image(path)


def change(path, **elements):
    dataset = pydicom.dcmread(path)
    for name, value in elements.items():
        if value is None:
            del dataset[name]
        else:
            setattr(dataset, name, value)
    dataset.save_as(path)


# Of the labels of a class, a side of a box and a point, what is none.
NO_NUMBERS = [
    "nan",
    "NaN",
    "inf",
    "-inf",
    "1e999",
    "x",
    "1,5",
    "1 2",
    "0x1",
    "½",
    "None",
    "-1",
    "-1e9",
]
BAD_LABELS = {
    "mask": [*NO_NUMBERS, "", "0.5", "2", "1e30", "true"],
    "x_min": [*NO_NUMBERS, "", "9", "33"],
    "y_max": [*NO_NUMBERS, "", "1", "25"],
    "point_1_xy": [
        *(f"[{value}, 3]" for value in NO_NUMBERS),
        *("[]", "[1]", "[1, 2, 3]", "1, 2", "[[1, 2]]", "{}", "null", "[null, 1]", "[true, 1]"),
        *('["1", "2"]', "[1, 2", "nan", "[33, 1]", "[" * 5000, f"[{'9' * 400}, 1]"),
    ],
}


@pytest.mark.parametrize("field", BAD_LABELS)
def test_a_label_that_is_none_is_named_by_its_line(field, tmp_path):
    texts = BAD_LABELS[field]
    (tmp_path / "csv_files").mkdir()
    kind, good = {
        "mask": ("classification", {"mask": "1"}),
        "point_1_xy": ("regression", {"point_1_xy": "[1, 2]"}),
    }.get(field, ("detection", {"x_min": "1", "y_min": "2", "x_max": "8", "y_max": "9"}))
    size = 2 if kind == "classification" else 1
    with (tmp_path / "csv_files/a.csv").open("w", newline="", encoding="utf-8") as file:
        columns = ["image_path", "task_id", "task_name", "num_classes", *good]
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for number, text in enumerate(texts):
            Image.fromarray(GREY + np.uint8(number)).save(tmp_path / f"{number}.png")
            row = dict(zip(columns, (f"../{number}.png", "a", kind, size), strict=False))
            writer.writerow({**row, **good, field: text})
    with pytest.raises(FolderError) as caught:
        read_folder(tmp_path)
    named = {fault.row for fault in caught.value.faults if fault.field[:2] == field[:2]}
    assert named == set(range(2, len(texts) + 2))


def test_a_folder_of_damaged_files_names_each_and_keeps_every_other_as_it_is(whole, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "csv_files").mkdir()
    lines = ["image_path,mask,task_id,task_name,num_classes"]
    for name in (*PICTURES, *DICOM):
        data = whole(name).read_bytes()
        for number in range(0, DAMAGES, 3):
            (tmp_path / f"{number}_{name}").write_bytes(damaged(data, number, rng)[0])
            lines += [f"../{number}_{name},1,a,classification,2", f"../{name},0,b,classification,2"]
    (tmp_path / "csv_files/a.csv").write_text("\n".join(dict.fromkeys(lines)) + "\n")
    folder = read_folder(tmp_path, on_bad_row="skip")
    assert [row.image_path[3:] for row in folder.rows["b"]] == [*PICTURES, *DICOM]
    assert len(folder.skipped) + len(folder.rows["a"]) == len(DICOM | PICTURES) * DAMAGES / 3
    for row in folder.rows["a"] + folder.rows["b"]:
        assert row.content == content_hash(read_image(folder.image_file(row)))
    paths = [line.split(",")[0] for line in dict.fromkeys(lines)]
    for fault in folder.skipped:
        assert fault.row is not None
        path = paths[fault.row - 1].removeprefix("../")
        assert fault.fault.startswith(f"{path} ")
        with pytest.raises(ImageError):
            read_image(tmp_path / path)
