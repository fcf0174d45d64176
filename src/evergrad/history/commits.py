"""The commit records: 32 bytes a batch, read where they lie.

    u64 examples so far | u64 segments so far | XXH3-64 of the batch | XXH3-64 of these 24 bytes, seeded with its number

A batch is in when its record is whole; what a crash left behind the last whole one is overwritten by the next.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import NamedTuple

import xxhash

from evergrad.errors import HistoryDamaged
from evergrad.history.handles import Handles, write_all

_RECORD = struct.Struct("<QQQQ")


class Commit(NamedTuple):
    """What was in the history once a batch was: examples and segments ever begun; and the batch's own checksum."""

    end: int
    segments: int
    checksum: int


NOTHING = Commit(0, 0, 0)


class Commits:
    """The records of a history, by number of the batch.

    Args:
        folder: the history's; its file `commits` is there.
        writable: whether records will be added.

    Attributes:
        count: how many there are, as far as this process has looked.
    """

    def __init__(self, folder: Path, handles: Handles, *, writable: bool) -> None:
        self._folder, self._path, self._handles, self.count = folder, folder / "commits", handles, 0
        self._flags = os.O_RDWR if writable else os.O_RDONLY
        self._last: Commit | None = None

    @property
    def last(self) -> Commit:
        if self._last is None:
            self._last = self[self.count - 1] if self.count else NOTHING
        return self._last

    def __getitem__(self, number: int) -> Commit:
        found = self.find(number)
        if found is None:
            raise HistoryDamaged(str(self._folder), f"commit record {number} of {self.count} is damaged")
        return found

    def find(self, number: int) -> Commit | None:
        """The record of that batch; None where it is not whole."""
        data = os.pread(self._fd(), _RECORD.size, number * _RECORD.size)
        if len(data) < _RECORD.size:
            return None
        end, segments, checksum, check = _RECORD.unpack(data)
        return Commit(end, segments, checksum) if check == _check(data, number) else None

    def catch_up(self) -> None:
        """Counts what was committed since it last did."""
        count = os.fstat(self._fd()).st_size // _RECORD.size
        while count > self.count and self.find(count - 1) is None:
            count -= 1
        self.count, self._last = count, None

    def append(self, commit: Commit) -> None:
        """Adds a record after the last; what an OSError leaves of it does not count, and the next overwrites it."""
        data = _RECORD.pack(*commit, 0)
        data = data[:-8] + _check(data, self.count).to_bytes(8, "little")
        write_all(self._fd(), memoryview(data), self.count * _RECORD.size)
        self.count, self._last = self.count + 1, commit

    def cut(self, count: int) -> None:
        """Forgets all records after the first `count`, and what is left of others."""
        os.ftruncate(self._fd(), count * _RECORD.size)
        self.count, self._last = count, None

    def sync(self) -> None:
        """Waits until they are on the disk."""
        os.fsync(self._fd())

    def _fd(self) -> int:
        return self._handles.get(self._path, self._flags)


def _check(data: bytes, number: int) -> int:
    return xxhash.xxh3_64_intdigest(data[:-8], seed=number)
