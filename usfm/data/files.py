"""What the images and masks of a folder are: decoded once, in parallel, and remembered."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import stat
import sys
from collections.abc import Collection, Mapping

import numpy as np

from usfm.data.image import burned_in, content_hash, read_image, read_mask, split_frame
from usfm.data.limits import ImageError
from usfm.data.parallel import all_cores
from usfm.data.progress import progress

# A file, or a frame of one, as it is wanted: ("image" or "mask", path relative to the root).
Wanted = tuple[str, str]
# A file as it was when decoded. ctime is there because it cannot be set back as mtime can.
Stamp = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a file that can be decoded.

    Attributes:
        height: in pixels.
        width: in pixels.
        content: hash of the decoded pixels.
        values: the class ids of a mask, ascending; () of an image.
        burned_in: the file says that its pixels show who was examined.
    """

    height: int
    width: int
    content: str
    values: tuple[int, ...]
    burned_in: bool


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """Why a file that is there cannot be used."""

    fault: str
    remedy: str


def check_files(
    root: pathlib.Path, wanted: Collection[Wanted], cache_dir: pathlib.Path | None
) -> dict[Wanted, Facts | Unreadable | None]:
    """Decodes every wanted file that is new or changed since the last time.

    Warns of files that say that their pixels show who was examined.

    Args:
        root: the data folder.
        wanted: each file once.
        cache_dir: where what is found is kept for the next start; None to keep nothing.

    Returns:
        The facts of each file, why it is unreadable, or None where there is no such file.
    """
    cache_file = None
    if cache_dir is not None:
        # Folders share a cache directory, so each has a file named after its place.
        place = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=8).hexdigest()
        cache_file = cache_dir / f"files-{place}.json"
    known = _load(cache_file) if cache_file else {}
    with concurrent.futures.ThreadPoolExecutor() as pool:  # a file system may be far away
        stamps = dict(zip(wanted, pool.map(functools.partial(_stamp, root), wanted), strict=True))
    found: dict[Wanted, Facts | Unreadable | None] = {}
    new: dict[Wanted, Stamp] = {}
    for file, stamp in stamps.items():
        if not isinstance(stamp, tuple):
            found[file] = stamp
        elif file in known and known[file][0] == stamp:
            found[file] = known[file][1]
        else:
            new[file] = stamp
    with all_cores(len(new)) as pool:
        decoded = pool.map(functools.partial(_decode, root), new, chunksize=8)
        found |= zip(new, progress(decoded, len(new), "checking files"), strict=True)
    fresh = {
        file: (stamp, facts)
        for file, stamp in new.items()
        if isinstance(facts := found[file], Facts)
    }
    if cache_file and fresh:
        _save(cache_file, known | fresh)
    _warn(root, found)
    return {file: found[file] for file in wanted}


def _warn(root: pathlib.Path, found: Mapping[Wanted, Facts | Unreadable | None]) -> None:
    shown = {
        split_frame(path)[0]
        for (_, path), facts in found.items()
        if isinstance(facts, Facts) and facts.burned_in
    }
    if shown:
        print(
            f"warning: {len(shown)} DICOM file{'s' if len(shown) > 1 else ''} of {root} may show "
            f"names (BurnedInAnnotation is YES), such as {min(shown)}: look before you share",
            file=sys.stderr,
        )


def _stamp(root: pathlib.Path, file: Wanted) -> Stamp | Unreadable | None:
    try:
        status = os.stat(split_frame(root / file[1])[0])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        remedy = "correct the path or its permissions"
        return Unreadable(f"cannot be read ({error.strerror})", remedy)
    if not stat.S_ISREG(status.st_mode):
        return Unreadable("is not a file", "correct the path")
    if status.st_size == 0:
        return Unreadable("is an empty file (0 bytes)", "copy it again")
    # Taken before decoding: a file that changes meanwhile will not match next time.
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _decode(root: pathlib.Path, file: Wanted) -> Facts | Unreadable:
    role, path = file
    try:
        pixels = read_mask(root / path) if role == "mask" else read_image(root / path)
        shown = role == "image" and burned_in(root / path)
    except ImageError as error:
        return Unreadable(error.fault, error.remedy)
    values = tuple(np.flatnonzero(np.bincount(pixels.ravel())).tolist()) if role == "mask" else ()
    height, width = pixels.shape[:2]
    return Facts(height, width, content_hash(pixels), values, shown)


def _load(path: pathlib.Path) -> dict[Wanted, tuple[Stamp, Facts]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {
            (str(role), str(name)): (
                (int(size), int(mtime), int(ctime)),
                Facts(int(height), int(width), str(content), tuple(map(int, values)), bool(shown)),
            )
            for role, name, size, mtime, ctime, height, width, content, values, shown in entries
        }
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError):  # damaged: what it held is found again
        return {}


def _save(path: pathlib.Path, entries: dict[Wanted, tuple[Stamp, Facts]]) -> None:
    lists = [
        [*file, *stamp, *dataclasses.astuple(facts)] for file, (stamp, facts) in entries.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    unfinished.write_text(json.dumps(lists), encoding="utf-8")
    os.replace(unfinished, path)
