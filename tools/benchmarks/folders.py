"""What a benchmark reads: a folder that is given, or phantoms made for it."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

from usfm.data.folder import Folder, read_folder
from usfm.data.phantoms import write_folder


@contextlib.contextmanager
def opened(data: str, rows: int) -> Iterator[tuple[Folder, pathlib.Path]]:
    """A folder, and a place for what is gone when the benchmark ends.

    Args:
        data: an FM_UIA folder; "" = phantoms are made.
        rows: of each phantom task.
    """
    with tempfile.TemporaryDirectory() as name:
        scratch = pathlib.Path(name)
        root = pathlib.Path(data) if data else scratch / "phantoms"
        if not data:
            write_folder(root, rows=rows)
        yield read_folder(root, cache_dir=scratch), scratch
