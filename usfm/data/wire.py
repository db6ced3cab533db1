"""Where the arrays of a record lie, so that they are copied once, from the record to the batch.

A record is a serialized tf.train.Example of features that are one bytes value each. What comes
before an array's bytes is then the same in every record, for its name and size are:

    0A length, 0A length name, 12 length, 0A length, 0A length, the array's bytes

with protobuf's tags (0A and 12: a message or bytes, as field 1 and 2) and its variable-length
numbers. Texts differ in length, and fields come in any order, so records are walked through.
"""

from collections.abc import Mapping


def head(name: str, size: int) -> bytes:
    """What comes before the bytes of an array of this name and size, in a record."""
    value = b"\x0a" + number(size)
    values = b"\x0a" + number(len(value) + size) + value
    feature = b"\x12" + number(len(values) + size) + values
    key = b"\x0a" + number(len(name)) + name.encode()
    return b"\x0a" + number(len(key) + len(feature) + size) + key + feature


def find(record: bytes, heads: Mapping[bytes, bytes]) -> dict[bytes, int]:
    """Where the bytes of arrays end in a record, by name; an array that it lacks is left out.

    Args:
        record: the serialized tf.train.Example.
        heads: name -> head(name, size), of the arrays to find.

    Raises:
        ValueError: the record is of another form.
    """
    ends = {}
    place, end = _inside(record, 0)
    if end != len(record):
        raise ValueError(f"its fields end at byte {end} of {len(record)}")
    while place < end:
        key, following = _inside(record, place)
        name = record[key + 2 : key + 2 + record[key + 1]]
        if name in heads:
            if not record.startswith(heads[name], place):
                raise ValueError(f"its {name.decode()} has another size or form")
            ends[name] = following
        place = following
    return ends


def _inside(record: bytes, place: int) -> tuple[int, int]:
    """Where the message of field 1 at this place begins, and where it ends."""
    if record[place] != 0x0A:
        raise ValueError(f"byte {place} is {record[place]:#x}, not the tag of a field")
    length, start = parse_number(record, place + 1)
    return start, start + length


def parse_number(data: bytes | bytearray, place: int) -> tuple[int, int]:
    """The variable-length number at this place, and the place after it."""
    value, shift = data[place] & 0x7F, 7
    while data[place] > 0x7F:
        place += 1
        value |= (data[place] & 0x7F) << shift
        shift += 7
    return value, place + 1


def number(value: int) -> bytes:
    """A variable-length number: seven bits a byte, the lowest first."""
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])
