import random

import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from usfm.data import riegeli
from usfm.data.shards import OPTIONS

BLOCK = 65_536


def written(folder, records, options=OPTIONS):
    file = folder / "rows.array_record"
    writer = ArrayRecordWriter(str(file), options)
    for record in records:
        writer.write(record)
    writer.close()
    return file


def chunk_places(file):
    with file.open("rb") as opened:
        return riegeli.chunk_places(opened.fileno(), file.stat().st_size)


def read(file, chunk_place, size):
    record = bytearray(size)
    with file.open("rb") as opened:
        place = riegeli.record_place(chunk_place, size)
        riegeli.read_into(opened.fileno(), memoryview(record), place)
    return record


def records():
    """Of sizes that put block headers before, into and behind records and their chunks' headers."""
    chance = random.Random(0)
    sizes = [BLOCK - 24 - 40 - 40 - 2 - 3]  # the file's first chunk, and this one, fill a block
    sizes += [1, 127, 128, 16_383, 16_384, BLOCK - 24, BLOCK, 3 * BLOCK, 20 * BLOCK]
    sizes += [BLOCK - 24 - 43 - shift for shift in range(-70, 70)]
    sizes += [chance.randrange(1, 3 * BLOCK) for _ in range(300)]
    return [chance.randbytes(size) for size in sizes]


def test_every_record_lies_where_it_is_said_to(tmp_path, monkeypatch):
    monkeypatch.setattr(riegeli, "_MANY", 7)  # so that some take several calls of the system
    expected = records()
    file = written(tmp_path, expected)
    places = chunk_places(file)
    assert len(places) == len(expected)
    for place, record in zip(places, expected, strict=True):
        assert read(file, place, len(record)) == record
    assert ArrayRecordReader(str(file)).read([7]) == [expected[7]]


def test_chunks_that_begin_with_a_block_are_among_those_tried(tmp_path):
    places = chunk_places(written(tmp_path, records()))
    assert any(place % (BLOCK - 24) == 0 for place in places)


def test_no_record_is_no_place(tmp_path):
    assert not len(chunk_places(written(tmp_path, [])))


def test_a_compressed_file_is_refused(tmp_path):
    file = written(tmp_path, [b"a" * 100] * 3, "group_size:1")
    with pytest.raises(ValueError, match="not of uncompressed records"):
        chunk_places(file)


def test_a_file_that_ends_early_is_told(tmp_path):
    file = written(tmp_path, [b"a" * 100])
    (place,) = chunk_places(file)
    with pytest.raises(ValueError, match="the file ends before byte"):
        read(file, place, 3 * BLOCK)
