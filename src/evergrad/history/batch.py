"""What callers append, as arrays that fit the history's columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from evergrad.errors import HistoryMismatch
from evergrad.history.arrow import columns_of, is_arrow
from evergrad.history.layout import Arrays, Column, Layout, column_of
from evergrad.history.ragged import Ragged

if TYPE_CHECKING:
    import pyarrow as pa


def arrays_of(given: Mapping[str, Any] | pa.Table, layout: Layout | None) -> Arrays:
    """The columns given, each as an array or a `Ragged`; of a kind that `layout` may differ from.

    Raises:
        HistoryMismatch: a column is neither.
    """
    columns: Mapping[str, Any] = columns_of(given) if is_arrow(given) else given
    known = {column.name: column for column in layout.columns} if layout else {}
    return {name: _array(name, value, known.get(name)) for name, value in columns.items()}


def _array(name: str, value: Any, column: Column | None) -> npt.NDArray[Any] | Ragged:
    if isinstance(value, Ragged):
        return _checked(name, value)
    if isinstance(value, list | tuple):
        return _of_rows(name, value, column)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # as torch does for a tensor that numpy has no word for
        raise HistoryMismatch(name, "an array", str(error)) from error
    if array.dtype.kind == "O" and array.ndim == 1:
        return _of_rows(name, array.tolist(), column)
    return array


def _of_rows(name: str, rows: list[Any] | tuple[Any, ...], column: Column | None) -> npt.NDArray[Any] | Ragged:
    if column and not rows:
        if column.kind == "fixed":
            return np.empty((0, *column.shape), column.dtype)
        return Ragged(np.empty(0, column.dtype), np.zeros(1, np.int64), column.kind)
    is_ragged = column.kind != "fixed" if column else bool(rows) and _begins_ragged(rows[0])
    if is_ragged or not rows:
        return Ragged.from_rows(rows, name)
    try:
        array = np.asarray(rows)
        if column is None and array.dtype.kind in "US":  # numpy makes text of numbers beside text
            raise HistoryMismatch(name, "rows of numbers, or all of text", f"{array.dtype.str} {list(array.shape)}")
        return array
    except (TypeError, ValueError, RuntimeError) as error:
        if column is None and isinstance(rows[0], list | tuple):
            return Ragged.from_rows(rows, name)
        raise HistoryMismatch(name, str(column or "rows of one shape"), str(error)) from error


def _begins_ragged(row: Any) -> bool:
    return isinstance(row, str | bytes) or getattr(row, "ndim", None) == 1


def _checked(name: str, ragged: Ragged) -> Ragged:
    """The same rows, their data without what is before the first and after the last."""
    offsets, data = np.asarray(ragged.offsets), np.asarray(ragged.data)
    if offsets.dtype != np.int64 or offsets.ndim != 1 or not len(offsets) or data.ndim != 1:
        raise HistoryMismatch(name, "int64 offsets and 1-D data", f"{offsets.dtype} {offsets.shape}, {data.shape}")
    if offsets[0] < 0 or offsets[-1] > len(data) or bool((offsets[1:] < offsets[:-1]).any()):
        raise HistoryMismatch(name, f"offsets that rise from 0 to at most {len(data)}", "others")
    first = int(offsets[0])
    found = Ragged(data[first : int(offsets[-1])], offsets - first, ragged.kind)
    if found.kind == "text":
        _check_text(name, found)
    return found


def _check_text(name: str, text: Ragged) -> None:
    # A row that begins within a character would be found when it is read, long after.
    begins = text.offsets[:-1][text.offsets[:-1] < text.offsets[1:]]
    try:
        if text.data.dtype == np.uint8 and not bool((text.data[begins] & 0xC0 == 0x80).any()):
            text.data.tobytes().decode()
            return
        raise HistoryMismatch(name, "UTF-8 in every row", f"{text.data.dtype.str}, or a row that begins in a character")
    except UnicodeDecodeError as error:
        raise HistoryMismatch(name, "UTF-8 in every row", str(error)) from error


def count_rows(arrays: Arrays, layout: Layout) -> int:
    """How many rows the columns have, all of which are as in `layout`.

    Raises:
        HistoryMismatch: they are not.
    """
    expected = {column.name: column for column in layout.columns}
    for name in _all_names(expected, arrays):
        column, array = expected.get(name), arrays.get(name)
        if column is None or array is None:
            raise HistoryMismatch(
                name, str(column or "no such column"), "missing" if array is None else str(column_of(name, array))
            )
        if (isinstance(array, np.ndarray) and array.ndim < 1) or column_of(name, array) != column:
            raise HistoryMismatch(name, str(column), str(column_of(name, array)))
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) != 1:
        raise HistoryMismatch(next(iter(counts)), "columns of one length", str(counts))
    return next(iter(counts.values()))


def _all_names(*several: Iterable[str]) -> Iterable[str]:
    return dict.fromkeys(name for names in several for name in names)
