"""Where records lie in an ArrayRecord file, so that bytes go straight from it to a batch's memory.

An ArrayRecord file is a Riegeli file (riegeli_records_file_format.md of google/riegeli): chunks
one after the other, of which each holds one record here, interrupted every 64 KiB by a block header
of 24 bytes. A place is counted without those headers; with them it is an offset. Of a file written
with "group_size:1,uncompressed" the chunks are, headers of 40 bytes included:

    header, 00, length of what follows, record's length, record      for each record
    header, 00, length of lengths, lengths, then a message for the file and one for each record
                                                                     the footer, whose offset is
    header, 00, length of lengths, lengths, messages                 in the last 64 KiB

ArrayRecord's own reader copies a record four times on its way; it is who checks the hashes.
"""

import array
import os

from usfm.data import wire

_BLOCK = 1 << 16
_BLOCK_HEADER = 24
_USABLE = _BLOCK - _BLOCK_HEADER
_CHUNK_HEADER = 40
_MANY = 1000  # buffers that one call of the system takes: 1024 on Linux
_skipped = bytearray(_BLOCK_HEADER)  # where block headers go; of no use


def read_into(descriptor: int, buffer: memoryview, place: int) -> None:
    """Fills bytes with those of a file from a place on.

    Args:
        descriptor: of the open file.
        buffer: bytes to fill.
        place: counted without block headers.

    Raises:
        ValueError: the file ends before.
    """
    offset = _offset(place)
    room = _USABLE - place % _USABLE
    buffers = []
    while len(buffer) > room:
        buffers += buffer[:room], _skipped
        buffer, room = buffer[room:], _USABLE
    buffers.append(buffer)
    for first in range(0, len(buffers), _MANY):
        some = buffers[first : first + _MANY]
        size = sum(map(len, some))
        if os.preadv(descriptor, some, offset) != size:
            raise ValueError(f"the file ends before byte {offset + size}")
        offset += size


def chunk_places(descriptor: int, size: int) -> array.array:
    """The place of every record's chunk, in the order of the records, int64.

    Args:
        descriptor: of the open file, whose end ArrayRecord has found sound.
        size: of the file, in bytes.

    Raises:
        ValueError: the file is not written with one record a chunk, or compressed.
    """
    postscript = _messages(descriptor, _place(size - _BLOCK))[0]
    of_records = _messages(descriptor, _place(_first_field(postscript)))[1:]
    return array.array("q", (_place(_first_field(message)) for message in of_records))


def record_place(chunk_place: int, record_size: int) -> int:
    """The place of the first byte of a record of so many bytes."""
    return chunk_place + _CHUNK_HEADER + 2 + len(wire.number(record_size))


def _messages(descriptor: int, place: int) -> list[bytes]:
    """The records of an uncompressed chunk."""
    header = bytearray(_CHUNK_HEADER)
    read_into(descriptor, memoryview(header), place)
    data = bytearray(int.from_bytes(header[8:16], "little"))
    read_into(descriptor, memoryview(data), place + _CHUNK_HEADER)
    if header[24:25] + data[:1] != b"r\x00":
        raise ValueError("a chunk is not of uncompressed records")
    of_lengths, start = wire.parse_number(data, 1)
    end = start + of_lengths
    messages, lengths = [], start
    while lengths < start + of_lengths:
        length, lengths = wire.parse_number(data, lengths)
        messages.append(bytes(data[end : end + length]))
        end += length
    return messages


def _first_field(message: bytes) -> int:
    """The number that is field 1 of a message, and comes first in it."""
    if message[:1] != b"\x08":
        raise ValueError("a message of the file's end has another form")
    return wire.parse_number(message, 1)[0]


def _place(offset: int) -> int:
    """An offset without the block headers before it, and with the one that begins there."""
    blocks, inside = divmod(offset, _BLOCK)
    return blocks * _USABLE + max(0, inside - _BLOCK_HEADER)


def _offset(place: int) -> int:
    return place + (place // _USABLE + 1) * _BLOCK_HEADER
