"""Examples that must never be sampled again: ranges of ids, in a file of 24 bytes each, synced one by one."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from evergrad.errors import HistoryDamaged
from evergrad.history.handles import sync_path, write_all

_RECORD = struct.Struct("<QQQ")


class Exclusions:
    """The ranges in a history's file `excluded`, as this process last saw it.

    Attributes:
        ranges: (first, last) of each, last not included; ascending, apart from each other.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._size = folder / "excluded", 0
        self.ranges: tuple[tuple[int, int], ...] = ()
        self._edges = np.empty(0, np.int64)

    def refresh(self) -> None:
        """Sees what was added since.

        Raises:
            HistoryDamaged: a range in the midst of others cannot be read.
        """
        try:
            if os.stat(self._path).st_size == self._size:
                return
            data = self._path.read_bytes()
        except FileNotFoundError:
            return
        whole = _whole(data)
        if len(data) - len(whole) >= 2 * _RECORD.size:
            raise HistoryDamaged(str(self._path.parent), f"{self._path} is damaged at byte {len(whole)}")
        self._size = len(whole)
        self.ranges = _merged([_RECORD.unpack_from(whole, at)[:2] for at in range(0, len(whole), _RECORD.size)])
        self._edges = np.array(self.ranges, np.int64).ravel()

    def add(self, first: int, last: int) -> None:
        """Adds a range, and waits until it is on the disk; an OSError leaves all as it was."""
        self.refresh()
        body = struct.pack("<QQ", first, last)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            write_all(fd, memoryview(body + _check(body, self._size)), self._size)
            os.fsync(fd)
            sync_path(self._path.parent)
        except OSError:
            os.ftruncate(fd, self._size)
            raise
        finally:
            os.close(fd)
        self.refresh()

    def mask(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of the ids are in a range."""
        found: npt.NDArray[np.bool_] = np.searchsorted(self._edges, ids, side="right") % 2 == 1
        return found


def _whole(data: bytes) -> bytes:
    """The records before the first that is torn."""
    at = 0
    while data[at + 16 : at + 24] == _check(data[at : at + 16], at) and at + 24 <= len(data):
        at += _RECORD.size
    return data[:at]


def _check(body: bytes, at: int) -> bytes:
    return xxhash.xxh3_64_intdigest(body, seed=at).to_bytes(8, "little")


def _merged(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1]:
            found[-1] = found[-1][0], max(last, found[-1][1])
        elif first < last:
            found.append((first, last))
    return tuple(found)
