"""A workdir belongs to one run at a time."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

from usfm import processes
from usfm.errors import UserError

FILE = ".in_use"


@contextlib.contextmanager
def in_use(workdir: pathlib.Path) -> Iterator[None]:
    """Holds a workdir for this run, in its first process; it is free again however that ends.

    Raises:
        UserError: another run holds it.
    """
    if not processes.is_first():
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / FILE
    path.touch()
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{workdir} is in use by another run ({file.read().strip() or 'just begun'}): wait "
                "for it, stop it, or give another --workdir"
            ) from None
        except OSError:  # a file system without locks
            yield
            return
        path.write_text(f"process {os.getpid()} on {os.uname().nodename}\n")
        yield
