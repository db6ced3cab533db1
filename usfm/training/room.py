"""Whether a folder would take a checkpoint, asked before it is begun."""

import os
import shutil
import tempfile

from etils import epath


def hindrance(directory: epath.Path, size: int) -> str:
    """Why so many bytes cannot be written into a folder; "" where nothing is found against it.

    The folder is made where it is missing. Of an object store nothing is asked: it does not fill.
    """
    if "://" in os.fspath(directory):
        return ""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, prefix="room-") as probe:
            probe.write(b"room?")
            probe.flush()
            os.fsync(probe.fileno())
        free = shutil.disk_usage(directory).free
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    if free < size:
        return f"no space left on the disk: {free:,} bytes are free, and it takes {size:,}"
    return ""
