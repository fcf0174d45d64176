"""All examples seen so far, on disk: append-only columns of fixed shape, mapped into memory.

    history.json            the columns: name, dtype, shape of one row; rows a segment
    000000/x.bin  y.bin     segment 0: that many rows of each column, as they lie in memory
    000001/x.bin  ...
    commits                 16 bytes a batch: rows committed so far, and their XXH3-64

A batch is in when its commit record is whole, and then all of it is; what a crash left behind the last whole record is
overwritten by the next append. That holds when the process dies at any instant; against a loss of power nothing is
synced to the disk. Drawing rows touches only those rows' pages, so its cost does not grow with the history.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from evergrad.errors import HistoryDamaged, HistoryMismatch

Columns = Mapping[str, npt.NDArray[Any]]
_FORMAT = 1
_COMMIT = struct.Struct("<QQ")
_SEGMENT_BYTES = 16 << 20


class _Column(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    dtype: str
    shape: list[int]

    @property
    def row_bytes(self) -> int:
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))


class _Layout(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    rows_per_segment: int
    columns: list[_Column]


class History:
    """Opens the history in a folder, or begins one there with the first batch.

    One process appends at a time. Rows are numbered from 0 in order of arrival.

    Args:
        path: the folder.

    Raises:
        HistoryDamaged: there is one, and it cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._layout: _Layout | None = None
        self._rows = 0
        self._maps: dict[tuple[int, str], npt.NDArray[Any]] = {}
        if (self.path / "history.json").exists():
            self._open()

    def __len__(self) -> int:
        return self._rows

    def append(self, columns: Columns) -> range:
        """Appends a batch, whole or not at all; gives its row numbers.

        Args:
            columns: arrays of one length, by column name; each time the same names, dtypes and row shapes.

        Raises:
            HistoryMismatch: it does not fit the history's columns.
            HistoryDamaged: the disk refused; the history is as it was before.
        """
        arrays = {name: np.asarray(array) for name, array in columns.items()}
        if self._layout is None:
            layout = _layout_of(arrays)
            count = _check(layout, arrays)
            self._begin(layout)
        else:
            layout = self._layout
            count = _check(layout, arrays)
        first, last = self._rows, self._rows + count
        try:
            for name, array in arrays.items():
                self._write(layout, name, first, array)
            self._commit(last)
        except OSError as error:
            raise HistoryDamaged(str(self.path), f"the batch could not be written ({error})") from error
        return range(first, last)

    def gather(self, rows: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
        """Copies of the given rows, by column name, in the order of `rows` (int64, each in [0, len))."""
        if len(rows) and not (int(rows.min()) >= 0 and int(rows.max()) < self._rows):
            raise IndexError(f"rows must lie in [0, {self._rows})")
        if self._layout is None:
            return {}
        layout, per_segment = self._layout, self._layout.rows_per_segment
        segments = rows // per_segment
        found: dict[str, npt.NDArray[Any]] = {}
        for column in layout.columns:
            out = np.empty((len(rows), *column.shape), dtype=column.dtype)
            for segment in np.unique(segments).tolist():
                mine = segments == segment
                out[mine] = self._map(layout, segment, column)[rows[mine] % per_segment]
            found[column.name] = out
        return found

    def _begin(self, layout: _Layout) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            temporary = self.path / "history.json.new"
            temporary.write_bytes(msgspec.json.format(msgspec.json.encode(layout)))
            os.replace(temporary, self.path / "history.json")
        except OSError as error:
            raise HistoryDamaged(str(self.path), f"it could not be begun ({error})") from error
        self._layout = layout

    def _open(self) -> None:
        try:
            self._layout = msgspec.json.decode((self.path / "history.json").read_bytes(), type=_Layout)
            if not _readable(self._layout):
                raise HistoryDamaged(str(self.path), "history.json names a format or columns that nobody writes")
            self._rows = self._last_commit()
            for column in self._layout.columns:
                last = (self._rows - 1) // self._layout.rows_per_segment
                for segment in range(last + 1 if self._rows else 0):
                    expected = column.row_bytes * self._layout.rows_per_segment
                    if self._file(segment, column.name).stat().st_size != expected:
                        raise HistoryDamaged(str(self.path), f"{self._file(segment, column.name)} has a wrong size")
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise HistoryDamaged(str(self.path), str(error)) from error

    def _last_commit(self) -> int:
        path = self.path / "commits"
        data = path.read_bytes() if path.exists() else b""
        whole = len(data) // _COMMIT.size * _COMMIT.size
        while whole:
            rows, checksum = _COMMIT.unpack_from(data, whole - _COMMIT.size)
            if checksum == _checksum(rows):
                break
            whole -= _COMMIT.size
        if whole != len(data):
            os.truncate(path, whole)
        return _COMMIT.unpack_from(data, whole - _COMMIT.size)[0] if whole else 0

    def _commit(self, rows: int) -> None:
        with open(self.path / "commits", "ab", buffering=0) as file:
            before = file.tell()
            if file.write(_COMMIT.pack(rows, _checksum(rows))) != _COMMIT.size:
                file.truncate(before)
                raise OSError("the commit record did not fit")
        self._rows = rows

    def _write(self, layout: _Layout, name: str, first: int, array: npt.NDArray[Any]) -> None:
        column = next(c for c in layout.columns if c.name == name)
        done = 0
        while done < len(array):
            segment, offset = divmod(first + done, layout.rows_per_segment)
            count = min(len(array) - done, layout.rows_per_segment - offset)
            self._map(layout, segment, column)[offset : offset + count] = array[done : done + count]
            done += count

    def _map(self, layout: _Layout, segment: int, column: _Column) -> npt.NDArray[Any]:
        found = self._maps.get((segment, column.name))
        if found is None:
            path, rows = self._file(segment, column.name), layout.rows_per_segment
            path.parent.mkdir(exist_ok=True)
            with open(path, "ab") as file:
                _reserve(file.fileno(), rows * column.row_bytes)
            found = np.memmap(path, dtype=column.dtype, mode="r+", shape=(rows, *column.shape))
            self._maps[segment, column.name] = found
        return found

    def _file(self, segment: int, name: str) -> Path:
        return self.path / f"{segment:06d}" / f"{name}.bin"


def _reserve(file: int, size: int) -> None:
    # Where the system can, blocks are reserved now: a full disk is an error here, not a signal in a mapped write.
    if sys.platform == "linux":
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)


def _checksum(rows: int) -> int:
    return xxhash.xxh3_64_intdigest(struct.pack("<Q", rows))


def _readable(layout: _Layout) -> bool:
    if layout.format != _FORMAT or layout.rows_per_segment < 1 or not layout.columns:
        return False
    try:
        return all(
            column.name.isidentifier() and min(column.shape, default=0) >= 0 and _plain(column)
            for column in layout.columns
        )
    except (TypeError, ValueError, SyntaxError):  # numpy knows no such dtype
        return False


def _plain(column: _Column) -> bool:
    return np.dtype(column.dtype).kind not in "OV" and column.row_bytes > 0


def _layout_of(arrays: Columns) -> _Layout:
    columns = [_Column(name, array.dtype.str, list(array.shape[1:])) for name, array in arrays.items()]
    for column in columns:
        if not column.name.isidentifier():
            raise HistoryMismatch(column.name, "a name of letters, digits and underscores", "another")
        if not _plain(column):
            raise HistoryMismatch(column.name, "numbers in rows of at least one byte", column.dtype)
    if not columns:
        raise HistoryMismatch("*", "at least one column", "none")
    widest = max(column.row_bytes for column in columns)
    return _Layout(_FORMAT, max(1, _SEGMENT_BYTES // widest), columns)


def _check(layout: _Layout, arrays: Columns) -> int:
    expected = {column.name: column for column in layout.columns}
    for name in dict.fromkeys((*expected, *arrays)):
        column, array = expected.get(name), arrays.get(name)
        if column is None or array is None:
            raise HistoryMismatch(
                name,
                "no such column" if column is None else "a column",
                "missing" if array is None else "one",
            )
        if array.ndim < 1 or (array.dtype.str, list(array.shape[1:])) != (column.dtype, column.shape):
            raise HistoryMismatch(
                name, f"{column.dtype} rows of {column.shape}", f"{array.dtype.str} {list(array.shape)}"
            )
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) != 1:
        raise HistoryMismatch(next(iter(counts)), "columns of one length", str(counts))
    return next(iter(counts.values()))
