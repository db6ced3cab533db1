"""A file of the store that is open for reading."""

import array
import os
import weakref
from collections.abc import Mapping

from array_record.python.array_record_module import ArrayRecordReader

from usfm.data import riegeli, wire

# Rows are read in any order, so nothing is read ahead.
READER = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 32768}


class ShardReader:
    """Reads the arrays of a file's rows, straight to where they are wanted.

    A row is read by ArrayRecord the first time, which checks its hashes. Where its arrays lie is
    kept: 8 bytes for each, and 8 for the row.
    """

    def __init__(self, file: str, sizes: Mapping[str, int]):
        """Opens a file.

        Args:
            file: written by usfm/data/shards.py.
            sizes: name -> bytes, of the arrays of a row.

        Raises:
            ValueError: it is damaged, not there, or written in another way.
        """
        self._checking = ArrayRecordReader(file, **READER)
        if not self._checking.ok():  # it has checked what chunk_places trusts
            raise ValueError("ArrayRecord cannot open it: it is cut short, damaged or gone")
        self._descriptor = os.open(file, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        self._chunks = riegeli.chunk_places(self._descriptor, os.fstat(self._descriptor).st_size)
        if len(self._chunks) != self._checking.num_records():
            raise ValueError("it has several records a chunk")
        self._heads = {name.encode(): wire.head(name, size) for name, size in sizes.items()}
        self._sizes = sizes
        self._places = {name: array.array("q", [-1]) * len(self._chunks) for name in sizes}

    def read(self, row: int, out: Mapping[str, memoryview]) -> None:
        """Reads arrays of a row.

        Args:
            row: from 0, in this file.
            out: name -> the bytes to fill.

        Raises:
            ValueError: the row is damaged, or stored in another way.
        """
        for name, buffer in out.items():
            place = self._places[name][row]
            if place < 0:
                self._find(row)
                place = self._places[name][row]
            riegeli.read_into(self._descriptor, buffer, place)

    def _find(self, row: int) -> None:
        """Finds the arrays of a row, and makes sure that they lie there."""
        try:
            (record,) = self._checking.read([row])
        except RuntimeError as error:
            raise ValueError(f"it is damaged: {error}") from error
        start = riegeli.record_place(self._chunks[row], len(record))
        lies = bytearray(len(record))
        riegeli.read_into(self._descriptor, memoryview(lies), start)
        if lies != record:
            raise ValueError("its bytes lie elsewhere in the file")
        ends = wire.find(record, self._heads)
        for name, size in self._sizes.items():
            if name.encode() not in ends:
                raise ValueError(f"it lacks its {name}")
            self._places[name][row] = start + ends[name.encode()] - size
