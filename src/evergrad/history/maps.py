"""Segments in memory: one file of each, mapped when it is first needed, read as one flat space.

A gather touches a hundred segments in one step of numpy: every byte of memory begins a window as wide as a row (a view
that overlaps itself), and the rows wanted are windows at (address of the segment's map + row * bytes a row).

    windows:  |--row--|                        base address of segment 3 ─┐
               |--row--|          addresses:  [a0, a1, a2, a3, ...]       │
                |--row--|   ...               windows[a3 + row * row_bytes] ─> copied

Only addresses inside maps are read: `History` checks ids against what was committed, and a map is as long as the file
of a full segment. Maps are address space, and the system drops their pages when it needs the memory. How many there
are is bounded (`_MOST_MAPS`, and a quarter of RLIMIT_AS where there is one); the longest unused goes first.
"""

from __future__ import annotations

import itertools
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evergrad.errors import HistoryDamaged
from evergrad.history.segments import NO_SEGMENTS, Segments

_MOST_MAPS = 1 << 14  # Linux grants a process 65,530
_WIDE = 256  # bytes


class SegmentFile:
    """The file of one name in every segment.

    Args:
        folder: the history's.
        size: of the file in each segment; it may be larger, and is never smaller.
        shares: among how many such objects the bound on maps is divided.
    """

    def __init__(self, folder: Path, name: str, size: int, shares: int) -> None:
        self._folder, self._name, self._size, self._shares = folder, name, size, shares
        self._segments = NO_SEGMENTS
        self._maps: dict[int, mmap.mmap] = {}
        self._bases = self._used = np.empty(0, np.int64)  # by position; 0: not mapped
        self._ticks = itertools.count(1)
        self._windows: dict[int, npt.NDArray[Any]] = {}
        self._low = 0

    @property
    def mapped(self) -> int:
        """How many segments it has in memory."""
        return len(self._maps)

    def rows(
        self, segments: Segments, which: npt.NDArray[np.int64], within: npt.NDArray[np.int64], stride: int, width: int
    ) -> npt.NDArray[np.void]:
        """Copies of `width` bytes at `within * stride` of each segment in `which`: void [rows].

        Raises:
            FileNotFoundError: a segment was removed.
            HistoryDamaged: a file is shorter than it must be.
        """
        out = np.empty(len(which), f"V{width}")
        for part in self._parts(segments, which):
            at = self._bases[which[part]] + within[part] * stride - self._low
            if width >= _WIDE:
                # All first bytes are fetched at once, where copying waits for one row after the other: 15% faster.
                self._window(1)[at]
            copied: npt.NDArray[np.void] = self._window(width)[at]
            if isinstance(part, slice):
                return copied
            out[part] = copied
        return out

    def spans(
        self,
        segments: Segments,
        which: npt.NDArray[np.int64],
        begins: npt.NDArray[np.int64],
        ends: npt.NDArray[np.int64],
    ) -> bytearray:
        """Copies of bytes begins to ends of each segment in `which`, joined. Raises as `rows` does."""
        wanted: list[bytes] = [b""] * len(which)
        for part in self._parts(segments, which):
            rows = range(len(which))[part] if isinstance(part, slice) else part.tolist()
            places = zip(which[part].tolist(), begins[part].tolist(), ends[part].tolist(), strict=True)
            for row, (position, begin, end) in zip(rows, places, strict=True):
                wanted[row] = self._maps[segments.number + position][begin:end]
        found = bytearray().join(wanted)
        if len(found) != int((ends - begins).sum()):
            raise HistoryDamaged(str(self._folder), f"{self._name} is shorter than its offsets say")
        return found

    def drop(self) -> None:
        """Unmaps everything."""
        self._maps.clear()
        self._align(NO_SEGMENTS)

    def _parts(self, segments: Segments, which: npt.NDArray[np.int64]) -> Iterator[slice | npt.NDArray[np.intp]]:
        """Rows whose segments are all mapped until the next part is asked for; mostly all of them at once."""
        if segments is not self._segments:
            self._align(segments)
        if not len(which):
            return
        most = self._most_maps()
        touched = np.unique(which) if len(segments) > most else which
        if len(touched) <= most or len(segments) <= most:
            self._need(which, most)
            yield slice(None)
            return
        for first in range(0, len(touched), most):
            here = np.flatnonzero((which >= touched[first]) & (which <= touched[first : first + most][-1]))
            self._need(which[here], most)
            yield here

    def _need(self, which: npt.NDArray[np.int64], most: int) -> None:
        self._used[which] = next(self._ticks)
        missing = which[self._bases[which] == 0]
        if not len(missing):
            return
        for position in np.unique(missing).tolist():
            if len(self._maps) >= most:
                self._unmap_longest_unused()
            self._map(position)
        self._windows.clear()
        self._low = int(self._bases[self._bases > 0].min())

    def _map(self, position: int) -> None:
        path = self._folder / self._segments.name(position) / self._name
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < self._size:
                raise HistoryDamaged(str(self._folder), f"{path} has {size} bytes of {self._size}")
            found = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        self._maps[self._segments.number + position] = found
        self._bases[position] = _address(found)

    def _unmap_longest_unused(self) -> None:
        position = min((number - self._segments.number for number in self._maps), key=self._used.__getitem__)
        self._bases[position] = 0
        del self._maps[self._segments.number + position]

    def _align(self, segments: Segments) -> None:
        """Goes on with other segments; maps of those in both are kept."""
        bases, used = np.zeros(len(segments), np.int64), np.zeros(len(segments), np.int64)
        shift = segments.number - self._segments.number
        for number in list(self._maps):
            position = number - segments.number
            if 0 <= position < len(segments):
                bases[position], used[position] = self._bases[position + shift], self._used[position + shift]
            else:
                del self._maps[number]
        self._segments, self._bases, self._used = segments, bases, used

    def _window(self, width: int) -> npt.NDArray[Any]:
        found = self._windows.get(width)
        if found is None:
            high = max(_address(each) + len(each) for each in self._maps.values())
            found = self._windows[width] = np.asarray(_Windows(self._low, high, width))
        return found

    def _most_maps(self) -> int:
        return max(1, min(_MOST_MAPS, _address_space() // 4 // self._size) // self._shares)


class _Windows:
    """Memory from `low` to `high` as overlapping items, one a byte, for numpy's array interface."""

    def __init__(self, low: int, high: int, width: int) -> None:
        self.__array_interface__ = {
            "version": 3,
            "typestr": f"|V{width}",
            "data": (low, True),
            "shape": (high - low - width + 1,),
            "strides": (1,),
        }


def _address(found: mmap.mmap) -> int:
    return int(np.frombuffer(found, np.uint8).__array_interface__["data"][0])


def _address_space() -> int:
    try:
        import resource
    except ImportError:
        return sys.maxsize
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit
