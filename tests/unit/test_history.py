"""The history gives back what was put in, across segments and reopening, and refuses what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evergrad.errors import HistoryDamaged, HistoryMismatch
from evergrad.history import History
from tests.builders import examples, small_history

Columns = dict[str, np.ndarray[Any, Any]]
WIDE = 7 << 20  # bytes of a row: two rows fill a segment


def wide(first: int, count: int) -> Columns:
    rows = np.arange(first, first + count, dtype="u1")
    return {"x": np.repeat(rows[:, None], WIDE, axis=1), "y": rows.astype("i2")}


def rows_of(history: History, rows: list[int]) -> Columns:
    return history.gather(np.array(rows, dtype=np.int64))


def same(mine: Columns, other: Columns) -> bool:
    return mine.keys() == other.keys() and all(
        mine[name].dtype == other[name].dtype and np.array_equal(mine[name], other[name]) for name in mine
    )


def test_what_was_appended_is_gathered_in_the_order_asked_for(tmp_path: Path) -> None:
    history = History(tmp_path / "new" / "history")
    assert len(history) == 0
    assert [history.append(examples(first, count)) for first, count in ((0, 3), (3, 1), (4, 6))] == [
        range(3), range(3, 4), range(4, 10),
    ]  # fmt: skip
    assert len(history) == 10
    for rows in ([0], [9, 0, 4], [5, 5, 5], list(range(10)), []):
        whole = examples(0, 10)
        assert same(rows_of(history, rows), {name: column[rows] for name, column in whole.items()})


def test_gathered_rows_are_copies(tmp_path: Path) -> None:
    history = small_history(tmp_path)
    history.append(examples(0, 2))
    rows_of(history, [0, 1])["y"][:] = 99
    assert rows_of(history, [0, 1])["y"].tolist() == [0, 1]


def test_reopened_history_is_equal_and_goes_on(tmp_path: Path) -> None:
    small_history(tmp_path).append(examples(0, 5))
    again = History(tmp_path)
    assert len(again) == 5
    assert again.append(examples(5, 2)) == range(5, 7)
    assert same(rows_of(History(tmp_path), list(range(7))), examples(0, 7))


@pytest.mark.parametrize("sizes", [(1,) * 10, (3, 3, 4), (2, 8), (10,), (4, 0, 6)])
def test_batches_of_any_size_cross_small_segments(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    history = small_history(tmp_path)
    for size in sizes:
        history.append(examples(len(history), size))
    for found in (history, History(tmp_path)):
        for rows in (list(range(10)), [9, 0, 3, 3, 2, 6]):
            assert same(rows_of(found, rows), {name: column[rows] for name, column in examples(0, 10).items()})


def test_batches_and_draws_cross_segments_of_megabytes(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.append(wide(0, 1))
    history.append(wide(1, 4))  # into segments 0, 1 and 2
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["000000", "000001", "000002"]
    for found in (history, History(tmp_path)):
        drawn = rows_of(found, [4, 1, 2, 2, 0, 3])
        assert drawn["y"].tolist() == drawn["x"][:, 0].tolist() == drawn["x"][:, -1].tolist() == [4, 1, 2, 2, 0, 3]


def test_empty_batches_are_batches(tmp_path: Path) -> None:
    history = small_history(tmp_path)
    assert history.append(examples(0, 0)) == range(0)
    assert len(History(tmp_path)) == 0
    assert history.append(examples(0, 2)) == range(2)
    assert history.append(examples(0, 0)) == range(2, 2)
    assert len(History(tmp_path)) == 2


def test_any_fixed_dtype_survives(tmp_path: Path) -> None:
    dtypes = ["?", "u1", "<i8", "<f2", "<f4", "<f8", ">f4", "<c8", "<U3", "<M8[s]"]
    columns = {f"c{i}": np.arange(6).reshape(3, 2).astype(dtype) for i, dtype in enumerate(dtypes)}
    History(tmp_path).append(columns)
    assert same(rows_of(History(tmp_path), [2, 0]), {name: column[[2, 0]] for name, column in columns.items()})


@pytest.mark.parametrize(
    ("columns", "column"),
    [
        ({"x": np.zeros((2, 2), "f8"), "y": np.zeros(2, "i8")}, "x"),
        ({"x": np.zeros((2, 3), "f4"), "y": np.zeros(2, "i8")}, "x"),
        ({"x": np.zeros((2, 2), "f4"), "y": np.zeros((2, 1), "i8")}, "y"),
        ({"x": np.zeros((2, 2), "f4"), "y": np.int64(0)}, "y"),
        ({"x": np.zeros((2, 2), "f4")}, "y"),
        ({"x": np.zeros((2, 2), "f4"), "y": np.zeros(2, "i8"), "z": np.zeros(2)}, "z"),
        ({"x": np.zeros((2, 2), "f4"), "y": np.zeros(3, "i8")}, "x"),
        ({}, "x"),
    ],
    ids=["dtype", "shape", "rank", "scalar", "missing", "new", "lengths", "nothing"],
)
def test_batch_that_does_not_fit_is_refused_by_column_and_leaves_no_trace(
    tmp_path: Path, columns: Columns, column: str
) -> None:
    history = small_history(tmp_path)
    history.append(examples(0, 3))
    before = (tmp_path / "commits").read_bytes()
    with pytest.raises(HistoryMismatch) as caught:
        history.append(columns)
    assert caught.value.column == column
    assert (tmp_path / "commits").read_bytes() == before
    assert history.append(examples(3, 1)) == range(3, 4)
    assert same(rows_of(History(tmp_path), [0, 1, 2, 3]), examples(0, 4))


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"x y": np.zeros(2)},
        {"../x": np.zeros(2)},
        {"x": np.array([None, None])},
        {"x": np.zeros(2, "f4,i4")},
        {"x": np.zeros((2, 0))},
        {"x": np.float32(0)},
        {"x": np.zeros(2), "y": np.zeros(3)},
    ],
    ids=["no columns", "name", "path", "objects", "records", "empty rows", "scalar", "lengths"],
)
def test_impossible_first_batch_is_refused_and_begins_nothing(tmp_path: Path, columns: Columns) -> None:
    history = History(tmp_path / "history")
    with pytest.raises(HistoryMismatch):
        history.append(columns)
    assert not (tmp_path / "history").exists()
    assert history.append(examples(0, 1)) == range(1)


def test_rows_outside_are_an_index_error(tmp_path: Path) -> None:
    history = small_history(tmp_path)
    with pytest.raises(IndexError, match=r"\[0, 0\)"):
        rows_of(history, [0])
    history.append(examples(0, 3))
    for rows in ([3], [-1], [0, 1 << 40]):
        with pytest.raises(IndexError, match=r"\[0, 3\)"):
            rows_of(history, rows)
    assert History(tmp_path / "other").gather(np.array([], dtype=np.int64)) == {}


def table(**changes: object) -> bytes:
    column = {"name": "y", "dtype": "<i8", "shape": []} | {
        k: v for k, v in changes.items() if k not in ("format", "rows")
    }
    layout = {"format": changes.get("format", 1), "rows_per_segment": changes.get("rows", 4), "columns": [column]}
    return json.dumps(layout).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"{}",
        table(more=1),
        table(name="y\n").replace(b"\\n", b"\xff"),
        table(format=2),
        table(rows=0),
        table(rows=-1),
        table(name="../y"),
        table(dtype="nothing"),
        table(dtype="O"),
        table(dtype="V8"),
        table(dtype="f4,(2"),
        table(shape=[-1, -1]),
        table(shape=[0]),
        json.dumps({"format": 1, "rows_per_segment": 1, "columns": []}).encode(),
    ],
)
def test_unreadable_table_of_columns_is_told(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "history.json").write_bytes(data)
    with pytest.raises(HistoryDamaged) as caught:
        History(tmp_path)
    assert caught.value.path == str(tmp_path)


def test_table_that_the_unreadable_ones_were_made_from_is_read(tmp_path: Path) -> None:
    (tmp_path / "history.json").write_bytes(table())
    history = History(tmp_path)
    assert history.append({"y": np.arange(5)}) == range(5)
    assert (tmp_path / "000001" / "y.bin").stat().st_size == 4 * 8
    assert rows_of(History(tmp_path), [4, 3])["y"].tolist() == [4, 3]
