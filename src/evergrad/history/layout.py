"""Which columns a history has, and which files hold them: history.json."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from evergrad.errors import HistoryDamaged, HistoryMismatch
from evergrad.history.ragged import Ragged

Arrays = dict[str, npt.NDArray[Any] | Ragged]
ARRIVED = "arrived.bin"
NAME = "history.json"
_FORMAT = 2
_SEGMENT_BYTES = 64 << 20


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One column.

    Attributes:
        kind: fixed: each row an array of `shape`; the others are ragged (see `Ragged`) and have no shape.
        dtype: as numpy writes it, byte order included.
    """

    name: str
    kind: Literal["fixed", "numbers", "text", "bytes"]
    dtype: str
    shape: tuple[int, ...] = ()

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of a fixed column, and of a value of a ragged one."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))

    def __str__(self) -> str:
        return (
            f"{self.dtype} rows of {list(self.shape)}" if self.kind == "fixed" else f"ragged {self.kind} {self.dtype}"
        )


class _Head(msgspec.Struct):
    format: int


class Layout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The columns, and what a segment holds at most: rows, and bytes of each ragged column."""

    format: int
    rows_per_segment: int
    bytes_per_segment: int
    columns: tuple[Column, ...]

    def strides(self) -> dict[str, int]:
        """Bytes a row in each file that has as many in every row: column i is in i.bin, or i.offsets and i.data."""
        found = {ARRIVED: 8}
        for number, column in enumerate(self.columns):
            fixed = column.kind == "fixed"
            found[f"{number}.bin" if fixed else f"{number}.offsets"] = column.row_bytes if fixed else 8
        return found

    def sizes(self) -> dict[str, int]:
        """The size of each file of a segment; that of a `.data` may be larger."""
        # Offsets have one entry more than there are rows, the first of which is 0.
        found = {
            name: stride * (self.rows_per_segment + name.endswith(".offsets"))
            for name, stride in self.strides().items()
        }
        for number, column in enumerate(self.columns):
            if column.kind != "fixed":
                found[f"{number}.data"] = self.bytes_per_segment
        return found


def layout_of(arrays: Mapping[str, npt.NDArray[Any] | Ragged]) -> Layout:
    """The layout of a history that begins with these columns.

    Raises:
        HistoryMismatch: no history can hold them.
    """
    columns = tuple(column_of(name, array) for name, array in arrays.items())
    for column in columns:
        if not column.name:
            raise HistoryMismatch(column.name, "a name", "none")
        if not _plain(column):
            raise HistoryMismatch(column.name, "numbers in rows of at least one byte", str(column))
    if not columns:
        raise HistoryMismatch("*", "at least one column", "none")
    widest = max(8, *(column.row_bytes for column in columns))
    return Layout(_FORMAT, max(1, _SEGMENT_BYTES // widest), _SEGMENT_BYTES, columns)


def column_of(name: str, array: npt.NDArray[Any] | Ragged) -> Column:
    """The column that holds such an array."""
    if isinstance(array, Ragged):
        return Column(name, array.kind, array.data.dtype.str)
    return Column(name, "fixed", array.dtype.str, tuple(array.shape[1:]))


def write_layout(folder: Path, layout: Layout) -> None:
    """Writes history.json at once: it is there whole, or not at all."""
    temporary = folder / f"{NAME}.new"
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(layout)))
    os.replace(temporary, folder / NAME)


def read_layout(folder: Path) -> Layout:
    """The layout in history.json.

    Raises:
        HistoryDamaged: it cannot be read, or is of another format.
    """
    try:
        data = (folder / NAME).read_bytes()
        found = msgspec.json.decode(data, type=_Head).format
        if found != _FORMAT:
            raise HistoryDamaged(str(folder), f"{NAME} has format {found}, this release reads {_FORMAT}")
        layout = msgspec.json.decode(data, type=Layout)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HistoryDamaged(str(folder), f"{NAME}: {error}") from error
    if not _readable(layout):
        raise HistoryDamaged(str(folder), f"{NAME} names columns that no history has")
    return layout


def _readable(layout: Layout) -> bool:
    if min(layout.rows_per_segment, layout.bytes_per_segment) < 1 or not layout.columns:
        return False
    if len({column.name for column in layout.columns}) < len(layout.columns):
        return False
    try:
        return all(column.name and min(column.shape, default=0) >= 0 and _plain(column) for column in layout.columns)
    except (TypeError, ValueError, SyntaxError):  # numpy knows no such dtype
        return False


def _plain(column: Column) -> bool:
    kind = np.dtype(column.dtype).kind
    if column.kind == "fixed":
        return kind not in "OV" and column.row_bytes > 0
    if column.shape:
        return False
    return kind not in "OVUS" if column.kind == "numbers" else column.dtype == "|u1"
