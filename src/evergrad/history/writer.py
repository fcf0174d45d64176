"""Puts batches into segments: rows first, and then the commit record that makes them count."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from evergrad.errors import HistoryDamaged
from evergrad.history.commits import Commit, Commits
from evergrad.history.handles import Handles, sync_path, write_all
from evergrad.history.layout import ARRIVED, NAME, Arrays, Layout
from evergrad.history.limits import Limits
from evergrad.history.ragged import Ragged
from evergrad.history.segments import Segments, find_segments, remove_uncommitted, segment_name


@dataclass
class _Newest:
    """The segment that takes the next row.

    Attributes:
        used: bytes in each of its `.data` files.
        oldest_us: when its first example arrived.
    """

    path: Path
    rows: int
    used: dict[str, int]
    oldest_us: int
    fds: dict[str, int] = field(default_factory=dict)


class Writer:
    """The one writer of a history.

    Args:
        folder: of the history, locked.
        segments: as committed.
    """

    def __init__(
        self, folder: Path, handles: Handles, layout: Layout, limits: Limits, commits: Commits, segments: Segments
    ) -> None:
        self._folder, self._handles, self._layout, self._limits = folder, handles, layout, limits
        self._commits, self.segments = commits, segments
        self._sizes, self._strides = layout.sizes(), layout.strides()
        self._row_bytes = sum(self._strides.values())
        self._is_ragged = any(column.kind != "fixed" for column in layout.columns)
        self._newest: _Newest | None = None
        self._unsynced: set[str] = set()

    def append(self, arrays: Arrays, count: int, arrived_us: int) -> None:
        """Writes a batch and commits it.

        Args:
            arrays: `count` rows each, as in the layout.

        Raises:
            OSError: nothing was committed, and the next call begins where this one did.
            HistoryDamaged: a file of the newest segment is shorter than it must be.
        """
        last, done = self._commits.last, 0
        if self.segments.number + len(self.segments) != last.segments:
            self.segments = find_segments(self._folder, last, self._layout.rows_per_segment)
        segments, end = self.segments, last.end
        digest = xxhash.xxh3_64()
        try:
            if self._newest is None and len(segments):
                self._reopen(segments, end)
            while done < count:
                rows = self._room(arrays, done, count, arrived_us)
                if not rows:
                    self._begin(segments.number + len(segments), end + done, arrived_us)
                    segments = segments.with_one_at(end + done)
                    rows = self._room(arrays, done, count, arrived_us)
                self._put(arrays, done, rows, arrived_us, digest)
                done += rows
            self._commits.append(Commit(end + count, segments.number + len(segments), digest.intdigest()))
        except BaseException:
            self._forget_newest()
            self._commits.catch_up()  # an interrupt may have come after the record was written
            raise
        self.segments = segments

    def removed(self, count: int) -> None:
        """Goes on without the oldest segments."""
        self.segments = self.segments.since(count)

    def sync(self) -> None:
        """Waits until everything that was appended is on the disk."""
        for name in sorted(self._unsynced):
            folder = self._folder / name
            if folder.exists():
                for file in folder.iterdir():
                    sync_path(file)
                sync_path(folder)
        self._commits.sync()
        sync_path(self._folder / NAME)
        sync_path(self._folder)
        sync_path(self._folder.absolute().parent)
        self._unsynced.clear()

    def bytes_of(self, position: int, rows: int) -> int:
        """Bytes of the first `rows` rows of a segment."""
        folder, size = self._folder / self.segments.name(position), rows * self._row_bytes
        for name in self._strides:
            if name.endswith(".offsets"):
                size += int.from_bytes(_read(folder / name, rows * 8, rows * 8 + 8), "little")
        return size

    def _put(self, arrays: Arrays, done: int, rows: int, arrived_us: int, digest: xxhash.xxh3_64) -> None:
        newest = self._newest
        if newest is None:
            raise RuntimeError("no segment was begun")
        self._unsynced.add(newest.path.name)
        used = dict(newest.used)
        times = np.full(rows, arrived_us, np.int64)
        for name, at, data in _written(self._layout, arrays, slice(done, done + rows), times, newest.rows, used):
            flat = memoryview(np.ascontiguousarray(data).reshape(-1).view(np.uint8))  # type: ignore[arg-type]
            digest.update(flat)
            fd = newest.fds[name]
            if at + len(flat) > self._sizes[name] and at + len(flat) > os.fstat(fd).st_size:
                os.ftruncate(fd, at + len(flat))
            write_all(fd, flat, at)
        newest.rows, newest.used = newest.rows + rows, used

    def _room(self, arrays: Arrays, done: int, count: int, arrived_us: int) -> int:
        """How many of the rows from `done` on go into the newest segment; 0 where it is full."""
        newest, limits = self._newest, self._limits
        if newest is None:
            return 0
        if newest.rows and limits.segment_us is not None and arrived_us - newest.oldest_us > limits.segment_us:
            return 0
        most = min(self._layout.rows_per_segment, limits.segment_rows or self._layout.rows_per_segment)
        last = min(count, done + most - newest.rows)
        rows = last - done
        if rows <= 0:
            return 0
        if limits.segment_bytes is None and not self._is_ragged:
            return rows
        total = np.arange(1, rows + 1) * self._row_bytes
        for name, ragged in _ragged(self._layout, arrays):
            size = (ragged.offsets[done + 1 : last + 1] - ragged.offsets[done]) * ragged.data.itemsize
            total += size
            rows = min(rows, _fitting(size, self._layout.bytes_per_segment - newest.used[name]))
        if limits.segment_bytes is not None:
            held = newest.rows * self._row_bytes + sum(newest.used.values())
            rows = min(rows, _fitting(total, limits.segment_bytes - held))
        return rows if newest.rows else max(1, rows)

    def _begin(self, number: int, start: int, arrived_us: int) -> None:
        self._forget_newest()
        remove_uncommitted(self._folder, number)
        path = self._folder / segment_name(number, start)
        path.mkdir()
        used = {name: 0 for name in self._sizes if name.endswith(".data")}
        newest = self._with_files(_Newest(path, 0, used, arrived_us), os.O_RDWR | os.O_CREAT)
        for name, size in self._sizes.items():
            os.ftruncate(newest.fds[name], size)

    def _reopen(self, segments: Segments, end: int) -> None:
        path = self._folder / segments.name(len(segments) - 1)
        rows = end - int(segments.starts[-1])
        newest = self._with_files(_Newest(path, rows, {}, 0), os.O_RDWR)
        for name, size in self._sizes.items():
            found = os.fstat(newest.fds[name]).st_size
            if found < size:
                raise HistoryDamaged(str(self._folder), f"{path / name} has {found} bytes of {size}")
            if name.endswith(".data"):
                newest.used[name] = _number_at(newest.fds[name.replace(".data", ".offsets")], rows)
        newest.oldest_us = _number_at(newest.fds[ARRIVED], 0)

    def _with_files(self, newest: _Newest, flags: int) -> _Newest:
        self._newest = newest  # from now on, so that whatever fails closes what was opened
        for name in self._sizes:
            newest.fds[name] = self._handles.get(newest.path / name, flags)
        return newest

    def _forget_newest(self) -> None:
        if self._newest:
            for name in self._sizes:
                self._handles.close(self._newest.path / name)
        self._newest = None


def _ragged(layout: Layout, arrays: Arrays) -> Iterator[tuple[str, Ragged]]:
    for number, column in enumerate(layout.columns):
        array = arrays[column.name]
        if isinstance(array, Ragged):
            yield f"{number}.data", array


def _written(
    layout: Layout, arrays: Arrays, rows: slice, times: npt.NDArray[np.int64], at: int, used: dict[str, int]
) -> Iterator[tuple[str, int, npt.NDArray[Any]]]:
    """What is written into which file at which byte, in the order of the checksum; `used` is brought up to date.

    Args:
        at: rows that the segment holds already.
    """
    yield ARRIVED, at * 8, times
    for number, column in enumerate(layout.columns):
        array = arrays[column.name]
        if isinstance(array, Ragged):
            name = f"{number}.data"
            begins, size = array.offsets[rows.start : rows.stop + 1], array.data.itemsize
            yield f"{number}.offsets", (at + 1) * 8, (begins[1:] - begins[0]) * size + used[name]
            yield name, used[name], array.data[begins[0] : begins[-1]]
            used[name] += int(begins[-1] - begins[0]) * size
        else:
            yield f"{number}.bin", at * column.row_bytes, array[rows]


def checksum_of(folder: Path, layout: Layout, segments: Segments, first: int, last: int) -> int:
    """The checksum of the batch whose examples are first to last, from what its files hold now."""
    digest = xxhash.xxh3_64()
    edges = [*segments.starts.tolist(), last]
    for position in range(max(0, int(np.searchsorted(segments.starts, first, side="right")) - 1), len(segments)):
        start = edges[position]
        begin, end = max(first, start) - start, min(last, edges[position + 1]) - start
        if begin >= end:
            break
        for piece in _pieces(folder / segments.name(position), layout, begin, end):
            digest.update(piece)
    return digest.intdigest()


def _pieces(path: Path, layout: Layout, first: int, last: int) -> Iterator[bytes]:
    """What `_written` gave for those rows of a segment, as the disk has it."""
    yield _read(path / ARRIVED, first * 8, last * 8)
    for number, column in enumerate(layout.columns):
        if column.kind == "fixed":
            yield _read(path / f"{number}.bin", first * column.row_bytes, last * column.row_bytes)
        else:
            offsets = _read(path / f"{number}.offsets", first * 8, (last + 1) * 8)
            yield offsets[8:]
            begin, end = np.frombuffer(offsets, np.int64)[[0, -1]].tolist()
            yield _read(path / f"{number}.data", begin, end)


def _read(path: Path, begin: int, end: int) -> bytes:
    with open(path, "rb", buffering=0) as file:
        file.seek(begin)
        return file.read(max(0, min(end, os.fstat(file.fileno()).st_size) - begin))


def _number_at(fd: int, row: int) -> int:
    return int.from_bytes(os.pread(fd, 8, row * 8), "little", signed=True)


def _fitting(ends: npt.NDArray[np.int64], room: int) -> int:
    return int(np.searchsorted(ends, room, side="right"))
