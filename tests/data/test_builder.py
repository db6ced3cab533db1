import dataclasses
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from usfm.data import builder
from usfm.data.builder import SPLIT, open_store
from usfm.data.folder import Row
from usfm.data.image import read_image, read_mask, resize_image, resize_mask

SIZE = (16, 24)


def stores(cache):
    return sorted(path.name for path in cache.iterdir())


def contents(folder):
    """The bytes of all files, by their place in a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def whole_shards(cache):
    """The files of a store that is being built which are whole, and which files they are."""
    return {path: path.stat().st_ino for path in cache.rglob("*-of-?????")}


def run(script, *arguments):
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# Shards of three rows; those with masks, of one.
OPEN = """
import pickle, sys, zlib
from usfm.data import builder
builder.SHARD_BYTES = 1300
with open(sys.argv[1], "rb") as file:
    folder = pickle.load(file)
store = builder.open_store(folder, (16, 24), 1, sys.argv[2])
print(zlib.crc32(store.read("seg", range(7))["image"].tobytes()))
"""

# The process kills itself at its nth call of a function.
KILLED = (
    """
import itertools, os, pathlib, signal, sys
from usfm.data import builder, parallel, shards
parallel.cores = shards.cores = lambda: 2
places = {"record": shards, "replace": pathlib.Path, "describe": builder.UltrasoundFolder}
_, _, _, name, nth = sys.argv
function, calls = getattr(places[name], name), itertools.count(1)
def call(*arguments):
    if next(calls) == int(nth):
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*arguments)
setattr(places[name], name, call)
"""
    + OPEN
)

# The process waits at its first records until a file appears.
HELD = (
    """
import pathlib, sys, time
from usfm.data import shards
record = shards.record
def held(source):
    while not pathlib.Path(sys.argv[3]).exists():
        time.sleep(0.02)
    return record(source)
shards.record = held
"""
    + OPEN
)

# Two processes do the work.
PARALLEL = (
    """
from usfm.data import parallel
parallel.WORTH_PROCESSES, parallel.cores = 0, lambda: 2
"""
    + OPEN
)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(builder, "SHARD_BYTES", 1300)


@pytest.fixture
def saved_folder(small_folder, tmp_path):
    path = tmp_path / "folder.pickle"
    path.write_bytes(pickle.dumps(small_folder))
    return path


@pytest.mark.parametrize("channels", [1, 3])
def test_row_i_of_a_task_is_its_ith_image(small_folder, tmp_path, channels):
    store = open_store(small_folder, SIZE, channels, tmp_path / "cache")
    for task in small_folder.tasks:
        rows = small_folder.rows[task.id]
        assert store.num_rows(task.id) == len(rows)
        images = [read_image(small_folder.image_file(row)) for row in rows]
        read = store.read(task.id, range(len(rows)))
        expected = np.stack([resize_image(image, SIZE, channels) for image in images])
        np.testing.assert_array_equal(read["image"], expected)
        np.testing.assert_array_equal(read["size"], [image.shape[:2] for image in images])


def test_labels_are_those_of_the_rows_in_parts_of_the_original_size(small_folder, tmp_path):
    store = open_store(small_folder, SIZE, 1, tmp_path / "cache")
    rows = small_folder.rows

    assert store.read("organ", range(7))["label"].tolist() == [row.label for row in rows["organ"]]
    box = store.read("det", range(7))["box"]
    for found, row in zip(box, rows["det"], strict=True):
        x_min, y_min, x_max, y_max = row.box
        expected = [x_min / row.width, y_min / row.height, x_max / row.width, y_max / row.height]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    points = store.read("pts3", range(7))
    assert points["points_valid"].all()
    for found, row in zip(points["points"], rows["pts3"], strict=True):
        np.testing.assert_allclose(found * [row.width, row.height], row.points, rtol=1e-6)
    masks = [resize_mask(read_mask(small_folder.mask_file(row)), SIZE) for row in rows["seg"]]
    np.testing.assert_array_equal(store.read("seg", range(7))["mask"], np.stack(masks))


def test_missing_labels_are_marked(small_folder, tmp_path):
    blank = {"label": None, "box": None, "points": (), "mask_path": "", "mask_content": ""}
    rows: dict[str, tuple[Row, ...]] = {
        id_: (dataclasses.replace(some[0], **blank), *some[1:])
        for id_, some in small_folder.rows.items()
    }
    one_point = dataclasses.replace(rows["pts3"][1], points=(None, (3.0, 4.0), None))
    rows["pts3"] = (rows["pts3"][0], one_point, *rows["pts3"][2:])
    store = open_store(dataclasses.replace(small_folder, rows=rows), SIZE, 1, tmp_path / "cache")
    assert store.read("organ", [0])["label"].tolist() == [-1]
    assert not store.read("det", [0])["box"].any()
    assert (store.read("seg", [0])["mask"] == 255).all()
    points = store.read("pts3", [0, 1])
    assert points["points_valid"].tolist() == [[False, False, False], [False, True, False]]
    assert not points["points"][~points["points_valid"]].any()


def test_many_files_a_task_read_like_one(small_folder, tmp_path, monkeypatch):
    whole = open_store(small_folder, SIZE, 1, tmp_path / "whole")
    monkeypatch.setattr(builder, "SHARD_BYTES", 2 * 16 * 24 * 2)  # two rows with a mask
    parts = open_store(small_folder, SIZE, 1, tmp_path / "parts")
    assert len(whole.shards["seg"]) == 1
    assert len(parts.shards["seg"]) > 2
    order = [6, 0, 3, 3, 1, 5, 2, 4, 0]
    for name, array in whole.read("seg", order).items():
        np.testing.assert_array_equal(parts.read("seg", order)[name], array)


@pytest.mark.parametrize("index", [-1, 7])
def test_rows_outside_the_task_are_refused(make_store, index):
    with pytest.raises(IndexError, match="seg has rows 0 to 6"):
        make_store().read("seg", [0, index])


def test_is_a_tfds_dataset_with_the_strings_of_the_csv(small_folder, tmp_path):
    open_store(small_folder, SIZE, 1, tmp_path / "cache")
    (name,) = stores(tmp_path / "cache")
    builders = builder._builders(small_folder, SIZE, 1, tmp_path / "cache" / name)
    source = builders["seg"].as_data_source(SPLIT)
    for example, row in zip(source, small_folder.rows["seg"], strict=True):
        assert example["key"].decode() == row.key
        assert example["image_path"].decode() == row.image_path
        assert example["mask_path"].decode() == row.mask_path
        assert example["content"].decode() == row.content


def test_builds_in_silence_without_tensorflow_or_network(
    small_folder, tmp_path, monkeypatch, capfd, caplog
):
    def connect(*arguments):
        raise AssertionError(f"connects to {arguments}")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    store = open_store(small_folder, SIZE, 1, tmp_path / "cache")
    store.read("seg", [0])
    assert "tensorflow" not in sys.modules
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_once_open_the_images_are_needed_no_more(small_folder, tmp_path):
    first = open_store(small_folder, SIZE, 1, tmp_path / "cache")
    shutil.rmtree(small_folder.roots[0])
    again = open_store(small_folder, SIZE, 1, tmp_path / "cache")
    assert again == first
    np.testing.assert_array_equal(
        again.read("seg", [1, 2])["image"], first.read("seg", [1, 2])["image"]
    )


def test_changed_labels_pixels_and_settings_are_other_stores(small_folder, tmp_path):
    cache = tmp_path / "cache"
    open_store(small_folder, SIZE, 1, cache)
    for change in ({"label": 3}, {"content": "0" * 32}):
        row = dataclasses.replace(small_folder.rows["organ"][0], **change)
        rows = small_folder.rows | {"organ": (row, *small_folder.rows["organ"][1:])}
        changed = open_store(dataclasses.replace(small_folder, rows=rows), SIZE, 1, cache)
        if "label" in change:
            assert changed.read("organ", [0])["label"].tolist() == [3]
    open_store(small_folder, (8, 8), 1, cache)
    open_store(small_folder, SIZE, 3, cache)
    assert len(stores(cache)) == 5


def test_tfds_prepares_it_to_the_same_bytes(small_folder, tmp_path, small_shards):
    open_store(small_folder, SIZE, 1, tmp_path / "cache")
    (name,) = stores(tmp_path / "cache")
    of_tasks = builder._builders(small_folder, SIZE, 1, tmp_path / "tfds")
    for of_task in of_tasks.values():
        of_task.download_and_prepare(download_dir=tmp_path / "downloads")
    assert contents(tmp_path / "tfds") == contents(tmp_path / "cache" / name)


def test_a_build_that_is_killed_again_and_again_ends_as_one_that_was_not(
    small_folder, saved_folder, tmp_path, small_shards
):
    cache = tmp_path / "cache"
    whole = {}
    # While it makes some record, gives some shard its name, or describes those of some task.
    for moment in (("record", 11), ("replace", 6), ("describe", 3)):
        killed = run(KILLED, saved_folder, cache, *moment)
        assert killed.communicate()[1] == ""
        assert killed.returncode == -signal.SIGKILL
        (left,) = cache.glob("*.building")
        assert whole.items() < whole_shards(cache).items()
        whole = whole_shards(cache)
    assert list(left.rglob("*.json"))
    store = open_store(small_folder, SIZE, 1, cache)
    assert all(store.num_rows(task.id) == 7 for task in store.tasks)
    assert sorted(whole_shards(cache).values()) == sorted(whole.values())
    open_store(small_folder, SIZE, 1, tmp_path / "undisturbed")
    assert contents(cache) == contents(tmp_path / "undisturbed")


def test_half_written_files_are_not_taken_for_whole(small_folder, tmp_path, small_shards):
    cache = tmp_path / "cache"
    open_store(small_folder, SIZE, 1, cache)
    expected = contents(cache)
    (name,) = stores(cache)
    left = (cache / name).rename(cache / f"{name}.building")
    for file in left.rglob("*"):
        if file.name.endswith("00001-of-00003"):
            file.rename(file.with_name(file.name + ".00ff.unfinished")).write_bytes(b"half")
        elif file.suffix == ".json":
            file.write_text('{"half')
    open_store(small_folder, SIZE, 1, cache)
    assert contents(cache) == expected


def test_when_processes_build_and_their_parent_is_killed_they_end_and_the_next_goes_on(
    small_folder, saved_folder, tmp_path, small_shards
):
    cache = tmp_path / "cache"
    # Whoever opens this image waits for somebody to write it.
    file = small_folder.image_file(small_folder.rows["organ"][4])
    content = file.read_bytes()
    file.unlink()
    os.mkfifo(file)
    killed = run(PARALLEL, saved_folder, cache)
    while killed.poll() is None and len(whole_shards(cache)) < 21:
        time.sleep(0.02)
    whole = set(whole_shards(cache).values())
    killed.kill()
    # They hold the same pipes, so this ends when the last of them has ended.
    killed.communicate(timeout=60)
    file.unlink()
    file.write_bytes(content)
    open_store(small_folder, SIZE, 1, cache)
    assert whole < set(whole_shards(cache).values())
    open_store(small_folder, SIZE, 1, tmp_path / "undisturbed")
    assert contents(cache) == contents(tmp_path / "undisturbed")


def test_what_nobody_goes_on_with_is_removed(small_folder, saved_folder, tmp_path):
    cache = tmp_path / "cache"
    run(KILLED, saved_folder, cache, "record", 20).communicate()
    assert any(name.endswith(".building") for name in stores(cache))
    open_store(small_folder, (8, 8), 1, cache)
    assert len(stores(cache)) == 1


def test_a_failed_build_leaves_no_store(small_folder, tmp_path):
    file = small_folder.image_file(small_folder.rows["organ"][3])
    content = file.read_bytes()
    file.write_bytes(content[:30])
    with pytest.raises(ValueError, match=re.escape(str(file))):
        open_store(small_folder, SIZE, 1, tmp_path / "cache")
    file.write_bytes(content)
    store = open_store(small_folder, SIZE, 1, tmp_path / "cache")
    assert store.num_rows("organ") == 7
    assert len(stores(tmp_path / "cache")) == 1


def test_two_processes_that_build_at_once_both_have_the_store(saved_folder, tmp_path):
    cache, go = tmp_path / "cache", tmp_path / "go"
    first = run(HELD, saved_folder, cache, go)
    while first.poll() is None and not list(cache.glob("*.building")):
        time.sleep(0.02)
    second = run(OPEN, saved_folder, cache)
    assert second.stderr is not None
    assert "waiting for the process that makes" in second.stderr.readline()
    go.touch()
    outputs = [process.communicate() for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), outputs
    assert outputs[0][0] == outputs[1][0] != ""
    assert len(stores(cache)) == 1


def test_two_stores_can_be_built_at_once(small_folder, saved_folder, tmp_path):
    cache, go = tmp_path / "cache", tmp_path / "go"
    other = run(HELD, saved_folder, cache, go)
    while other.poll() is None and not list(cache.rglob("*.unfinished")):
        time.sleep(0.02)
    open_store(small_folder, (8, 8), 1, cache)
    assert len(list(cache.glob("*.building"))) == 1
    go.touch()
    assert other.communicate()[1] == ""
    assert len(stores(cache)) == 2
