import re

import pytest
from tensorflow_datasets.proto import tf_example_pb2

from usfm.data import wire

# Texts and arrays whose lengths need one, two and three bytes; one holds another's head.
FIELDS = {
    "key": b"k" * 127,
    "image": wire.head("mask", 300) + bytes(range(256)) * 80,
    "size": b"\x01" * 8,
    "mask": b"\x0a" * 300,
    "content": b"",
    "image_path": b"p" * 128,
}


def example(fields) -> bytes:
    made = tf_example_pb2.Example()  # pyrefly: ignore
    for name, value in fields.items():
        made.features.feature[name].bytes_list.value.append(value)
    return made.SerializeToString()


def heads(*names):
    return {name.encode(): wire.head(name, len(FIELDS[name])) for name in names}


def test_arrays_are_found_where_protobuf_puts_them_in_any_order():
    for names in (list(FIELDS), list(FIELDS)[::-1]):
        record = example({name: FIELDS[name] for name in names})
        found = wire.find(record, heads("image", "size", "mask"))
        for name, end in found.items():
            value = FIELDS[name.decode()]
            assert record[end - len(value) : end] == value
        assert set(found) == {b"image", b"size", b"mask"}


def test_what_comes_before_an_array_is_as_protobuf_writes_it():
    for name, size in (("image", 65_536), ("size", 8), ("mask", 120), ("points", 3_000_000)):
        record = example({name: bytes(size)})
        # The whole is one message of field 1: its tag, its length, and the one field.
        assert record.endswith(wire.head(name, size) + bytes(size))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda record: record[:-1], "its fields end at byte"),
        (lambda record: record + b"\x0a", "its fields end at byte"),
        (lambda record: b"\x12" + record[1:], "byte 0 is 0x12"),
        (lambda record: record.replace(b"\x04mask", b"\x04mas\x0a"), "lacks"),
        (
            lambda record: record.replace(b"\x05image\x12", b"\x05image\x1a"),
            "its image has another",
        ),
    ],
)
def test_a_record_of_another_form_is_refused(spoil, told):
    record = spoil(example({name: FIELDS[name] for name in ("size", "image", "mask")}))
    if told == "lacks":
        assert b"mask" not in wire.find(record, heads("mask", "image"))
    else:
        with pytest.raises(ValueError, match=re.escape(told)):
            wire.find(record, heads("mask", "image"))
