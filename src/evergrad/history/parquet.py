"""A history to a Parquet file, and rows of any Parquet file into a history; neither is ever in memory whole."""

from __future__ import annotations

import importlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from evergrad.errors import HistoryMismatch, HistoryUnavailable, MissingDependency
from evergrad.history.arrow import columns_of, table_of
from evergrad.history.history import History
from evergrad.history.layout import Arrays

if TYPE_CHECKING:
    import pyarrow as pa

ARRIVED = "evergrad.arrived"
_EXCLUDED = b"evergrad.excluded"
_MOST_ROWS, _GROUP_BYTES = 1 << 16, 32 << 20


def to_parquet(history: History, path: str | Path) -> int:
    """Writes all examples held, oldest first, to one file, which is there whole or not at all; gives how many.

    Columns keep their names and kinds (shapes are in the fields' metadata; numpy's fixed-width strings become text),
    and `evergrad.arrived` is added: when each example arrived. Excluded examples are written, too, and which ones they
    are is in the file's metadata. A row group holds 65,536 examples or about 32 MiB.

    Raises:
        HistoryMismatch: Parquet has no such type as a column's, or the history has no columns yet.
        HistoryUnavailable: the file could not be written; there is none, or the one that was there.
        MissingDependency: pyarrow is absent.
    """
    pq, path = _pyarrow_parquet(), Path(path)
    if not history.columns:
        raise HistoryMismatch("*", "at least one column", "none")
    first, end = history.first, history.end
    beside = path.with_name(f".{path.name}-{os.getpid()}")
    ranges = [(max(a, first) - first, min(b, end) - first) for a, b in history.excluded_ranges if b > first]
    metadata = {_EXCLUDED: msgspec.json.encode(ranges)}
    try:
        head = _table(history, first, first, metadata)
        with pq.ParquetWriter(beside, head.schema) as writer:
            while first < end:
                last = min(end, first + _group_rows(history, first))
                writer.write_table(_table(history, first, last, metadata))
                first = last
        os.replace(beside, path)
    except OSError as error:
        raise HistoryUnavailable(str(path), str(error)) from error
    finally:
        beside.unlink(missing_ok=True)
    return end - history.first


def from_parquet(path: str | Path, history: History) -> range:
    """Appends all rows of a file, in its order; gives their ids.

    Rows that arrived together (by `evergrad.arrived`) become one batch; without that column, batches are as the file is
    read, and arrive now. A failure in the midst leaves the batches before it in the history: its length tells.

    Raises:
        HistoryMismatch: a column's type, shape or name differs from the history's, or it holds nulls.
        HistoryUnavailable: the file cannot be read, or the history not be written.
        MissingDependency: pyarrow is absent.
    """
    pq, begin = _pyarrow_parquet(), history.end
    import pyarrow as pa

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            for batch in file.iter_batches(batch_size=_batch_rows(file)):
                _append(history, pa.Table.from_batches([batch]))
            ranges = (schema.metadata or {}).get(_EXCLUDED, b"[]")
    except (OSError, pa.ArrowException) as error:
        raise HistoryUnavailable(str(path), str(error)) from error
    for first, last in msgspec.json.decode(ranges, type=list[tuple[int, int]]):
        history.exclude(begin + first, begin + last)
    return range(begin, history.end)


def _table(history: History, first: int, last: int, metadata: dict[bytes, bytes]) -> pa.Table:
    import pyarrow as pa

    ids = np.arange(first, last, dtype=np.int64)
    table = table_of(history.gather(ids), history.columns)
    arrived = pa.array(history.arrived_us(ids), pa.timestamp("us", "UTC"))
    table = table.append_column(pa.field(ARRIVED, arrived.type, nullable=False), arrived)
    return table.replace_schema_metadata(metadata)


def _group_rows(history: History, first: int) -> int:
    """How many examples from `first` on make about 32 MiB: ragged ones are told by the first hundred."""
    sample: dict[str, Any] = history.gather(np.arange(first, min(history.end, first + 100), dtype=np.int64))
    rows = min(history.end - first, 100)
    size = sum(array.nbytes if isinstance(array, np.ndarray) else array.data.nbytes + 8 for array in sample.values())
    return max(1, min(_MOST_ROWS, _GROUP_BYTES * rows // max(1, size)))


def _batch_rows(file: Any) -> int:
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    rows, size = sum(group.num_rows for group in groups), sum(group.total_byte_size for group in groups)
    return int(max(1, min(_MOST_ROWS, _GROUP_BYTES * rows // max(1, size))))


def _append(history: History, table: pa.Table) -> None:
    if ARRIVED not in table.column_names:
        history.append(table)
        return
    arrived = table.column(ARRIVED).cast("int64").to_numpy()
    arrays = columns_of(table.drop_columns([ARRIVED]))
    for first, last in _runs(arrived):
        history.append(_slice(arrays, first, last), arrived_s=float(arrived[first]) / 1e6)


def _runs(values: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    yield from ((first, last) for first, last in itertools.pairwise(edges) if first < last)


def _slice(arrays: Arrays, first: int, last: int) -> Arrays:
    return {name: array[first:last] for name, array in arrays.items()}


def _pyarrow_parquet() -> ModuleType:
    try:
        return importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise MissingDependency("pyarrow", "parquet") from error
