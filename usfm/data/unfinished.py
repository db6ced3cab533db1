"""Folders that take long to make: seen under their name only when whole, and gone on with."""

import contextlib
import fcntl
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Generator


def make_once(path: pathlib.Path, make: Callable[[pathlib.Path], None]) -> None:
    """Makes a folder, unless it is there. One process makes it, others wait for that.

    It is made under another name. What a killed process left there, the next one is handed; and
    when it is done, it removes what nobody goes on with.

    Args:
        path: the folder.
        make: fills the folder that it is given, which may hold what it left there before.
    """
    while not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path, wait=True):
            if not path.exists():  # it may have come while we waited
                unfinished = _beside(path, ".building")
                unfinished.mkdir(exist_ok=True)
                make(unfinished)
                unfinished.rename(path)
                _remove_leftovers(path.parent)


def _remove_leftovers(folder: pathlib.Path) -> None:
    leftovers = [*folder.glob("*.building"), *folder.glob("*.lock")]
    for path in {leftover.with_suffix("") for leftover in leftovers}:
        with _locked(path, wait=False) as free:
            if free and (unfinished := _beside(path, ".building")).exists():
                shutil.rmtree(unfinished)


@contextlib.contextmanager
def _locked(path: pathlib.Path, wait: bool) -> Generator[bool]:
    """Holds the right to make a folder; the system takes it back when a process dies.

    Yields:
        Whether it is held: without waiting, another process may have it.
    """
    file = _beside(path, ".lock")
    while True:
        lock = file.open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                lock.close()
                yield False
                return
            print(f"waiting for the process that makes {path}", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        # Who had it before has removed the file, and a third process may have made a new one.
        if _is_at(file, lock.fileno()):
            break
        lock.close()
    with lock:
        try:
            yield True
        finally:
            file.unlink()


def _beside(path: pathlib.Path, ending: str) -> pathlib.Path:
    return path.with_name(path.name + ending)  # the name may hold dots itself


def _is_at(file: pathlib.Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except FileNotFoundError:
        return False
