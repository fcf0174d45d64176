"""Arrow tables go in; Parquet files go out and come in, in parts, and are whole or not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergrad.errors import HistoryMismatch, HistoryUnavailable, MissingDependency
from evergrad.history import History, Ragged, parquet
from evergrad.history.parquet import ARRIVED, from_parquet, to_parquet
from tests.builders import begin_history

DTYPES = ["?", "i1", "<i8", "<u4", "<f2", "<f4", "<f8", "<M8[us]"]


def batch(first: int, count: int) -> dict[str, Any]:
    ids = np.arange(first, first + count)
    columns: dict[str, Any] = {dtype: ids.astype(dtype) for dtype in DTYPES}
    columns["image"] = np.repeat(ids, 6).reshape(count, 2, 3).astype("f4")
    columns["text"] = [f"é{each}" * (each % 3) for each in ids]
    columns["raw"] = [bytes([each % 256]) * (each % 4) for each in ids]
    columns["tokens"] = [np.arange(each % 5, dtype="u2") for each in ids]
    return columns


def filled(path: Path, *counts: int) -> History:
    history = History(path)
    for number, count in enumerate(counts):
        history.append(batch(history.end, count), 1_700_000_000.123456 + number)
    return history


def assert_equal(mine: History, other: History, ids: np.ndarray[Any, Any], others: np.ndarray[Any, Any]) -> None:
    assert mine.columns == other.columns
    found, expected = mine.gather(ids), other.gather(others)
    for name, column in expected.items():
        if isinstance(column, Ragged):
            assert found[name].data.tobytes() == column.data.tobytes()
            assert found[name].offsets.tolist() == column.offsets.tolist()
        else:
            assert np.array_equal(found[name], column)
    assert np.array_equal(mine.arrived_us(ids), other.arrived_us(others))


def test_a_history_comes_back_from_its_file(tmp_path: Path) -> None:
    history = filled(tmp_path / "history", 4, 0, 1, 7)
    history.exclude(3, 6)
    assert to_parquet(history, tmp_path / "file.parquet") == 12
    again = History(tmp_path / "again")
    assert from_parquet(tmp_path / "file.parquet", again) == range(12)
    assert_equal(again, history, np.arange(12), np.arange(12))
    assert again.excluded_ranges == ((3, 6),)
    assert [again.batch(number) for number in range(again.batches)] == [range(4), range(4, 5), range(5, 12)]
    assert from_parquet(tmp_path / "file.parquet", again) == range(12, 24)
    assert again.excluded_ranges == ((3, 6), (15, 18))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["again", "file.parquet", "history"]


def test_row_groups_bound_the_memory_on_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_GROUP_BYTES", 2000)
    history = filled(tmp_path / "history", 200)
    to_parquet(history, tmp_path / "file.parquet")
    with pq.ParquetFile(tmp_path / "file.parquet") as file:
        assert file.metadata.num_row_groups > 4
    again = History(tmp_path / "again")
    from_parquet(tmp_path / "file.parquet", again)
    assert again.batches > 4
    assert_equal(again, history, np.arange(200), np.arange(200))


def test_what_retention_removed_is_not_written_and_ranges_are_of_the_rows_in_the_file(tmp_path: Path) -> None:
    columns = [{"name": "y", "kind": "fixed", "dtype": "<i8"}]
    begin_history(tmp_path / "history", 3, 100, columns)
    history = History(tmp_path / "history", keep_rows=8)
    history.append({"y": np.arange(10)})
    history.exclude(0, 4)
    history.exclude(9, 10)
    assert (history.first, to_parquet(history, tmp_path / "file.parquet")) == (2, 8)
    again = History(tmp_path / "again")
    from_parquet(tmp_path / "file.parquet", again)
    assert again.gather(np.arange(8))["y"].tolist() == list(range(2, 10))
    assert again.excluded_ranges == ((0, 2), (7, 8))


def test_other_tools_read_times_and_text(tmp_path: Path) -> None:
    to_parquet(filled(tmp_path / "history", 2), tmp_path / "file.parquet")
    table = pq.read_table(tmp_path / "file.parquet")
    assert table.column("text").to_pylist() == ["", "é1"]
    assert str(table.schema.field(ARRIVED).type) == "timestamp[us, tz=UTC]"
    assert table.column(ARRIVED).cast("int64").to_pylist() == [1_700_000_000_123_456] * 2


def arrow_table() -> pa.Table:
    return pa.table(
        {
            "n": pa.array([1, 2, 3], pa.int32()),
            "on": [True, False, True],
            "words": ["a", "", "bcd"],
            "raw": pa.array([b"x", b"yz", b""], pa.large_binary()),
            "list": pa.array([[1], [2, 3], []], pa.list_(pa.int16())),
            "pair": pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int8(), 2)),
            "matrix": pa.array([[[1, 2]], [[3, 4]], [[5, 6]]], pa.list_(pa.list_(pa.int8(), 2), 1)),
            "kind": pa.array(["u", "v", "u"]).dictionary_encode(),
            "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(12, dtype="f4").reshape(3, 2, 2)),
        }
    )


def test_arrow_tables_record_batches_and_slices_go_in(tmp_path: Path) -> None:
    history, table = History(tmp_path), arrow_table()
    history.append(table)
    history.append(table.slice(1, 2))
    history.append(table.to_batches()[0])
    history.append(pa.concat_tables([table, table.slice(2)]))
    history.append(table.slice(0, 0))
    rows = [0, 1, 2, 1, 2, 0, 1, 2, 0, 1, 2, 2]
    found = history.gather(np.arange(12))
    assert history.end == 12
    assert found["n"].tolist() == [row + 1 for row in rows]
    assert found["on"].tolist() == [row != 1 for row in rows]
    assert [found["words"].row(each) for each in range(12)] == [["a", "", "bcd"][row] for row in rows]
    assert [found["raw"].row(each) for each in range(12)] == [[b"x", b"yz", b""][row] for row in rows]
    assert [found["list"].row(each).tolist() for each in range(12)] == [[[1], [2, 3], []][row] for row in rows]
    assert found["pair"].tolist() == [[2 * row + 1, 2 * row + 2] for row in rows]
    assert found["matrix"].tolist() == [[[2 * row + 1, 2 * row + 2]] for row in rows]
    assert [found["kind"].row(each) for each in range(12)] == ["uvu"[row] for row in rows]
    assert found["tensor"][:, 1, 0].tolist() == [4 * row + 2 for row in rows]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, None]),
        pa.array([[1], [None]]),
        pa.array([None, "a"]),
        pa.array([["a"], ["b"]]),
        pa.array([["a"], ["b"]], pa.list_(pa.string(), 1)),
        pa.array([[[1]], [[2]]]),
        pa.array([{"a": 1}, {"a": 2}]),
        pa.array([1, 2], pa.decimal128(5)),
    ],
    ids=[
        "null",
        "null in a list",
        "null text",
        "lists of text",
        "pairs of text",
        "lists of lists",
        "struct",
        "decimal",
    ],
)
def test_arrow_columns_that_no_history_holds_are_refused_by_name(tmp_path: Path, column: pa.Array) -> None:
    with pytest.raises(HistoryMismatch, match="column 'x'"):
        History(tmp_path / "history").append(pa.table({"x": column}))
    assert not (tmp_path / "history").exists()


def test_two_arrow_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["x", "x"])
    with pytest.raises(HistoryMismatch, match=r"'x'.*two"):
        History(tmp_path).append(table)


def test_any_parquet_file_goes_in_and_arrives_now(tmp_path: Path) -> None:
    pq.write_table(arrow_table().drop_columns(["tensor", "matrix"]), tmp_path / "file.parquet")
    history = History(tmp_path / "history", clock=lambda: 7.0)
    assert from_parquet(tmp_path / "file.parquet", history) == range(3)
    assert history.arrived_us(np.arange(3)).tolist() == [7_000_000] * 3
    pq.write_table(pa.table({"other": [1]}), tmp_path / "other.parquet")
    with pytest.raises(HistoryMismatch, match="nothing was appended"):
        from_parquet(tmp_path / "other.parquet", history)
    assert len(history) == 3


def test_files_that_cannot_be_read_or_written_are_told(tmp_path: Path) -> None:
    history = filled(tmp_path / "history", 2)
    with pytest.raises(HistoryUnavailable, match="nowhere"):
        to_parquet(history, tmp_path / "nowhere" / "file.parquet")
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(HistoryUnavailable, match="folder"):
        to_parquet(history, tmp_path / "folder.parquet")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["folder.parquet", "history"]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 or not")
    for name in ("absent.parquet", "bad.parquet"):
        with pytest.raises(HistoryUnavailable, match=name):
            from_parquet(tmp_path / name, history)
    with pytest.raises(HistoryMismatch, match="at least one column"):
        to_parquet(History(tmp_path / "new"), tmp_path / "file.parquet")
    complex_history = History(tmp_path / "complex")
    complex_history.append({"z": np.zeros(2, "c8")})
    with pytest.raises(HistoryMismatch, match=r"'z'.*a type that Arrow has"):
        to_parquet(complex_history, tmp_path / "file.parquet")
    assert len(history) == 2


def test_a_failed_export_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    history = filled(tmp_path / "history", 2)
    to_parquet(history, tmp_path / "file.parquet")
    before = (tmp_path / "file.parquet").read_bytes()
    history.close()
    with pytest.raises(HistoryUnavailable, match="closed"):
        to_parquet(history, tmp_path / "file.parquet")
    assert (tmp_path / "file.parquet").read_bytes() == before


BLOCKED = """
import sys
sys.modules["pyarrow"] = None
from evergrad import History
from evergrad.errors import MissingDependency
from evergrad.history.parquet import from_parquet, to_parquet
history = History(sys.argv[1])
history.append({"x": [1, 2]})
for change in (lambda: to_parquet(history, "x"), lambda: from_parquet("x", history)):
    try:
        change()
    except MissingDependency as error:
        print(error.package, error.extra)
"""


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "pyarrow parquet\n" * 2
    assert MissingDependency("pyarrow", "parquet").extra == "parquet"
