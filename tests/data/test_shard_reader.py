import array
import dataclasses
import pathlib

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from usfm.data.shard_reader import ShardReader
from usfm.data.shards import OPTIONS
from usfm.data.store import stored_arrays
from usfm.errors import UserError

SIZES = {"image": 70_000, "label": 4}


def example(seed):
    chance = np.random.default_rng(seed)
    made = tf_example_pb2.Example()  # pyrefly: ignore
    for name, size in {**SIZES, "key": seed}.items():
        made.features.feature[name].bytes_list.value.append(chance.bytes(size))
    return made


def written(folder, examples, options=OPTIONS):
    file = folder / "rows.array_record"
    writer = ArrayRecordWriter(str(file), options)
    for one in examples:
        writer.write(one.SerializeToString(deterministic=True))
    writer.close()
    return file


def read(reader, row, sizes=SIZES):
    out = {name: bytearray(size) for name, size in sizes.items()}
    reader.read(row, {name: memoryview(buffer) for name, buffer in out.items()})
    return out


def test_arrays_of_a_row_are_the_same_every_time(tmp_path):
    examples = [example(seed) for seed in range(9)]
    reader = ShardReader(str(written(tmp_path, examples)), SIZES)
    for row in (3, 8, 3, 0, 0, 3):
        for name, buffer in read(reader, row).items():
            assert buffer == examples[row].features.feature[name].bytes_list.value[0]


def test_arrays_that_are_not_asked_for_are_left_alone(tmp_path):
    examples = [example(seed) for seed in range(2)]
    reader = ShardReader(str(written(tmp_path, examples)), SIZES)
    for _ in range(2):
        assert read(reader, 1, {"label": 4}) == {
            "label": examples[1].features.feature["label"].bytes_list.value[0]
        }


def test_rows_of_the_store_are_what_protobuf_reads(make_store):
    store = make_store()
    for task in store.tasks:
        ((file, count),) = store.shards[task.id]
        records = ArrayRecordReader(file).read(list(range(count)))
        for _ in range(2):  # found, then read from where they were found
            rows = store.read(task.id, range(count))
            for place, record in enumerate(records):
                fields = tf_example_pb2.Example.FromString(record).features.feature  # pyrefly: ignore
                for name, (shape, dtype) in stored_arrays(
                    task, store.image_size, store.channels
                ).items():
                    value = np.frombuffer(fields[name].bytes_list.value[0], dtype).reshape(shape)
                    np.testing.assert_array_equal(rows[name][place], value)


def test_a_damaged_row_is_refused_and_the_others_are_read(tmp_path):
    examples = [example(seed) for seed in range(3)]
    file = written(tmp_path, examples)
    image = examples[1].features.feature["image"].bytes_list.value[0]
    data = bytearray(file.read_bytes())
    data[data.index(image[:64]) + 9] ^= 1
    file.write_bytes(data)
    reader = ShardReader(str(file), SIZES)
    with pytest.raises(ValueError, match=r"it is damaged: .* hash mismatch"):
        read(reader, 1)
    for row in (0, 2):
        assert (
            read(reader, row)["image"]
            == (examples[row].features.feature["image"].bytes_list.value[0])
        )


@pytest.mark.parametrize("left", [0, 100, 70_000, -65_536, None])
def test_a_file_that_is_cut_short_or_gone_is_refused(tmp_path, left):
    file = written(tmp_path, [example(1), example(2)])
    data = file.read_bytes()
    file.unlink()
    if left is not None:
        file.write_bytes(data[:left])
    with pytest.raises(ValueError, match="cut short, damaged or gone"):
        ShardReader(str(file), SIZES)


def test_a_row_whose_bytes_are_elsewhere_is_refused(tmp_path):
    reader = ShardReader(str(written(tmp_path, [example(1), example(2)])), SIZES)
    reader._chunks = array.array("q", [place + 1 for place in reader._chunks])
    with pytest.raises(ValueError, match="lie elsewhere"):
        read(reader, 0)


def test_a_row_that_lacks_an_array_is_refused(tmp_path):
    reader = ShardReader(str(written(tmp_path, [example(1)])), {**SIZES, "mask": 9})
    with pytest.raises(ValueError, match="it lacks its mask"):
        read(reader, 0)


@pytest.mark.parametrize("options", ["group_size:2,uncompressed", "group_size:1"])
def test_a_file_written_in_another_way_is_refused(tmp_path, options):
    file = written(tmp_path, [example(1), example(2)], options)
    with pytest.raises(ValueError, match=r"several records|not of uncompressed"):
        ShardReader(str(file), SIZES)


def test_a_store_of_another_size_is_named_and_not_read(make_store):
    store = make_store()
    store.read("seg", [2])  # where its arrays lie is known, of their right size
    wrong = store.__class__(store.tasks, (16, 16), store.channels, store.shards)
    with pytest.raises(
        ValueError, match=r"rows.*: row 2 of seg is not as .*its (image|mask) has another"
    ):
        wrong.read("seg", [2])


def test_a_store_written_in_another_way_is_named(make_store, tmp_path):
    store = make_store()
    file = written(tmp_path, [example(1)] * 7, "group_size:1")
    wrong = store.__class__(
        store.tasks, store.image_size, store.channels, {"seg": ((str(file), 7),)}
    )
    with pytest.raises(ValueError, match=f"{file}: row 2 of seg is not as .*uncompressed"):
        wrong.read("seg", [2])


def test_a_damaged_store_is_named_with_the_row_and_what_to_do(make_store, tmp_path):
    store = make_store()
    image = store.read("seg", [2])["image"].tobytes()
    ((file, count),) = store.shards["seg"]
    damaged = tmp_path / "damaged"
    data = pathlib.Path(file).read_bytes()
    damaged.write_bytes(data.replace(image, image[:-1] + bytes([image[-1] ^ 1])))
    store = dataclasses.replace(store, shards={"seg": ((str(damaged), count),)})
    store.read("seg", [0, 1, 3])
    with pytest.raises(UserError, match=r"damaged: row 2 of seg .*it is damaged.* built again"):
        store.read("seg", [2])
