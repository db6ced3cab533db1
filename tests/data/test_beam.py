import re

import pytest

from usfm.data import beam, builder
from usfm.data.builder import open_store
from usfm.errors import UserError

# TFDS says so of the older protobuf that Apache Beam holds back.
pytestmark = pytest.mark.filterwarnings("ignore:label.. is deprecated:DeprecationWarning")

# Without the second option, Apache Beam would look for a runner of its own in the network.
OPTIONS = ("runner=DirectRunner", "allow_unsafe_triggers")
SIZE = (16, 24)


@pytest.fixture
def write(monkeypatch):
    """Writes the shards of a store, of three rows and less, on Apache Beam."""
    pytest.importorskip("apache_beam", reason="Apache Beam (the extra beam) is not installed")
    monkeypatch.setattr(builder, "SHARD_BYTES", 1300)
    return beam.writer(OPTIONS)


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_store_built_on_beam_is_that_built_here(small_folder, tmp_path, write):
    open_store(small_folder, SIZE, 1, tmp_path / "beam", write)
    open_store(small_folder, SIZE, 1, tmp_path / "here")
    assert contents(tmp_path / "beam") == contents(tmp_path / "here")


def test_a_damaged_file_is_named_and_the_rest_need_not_be_built_again(
    small_folder, tmp_path, write
):
    cache = tmp_path / "cache"
    file = small_folder.image_file(small_folder.rows["organ"][3])
    content = file.read_bytes()
    file.write_bytes(content[:30])
    with pytest.raises(UserError, match=re.escape(f"{file} is not an image")):
        open_store(small_folder, SIZE, 1, cache, write)
    whole = {path.stat().st_ino for path in cache.rglob("*-of-?????")}
    file.write_bytes(content)
    open_store(small_folder, SIZE, 1, cache, write)
    assert set() < whole < {path.stat().st_ino for path in cache.rglob("*-of-?????")}
