"""What becomes of DICOM files: frames, kinds of pixels, windows, ultrasound regions."""

import io

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.pixels import convert_color_space

from usfm.data.builder import open_store
from usfm.data.folder import FolderError, read_folder
from usfm.data.image import ImageError, count_frames, read_image, read_mask, resize_image
from usfm.data.splits import make_splits

# pydicom warns of what it repairs, and we only of what we cannot read.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (30, 41), np.uint8)
RGB = RNG.integers(0, 256, (30, 40, 3), np.uint8)
CLIP = RNG.integers(0, 256, (3, 30, 41), np.uint8)
LOSSLESS = {
    "implicit": {"encoding": uid.ImplicitVRLittleEndian},
    "explicit": {"encoding": uid.ExplicitVRLittleEndian},
    "rle": {"encoding": uid.RLELossless, "compress": True},
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.dcm"


def encoded(pixels, format, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def sequence(**elements):
    item = pydicom.Dataset()
    for name, value in elements.items():
        setattr(item, name, value)
    return pydicom.Sequence([item])


@pytest.mark.parametrize("options", LOSSLESS.values(), ids=LOSSLESS)
@pytest.mark.parametrize("pixels", [GREY, RGB], ids=["grey", "rgb"])
def test_lossless_files_are_read_as_written(save_dicom, path, pixels, options):
    np.testing.assert_array_equal(read_image(save_dicom(path, pixels, **options)), pixels)


def test_a_file_is_known_by_its_content_not_its_name(save_dicom, tmp_path):
    np.testing.assert_array_equal(read_image(save_dicom(tmp_path / "IM_0001", GREY)), GREY)
    np.testing.assert_array_equal(read_image(save_dicom(tmp_path / "a.png", GREY)), GREY)
    Image.fromarray(GREY).save(tmp_path / "png.dcm", format="PNG")
    np.testing.assert_array_equal(read_image(tmp_path / "png.dcm"), GREY)


def test_colour_planes_are_put_together(save_dicom, path):
    planes = np.ascontiguousarray(RGB.transpose(2, 0, 1))
    save_dicom(path, RGB, PlanarConfiguration=1, PixelData=planes.tobytes())
    np.testing.assert_array_equal(read_image(path), RGB)


def test_jpeg_2000_is_exact_and_jpeg_is_what_pillow_makes_of_it(save_dicom, path):
    frames = [encoded(RGB, "JPEG2000", no_jp2=True)]
    save_dicom(path, RGB, kind="YBR_RCT", encoding=uid.JPEG2000Lossless, frames=frames)
    np.testing.assert_array_equal(read_image(path), RGB)
    frames = [encoded(RGB, "JPEG")]
    save_dicom(path, RGB, kind="YBR_FULL_422", encoding=uid.JPEGBaseline8Bit, frames=frames)
    with Image.open(io.BytesIO(frames[0])) as image:
        np.testing.assert_array_equal(read_image(path), np.asarray(image))


def test_brightness_and_colour_become_rgb(save_dicom, path):
    ybr = convert_color_space(RGB, "RGB", "YBR_FULL")
    read = read_image(save_dicom(path, ybr, kind="YBR_FULL")).astype(int)
    assert np.abs(read - RGB).max() <= 1  # rounded there and back
    pairs = RGB[:, ::2].repeat(2, axis=1)  # 4:2:2 keeps one colour for two pixels
    ybr = convert_color_space(pairs, "RGB", "YBR_FULL")
    halved = np.stack([ybr[:, ::2, 0], ybr[:, 1::2, 0], ybr[:, ::2, 1], ybr[:, ::2, 2]], -1)
    save_dicom(path, pairs, kind="YBR_FULL_422", PixelData=halved.tobytes())
    assert np.abs(read_image(path).astype(int) - pairs).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette_gives_its_colours(save_dicom, path, bits):
    colours = RNG.integers(0, 256, (256, 3), np.uint8)
    tables = colours if bits == 8 else colours.astype(np.uint16) * 256 + 99
    elements: dict[str, list[int] | bytes] = {}
    for k, name in enumerate(("Red", "Green", "Blue")):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        elements[f"{name}PaletteColorLookupTableData"] = tables[:, k].tobytes()
    save_dicom(path, GREY, kind="PALETTE COLOR", **elements)
    np.testing.assert_array_equal(read_image(path), colours[GREY])


def test_monochrome1_has_white_at_its_least_value(save_dicom, path):
    np.testing.assert_array_equal(
        read_image(save_dicom(path, GREY, kind="MONOCHROME1")), 255 - GREY
    )


def test_without_a_window_the_bits_stored_are_spread_whatever_the_image_holds(save_dicom, path):
    twelve = np.array([[0, 1000, 2048, 4095]], np.uint16)
    save_dicom(path, twelve, BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(read_image(path), [[0, 62, 128, 255]])
    np.testing.assert_array_equal(
        read_image(save_dicom(path, twelve[:, :2], BitsStored=12, HighBit=11)), [[0, 62]]
    )
    signed = np.array([[-(2**15), 0, 2**15 - 1]], np.int16)
    np.testing.assert_array_equal(read_image(save_dicom(path, signed)), [[0, 128, 255]])
    rescaled = {"RescaleSlope": 0.5, "RescaleIntercept": -1000}
    np.testing.assert_array_equal(read_image(save_dicom(path, signed, **rescaled)), [[0, 128, 255]])


def test_a_window_says_what_is_black_and_white(save_dicom, path):
    # C.11.2.1.2: of centre 301 and width 201, 200.5 - 1/2 is black and 400.5 - 1/2 white.
    values = np.array([[0, 200, 250, 300, 400, 65535]], np.uint16)
    expected = [[0, 0, 64, 128, 255, 255]]
    save_dicom(path, values, WindowCenter=300.5, WindowWidth=201)
    np.testing.assert_array_equal(read_image(path), expected)
    rescaled = {"RescaleSlope": 2, "RescaleIntercept": -100}
    save_dicom(path, values, WindowCenter=500.5, WindowWidth=401, **rescaled)
    np.testing.assert_array_equal(read_image(path), expected)
    save_dicom(path, values, kind="MONOCHROME1", WindowCenter=[300.5, 9], WindowWidth=[201, 9])
    np.testing.assert_array_equal(read_image(path), 255 - np.array(expected))


def test_tables_are_applied(save_dicom, path):
    values = np.array([[0, 1, 2, 3]], np.uint8)
    entries = np.array([65535, 0, 257 * 7, 257 * 9], "<u2").tobytes()
    table = sequence(LUTDescriptor=[4, 0, 16], LUTData=entries)
    save_dicom(path, values, VOILUTSequence=table)
    np.testing.assert_array_equal(read_image(path), [[255, 0, 7, 9]])
    save_dicom(path, values, ModalityLUTSequence=table)
    np.testing.assert_array_equal(read_image(path), [[255, 0, 7, 9]])


@pytest.mark.parametrize("options", LOSSLESS.values(), ids=LOSSLESS)
def test_a_frame_is_named_by_its_number_from_1(save_dicom, path, options):
    save_dicom(path, CLIP, NumberOfFrames=3, **options)
    assert count_frames(path) == 3
    for number, pixels in enumerate(CLIP, start=1):
        np.testing.assert_array_equal(read_image(f"{path}#{number}"), pixels)
    with pytest.raises(ImageError, match=r"a\.dcm holds 3 frames; name one .* #1 to #3$"):
        read_image(path)
    for number in (0, 4):
        with pytest.raises(
            ImageError, match=rf"a\.dcm#{number} has no frame {number}; .* #1 to #3"
        ):
            read_image(f"{path}#{number}")


def test_the_only_frame_may_be_named_and_a_file_may_be_named_like_a_frame(save_dicom, tmp_path):
    np.testing.assert_array_equal(read_image(f"{save_dicom(tmp_path / 'a', GREY)}#1"), GREY)
    np.testing.assert_array_equal(read_image(save_dicom(tmp_path / "a#1", RGB)), RGB)
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "missing.dcm#1")


def region(left, top, right, bottom, format=1):
    return sequence(
        RegionLocationMinX0=left,
        RegionLocationMinY0=top,
        RegionLocationMaxX1=right,
        RegionLocationMaxY1=bottom,
        RegionSpatialFormat=format,
    )[0]


TRACE = region(0, 20, 40, 29, format=3)
REGIONS = {
    "one": ([region(3, 4, 20, 15)], (slice(4, 16), slice(3, 21))),
    "colour box inside": ([region(3, 4, 20, 15), region(5, 6, 9, 9)], (slice(4, 16), slice(3, 21))),
    "two side by side": ([region(0, 4, 9, 9), region(20, 5, 29, 12)], (slice(4, 13), slice(0, 30))),
    "trace below": ([TRACE, region(3, 4, 20, 15)], (slice(4, 16), slice(3, 21))),
    "trace alone": ([TRACE], (slice(20, 30), slice(0, 41))),
    "end outside": ([region(3, 4, 41, 30)], (slice(4, 30), slice(3, 41))),
}


@pytest.mark.parametrize(("regions", "kept"), REGIONS.values(), ids=REGIONS)
def test_a_frame_is_cropped_to_its_2d_ultrasound_regions(save_dicom, path, regions, kept):
    save_dicom(path, GREY, SequenceOfUltrasoundRegions=pydicom.Sequence(regions))
    np.testing.assert_array_equal(read_image(path), GREY[kept])


@pytest.mark.parametrize("place", [(41, 4, 50, 9), (9, 9, 3, 12)])
def test_a_region_without_pixels_is_refused(save_dicom, path, place):
    save_dicom(path, GREY, SequenceOfUltrasoundRegions=pydicom.Sequence([region(*place)]))
    with pytest.raises(ImageError, match="its ultrasound region outside of its pixels"):
        read_image(path)


REFUSED = {
    "JPEG-LS": ({"encoding": uid.JPEGLSLossless, "frames": [b"x"]}, r"\(JPEG-LS Lossless.*decompr"),
    "deflated": ({"encoding": uid.DeflatedExplicitVRLittleEndian}, r"\(Deflated"),
    "one bit": ({"BitsAllocated": 1, "BitsStored": 1}, "1 of 1 bits"),
    "samples": ({"SamplesPerPixel": 3}, "MONOCHROME2, but has 3 samples"),
    "photometric": ({"kind": "YBR_PARTIAL_420"}, "interpretation YBR_PARTIAL_420"),
    "no size": ({"Rows": None}, "lacks Rows"),
    "zero": ({"Columns": 0}, r"no pixels \(0 x 30\)"),
    "no range": ({"RescaleSlope": 0, "RescaleIntercept": 1}, r"no range of grey values \(1 to 1\)"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_read_is_named(save_dicom, path, options, message):
    with pytest.raises(ImageError, match=rf"a\.dcm .*{message}"):
        read_image(save_dicom(path, GREY, **options))


def test_a_mask_cannot_be_dicom(save_dicom, path):
    with pytest.raises(ImageError, match="is DICOM, which holds no class ids; give the mask as a"):
        read_mask(save_dicom(path, GREY))


@pytest.fixture
def root(save_dicom, tmp_path):
    """A detection task on a clip, cropped to 20 x 10, whose files say that they show names."""
    root = tmp_path / "root"
    for name in ("I", "csv_files"):
        (root / name).mkdir(parents=True)
    cropped = pydicom.Sequence([region(10, 5, 29, 14)])
    common = {"SequenceOfUltrasoundRegions": cropped, "BurnedInAnnotation": "YES"}
    save_dicom(root / "I/clip.dcm", CLIP, NumberOfFrames=3, **common)
    save_dicom(root / "I/still.dcm", GREY, **common)
    write(root, ["clip.dcm#1", "clip.dcm#3", "still.dcm"])
    return root


def write(root, names, box="0,0,20,10"):
    lines = ["image_path,x_min,y_min,x_max,y_max,task_id,task_name,num_classes"]
    lines += [f"../I/{name},{box},d,detection,1" for name in names]
    (root / "csv_files/d.csv").write_text("\n".join(lines) + "\n")


def test_rows_name_frames_and_their_labels_are_of_the_cropped_image(root, tmp_path):
    folder = read_folder(root)
    rows = folder.rows["d"]
    assert [(row.key, row.height, row.width) for row in rows] == [
        (f"../I/{name}", 10, 20) for name in ("clip.dcm#1", "clip.dcm#3", "still.dcm")
    ]
    store = open_store(folder, (10, 20), 1, tmp_path)
    stored = store.read("d", [0, 1, 2])
    for pixels, frame in zip(stored["image"], (CLIP[0], CLIP[2], GREY), strict=True):
        np.testing.assert_array_equal(pixels, resize_image(frame[5:15, 10:30], (10, 20), 1))
    np.testing.assert_array_equal(stored["box"], [[0, 0, 1, 1]] * 3)


def test_a_label_of_the_whole_frame_is_told_about_the_region(root):
    write(root, ["still.dcm"], "0,0,41,30")
    with pytest.raises(FolderError, match=r"20 x 10 .*stored as 41 x 30 .*ultrasound region"):
        read_folder(root)


def test_names_in_the_pixels_are_warned_of_once_with_their_number(root, tmp_path, capsys):
    for _ in range(2):  # checked, and remembered
        read_folder(root, cache_dir=tmp_path)
        warning = capsys.readouterr().err
        assert warning.count("\n") == 1
        assert "2 DICOM files" in warning
        assert "such as I/clip.dcm:" in warning
    write(root, ["still.dcm"])
    read_folder(root, cache_dir=tmp_path)
    assert "1 DICOM file of" in capsys.readouterr().err


def test_a_row_without_a_frame_or_with_a_wrong_one_is_named(root):
    write(root, ["clip.dcm", "clip.dcm#4", "gone.dcm#1"])
    with pytest.raises(FolderError) as caught:
        read_folder(root)
    assert [str(fault) for fault in caught.value.faults] == [
        "d.csv line 2, image_path: I/clip.dcm holds 3 frames; name one by its number behind the "
        "path, #1 to #3",
        "d.csv line 3, image_path: I/clip.dcm#4 has no frame 4; its frames are #1 to #3",
        "d.csv line 4, image_path: there is no file I/gone.dcm#1; correct the path or bring the "
        "file",
    ]


def test_frames_of_one_file_stay_on_one_side(root):
    splits = make_splits(read_folder(root))
    first, second, other = read_folder(root).rows["d"]
    assert splits.group(first) == splits.group(second) != splits.group(other)
    assert splits.group(first) == "../I/clip.dcm"
