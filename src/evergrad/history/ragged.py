"""A column whose rows differ in length: all values in one array, and where each row begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, cast

import numpy as np
import numpy.typing as npt

from evergrad.errors import HistoryMismatch

Kind = Literal["numbers", "text", "bytes"]


@dataclass(frozen=True, eq=False, slots=True)
class Ragged:
    """Rows of any length.

    >>> words = Ragged.from_rows(["to", "", "learn"])
    >>> words.row(2), words.offsets.tolist()
    ('learn', [0, 2, 2, 7])

    Attributes:
        data: the values of all rows, one after the other: [values], of one dtype; UTF-8 as uint8 where it is text.
        offsets: row i is data[offsets[i] : offsets[i + 1]]: int64 [rows + 1], never decreasing.
        kind: what a row is: a 1-D array, a str, or bytes.
    """

    data: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]
    kind: Kind = "numbers"

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, number: int) -> npt.NDArray[Any] | str | bytes:
        """One row: a view of `data`, or a str or bytes."""
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        values = self.data[self.offsets[number] : self.offsets[number + 1]]
        if self.kind == "numbers":
            return values
        return values.tobytes() if self.kind == "bytes" else values.tobytes().decode()

    def __getitem__(self, rows: slice) -> Ragged:
        """Consecutive rows, which share this one's data."""
        first, last, _ = rows.indices(len(self))
        return Ragged(self.data, self.offsets[first : max(first, last) + 1], self.kind)

    @classmethod
    def from_rows(cls, rows: Sequence[Any], column: str = "ragged") -> Self:
        """Of str, of bytes, or of 1-D arrays (or lists) of one dtype; the first row tells which.

        Args:
            column: what messages call it.

        Raises:
            HistoryMismatch: there is no row, or one is of another kind.
        """
        if not len(rows):
            raise HistoryMismatch(column, "at least one row, which tells its kind", "none")
        first = rows[0]
        if isinstance(first, str):
            pieces = [_encoded(row, column) for row in rows]
            return cls(*_joined(pieces), "text")
        if isinstance(first, bytes):
            for row in rows:
                if not isinstance(row, bytes):
                    raise HistoryMismatch(column, "bytes in every row", type(row).__name__)
            return cls(*_joined(cast("list[bytes]", list(rows))), "bytes")
        return cls(*_of_numbers(rows, column), "numbers")


def _encoded(row: Any, column: str) -> bytes:
    if not isinstance(row, str):
        raise HistoryMismatch(column, "str in every row", type(row).__name__)
    try:
        return row.encode()
    except UnicodeEncodeError as error:
        raise HistoryMismatch(column, "text that UTF-8 can say", str(error)) from error


def _joined(pieces: list[bytes]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    return np.frombuffer(b"".join(pieces), np.uint8), offsets_of([len(piece) for piece in pieces])


def _of_numbers(rows: Sequence[Any], column: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    try:
        arrays = [np.asarray(row) for row in rows]
    except (TypeError, ValueError, RuntimeError) as error:
        raise HistoryMismatch(column, "1-D arrays", str(error)) from error
    dtype = next((array.dtype for array in arrays if len(array.shape) == 1 and array.size), arrays[0].dtype)
    for array in arrays:
        if array.ndim != 1 or (array.size and array.dtype != dtype):
            raise HistoryMismatch(column, f"1-D arrays of {dtype.str}", f"{array.dtype.str} {list(array.shape)}")
    filled = [array for array in arrays if array.size]
    return np.concatenate(filled) if filled else np.empty(0, dtype), offsets_of([len(array) for array in arrays])


def offsets_of(lengths: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where rows of these lengths begin, and where the last one ends: int64 [rows + 1]."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
