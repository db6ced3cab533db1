"""The files of a store: each appears under its name only when whole, so that a build can go on."""

import dataclasses
import itertools
import os
import pathlib
import uuid
from collections.abc import Iterable, Sequence

from array_record.python.array_record_module import ArrayRecordWriter

from usfm.data.parallel import all_cores, map_ahead
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


def write_shard(file: pathlib.Path, records: Iterable[bytes]) -> None:
    """Writes a file of records; until it is whole, it has another name."""
    # Not only of this process: Beam may have several machines write one shard at once.
    unfinished = file.with_name(f"{file.name}.{uuid.uuid4().hex}.unfinished")
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(os.fspath(unfinished), OPTIONS)
    for one in records:
        writer.write(one)
    writer.close()
    unfinished.replace(file)


def write_shards(shards: Sequence[Shard]) -> None:
    """Writes the shards that are not whole, on all cores of this machine."""
    missing = [shard for shard in shards if not shard.whole]
    total, rows = (sum(len(shard.sources) for shard in some) for some in (shards, missing))
    sources = itertools.chain.from_iterable(shard.sources for shard in missing)
    with all_cores(rows) as pool:
        records = progress(
            map_ahead(pool, record, sources), total, "storing images", before=total - rows
        )
        for shard in missing:
            write_shard(shard.file, itertools.islice(records, len(shard.sources)))
