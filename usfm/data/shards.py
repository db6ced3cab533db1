"""The files of a store: each appears under its name only when whole, so that a build can go on."""

import concurrent.futures
import dataclasses
import functools
import os
import pathlib
import uuid
from collections.abc import Iterable, Iterator, Sequence

from array_record.python.array_record_module import ArrayRecordWriter

from usfm.data.parallel import all_cores, cores
from usfm.data.progress import progress
from usfm.data.records import Source, record

# Uncompressed takes up to four times the disk, and is read at 2.5 times the speed.
OPTIONS = "group_size:1,uncompressed"


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of the store, and the rows that it holds, in order."""

    file: pathlib.Path
    sources: tuple[Source, ...]

    @property
    def whole(self) -> bool:
        """Whether it has been written."""
        return self.file.exists()


def write_shards(shards: Sequence[Shard]) -> None:
    """Writes the shards that are not whole, on all cores of this machine, one a core at a time."""
    total = sum(len(shard.sources) for shard in shards)
    missing = [shard for shard in shards if not shard.whole]
    missing.sort(key=lambda shard: -len(shard.sources))  # so that no large one is left at the end
    rows = sum(len(shard.sources) for shard in missing)
    threads = cores() // max(1, len(missing))
    with all_cores(rows) as pool:
        written = pool.map(functools.partial(write_shard, threads=threads), missing)
        stored = (row for shard in written for row in range(shard))
        for _ in progress(stored, total, "storing images", before=total - rows):
            pass


def write_shard(shard: Shard, threads: int = 1) -> int:
    """Writes a shard; until it is whole, its file has another name.

    Args:
        shard: what to write.
        threads: make the records. Of one, the calling thread makes them.

    Returns:
        The number of its rows.
    """
    # Not only of this process: Beam may have several machines write one shard at once.
    unfinished = shard.file.with_name(f"{shard.file.name}.{uuid.uuid4().hex}.unfinished")
    shard.file.parent.mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(os.fspath(unfinished), OPTIONS)
    for one in _records(shard.sources, threads):
        writer.write(one)
    writer.close()
    unfinished.replace(shard.file)
    return len(shard.sources)


def _records(sources: Iterable[Source], threads: int) -> Iterator[bytes]:
    if threads <= 1:
        yield from map(record, sources)
    else:
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            yield from pool.map(record, sources)
