import numpy as np
import pytest

from usfm.data.image import read_image
from usfm.evaluation.images import read_batches


def batches(folder, rows, unreadable=None):
    chunks = [rows[start : start + 3] for start in range(0, len(rows), 3)]
    asked = {"sizes": [(16, 24), (8, 8)], "channels": 1, "batch_size": 3, "what": "reading"}
    return list(read_batches(folder, chunks, **asked, unreadable=unreadable))


def test_images_come_in_batches_of_one_shape_at_each_size(small_folder):
    rows = small_folder.rows["seg"]
    read = batches(small_folder, rows)
    assert [row for chunk, _ in read for row in chunk] == list(rows)
    assert [len(chunk) for chunk, _ in read] == [3, 3, 1]
    for _, (large, small) in read:
        assert (large.shape, small.shape) == ((3, 16, 24, 1), (3, 8, 8, 1))
    assert read[2][1][0][0].any()
    assert not read[2][1][0][1:].any()


def test_an_image_that_is_gone_when_its_turn_comes_is_told_and_the_rest_goes_on(small_folder):
    rows = small_folder.rows["seg"]
    whole = batches(small_folder, rows)
    for row in rows[1:3]:
        small_folder.image_file(row).write_bytes(b"cut")
    small_folder.image_file(rows[6]).unlink()  # the last batch is left empty
    told = []
    read = batches(small_folder, rows, lambda row, error: told.append((row.index, str(error))))
    assert [[row.index for row in chunk] for chunk, _ in read] == [[0], [3, 4, 5]]
    np.testing.assert_array_equal(read[0][1][0][0], whole[0][1][0][0])
    assert not read[0][1][0][1:].any()
    assert [index for index, _ in told] == [1, 2, 6]
    assert "not an image" in told[0][1]


def test_where_nobody_is_told_it_raises(small_folder):
    rows = small_folder.rows["seg"]
    small_folder.image_file(rows[1]).unlink()
    with pytest.raises(FileNotFoundError):
        batches(small_folder, rows)
    assert read_image(small_folder.image_file(rows[0])).any()
