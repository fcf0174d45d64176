"""Arrow tables to the history's arrays, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from evergrad.errors import HistoryMismatch
from evergrad.history.layout import Arrays, Column
from evergrad.history.ragged import Ragged

if TYPE_CHECKING:
    import pyarrow as pa

_SHAPE = b"evergrad.shape"


def is_arrow(given: Any) -> bool:
    """Whether it is an Arrow table or record batch; pyarrow is only looked for where it is."""
    return type(given).__module__.partition(".")[0] == "pyarrow"


def columns_of(table: pa.Table | Any) -> Arrays:
    """The columns of a table or record batch, copied: numbers and booleans, lists of them, strings, binary.

    Lists of one size become rows of a fixed shape, other lists ragged ones; dictionaries are decoded.

    Raises:
        HistoryMismatch: a column holds nulls, or is of another type.
    """
    import pyarrow as pa

    found: Arrays = {}
    if isinstance(table, pa.RecordBatch):
        table = pa.Table.from_batches([table])
    for field, column in zip(table.schema, table.columns, strict=True):
        if field.name in found:
            raise HistoryMismatch(field.name, "one column of that name", "two")
        chunks = column.chunks or [pa.array([], field.type)]
        shape = (field.metadata or {}).get(_SHAPE)
        parts = [_part(field.name, chunk) for chunk in chunks]
        found[field.name] = _whole(parts, msgspec.json.decode(shape, type=list[int]) if shape else None)
    return found


def table_of(arrays: Mapping[str, npt.NDArray[Any] | Ragged], columns: tuple[Column, ...]) -> pa.Table:
    """A table of the same columns.

    Raises:
        HistoryMismatch: Arrow has no such type.
    """
    import pyarrow as pa

    fields, values = [], []
    for column in columns:
        array = arrays[column.name]
        try:
            made = _from_ragged(array) if isinstance(array, Ragged) else _from_fixed(array)
        except (pa.ArrowException, TypeError) as error:
            raise HistoryMismatch(column.name, "a type that Arrow has", column.dtype) from error
        metadata = {_SHAPE: msgspec.json.encode(column.shape)} if column.shape else None
        fields.append(pa.field(column.name, made.type, nullable=False, metadata=metadata))
        values.append(made)
    return pa.Table.from_arrays(values, schema=pa.schema(fields))


def _part(name: str, chunk: Any) -> npt.NDArray[Any] | Ragged:
    import pyarrow as pa

    kind = chunk.type
    if chunk.null_count:
        raise HistoryMismatch(name, "no nulls", f"{chunk.null_count} of {len(chunk)}")
    if isinstance(kind, pa.FixedShapeTensorType):
        return np.asarray(chunk.to_numpy_ndarray()).reshape(len(chunk), *kind.shape)
    if pa.types.is_dictionary(kind):
        return _part(name, chunk.dictionary_decode())
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _from_lists(name, chunk)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _from_binary(chunk.cast(pa.large_string()), "text")
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return _from_binary(chunk.cast(pa.large_binary()), "bytes")
    array = chunk.to_numpy(zero_copy_only=False)
    if array.dtype.kind == "O":
        raise HistoryMismatch(name, "numbers, lists of numbers, strings or binary", str(kind))
    return np.asarray(array)


def _from_lists(name: str, chunk: Any) -> npt.NDArray[Any] | Ragged:
    import pyarrow as pa

    inner, is_fixed = _part(name, chunk.flatten()), pa.types.is_fixed_size_list(chunk.type)
    if isinstance(inner, Ragged) or not (is_fixed or inner.ndim == 1):
        raise HistoryMismatch(name, "lists of numbers", str(chunk.type))
    if is_fixed:
        return inner.reshape(len(chunk), chunk.type.list_size, *inner.shape[1:])
    offsets = chunk.offsets.to_numpy().astype(np.int64)
    return Ragged(inner, offsets - offsets[0])


def _from_binary(chunk: Any, kind: Any) -> Ragged:
    _, offsets, data = chunk.buffers()
    if offsets is None or not len(chunk):
        return Ragged(np.empty(0, np.uint8), np.zeros(len(chunk) + 1, np.int64), kind)
    begins = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
    values = np.frombuffer(data, np.uint8) if data is not None and data.size else np.empty(0, np.uint8)
    return Ragged(values[begins[0] : begins[-1]], begins - begins[0], kind)


def _whole(parts: list[npt.NDArray[Any] | Ragged], shape: list[int] | None) -> npt.NDArray[Any] | Ragged:
    ragged = [part for part in parts if isinstance(part, Ragged)]
    if not ragged:
        whole = np.concatenate([part for part in parts if not isinstance(part, Ragged)])
        fits = shape is not None and math.prod(shape) == math.prod(whole.shape[1:])
        return whole.reshape(len(whole), *(shape or ())) if fits else whole
    ends = np.cumsum([0, *(len(part.data) for part in ragged)])
    offsets = [part.offsets[1:] + end for part, end in zip(ragged, ends[:-1], strict=True)]
    data = np.concatenate([part.data for part in ragged])
    return Ragged(data, np.concatenate([np.zeros(1, np.int64), *offsets]), ragged[0].kind)


def _from_fixed(array: npt.NDArray[Any]) -> Any:
    import pyarrow as pa

    flat = np.ascontiguousarray(array).reshape(-1)
    values = pa.array(flat.astype(flat.dtype.newbyteorder("="), copy=False))
    if array.ndim == 1:
        return values
    return pa.FixedSizeListArray.from_arrays(values, math.prod(array.shape[1:]))


def _from_ragged(ragged: Ragged) -> Any:
    import pyarrow as pa

    if ragged.kind == "numbers":
        values = pa.array(ragged.data.astype(ragged.data.dtype.newbyteorder("="), copy=False))
        return pa.LargeListArray.from_arrays(pa.array(ragged.offsets), values)
    pieces = [None, pa.py_buffer(ragged.offsets), pa.py_buffer(np.ascontiguousarray(ragged.data))]
    return pa.Array.from_buffers(pa.large_string() if ragged.kind == "text" else pa.large_binary(), len(ragged), pieces)
