"""The history gives back what was put in, across segments and reopening, and refuses what does not fit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evergrad.errors import ConfigError, HistoryDamaged, HistoryMismatch, HistoryUnavailable, NotInHistory
from evergrad.history import History, Ragged, commits
from evergrad.testing import FakeClock
from tests.builders import examples, rows_of, segments_of, small_history

Columns = dict[str, np.ndarray[Any, Any]]
WIDE = 31 << 20  # bytes of a row: two rows fill a segment


def wide(first: int, count: int) -> Columns:
    rows = np.arange(first, first + count, dtype="u1")
    return {"x": np.repeat(rows[:, None], WIDE, axis=1), "y": rows.astype("i2")}


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
    with small_history(tmp_path) as history:
        history.append(examples(0, 5))
    again = History(tmp_path)
    assert len(again) == 5
    assert again.append(examples(5, 2)) == range(5, 7)
    assert same(rows_of(History(tmp_path, read_only=True), list(range(7))), examples(0, 7))


@pytest.mark.parametrize("sizes", [(1,) * 10, (3, 3, 4), (2, 8), (10,), (4, 0, 6)])
def test_batches_of_any_size_cross_small_segments(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    history = small_history(tmp_path)
    for size in sizes:
        history.append(examples(len(history), size))
    for found in (history, History(tmp_path, read_only=True)):
        for rows in (list(range(10)), [9, 0, 3, 3, 2, 6]):
            assert same(rows_of(found, rows), {name: column[rows] for name, column in examples(0, 10).items()})


def test_batches_and_draws_cross_segments_of_megabytes(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.append(wide(0, 1))
    history.append(wide(1, 4))  # into segments 0, 1 and 2
    assert segments_of(tmp_path) == [
        "00000000-0000000000000000",
        "00000001-0000000000000002",
        "00000002-0000000000000004",
    ]
    for found in (history, History(tmp_path, read_only=True)):
        drawn = rows_of(found, [4, 1, 2, 0])
        assert drawn["y"].tolist() == drawn["x"][:, 0].tolist() == drawn["x"][:, -1].tolist() == [4, 1, 2, 0]


def test_empty_batches_are_batches(tmp_path: Path) -> None:
    history = small_history(tmp_path)
    assert history.append(examples(0, 0)) == range(0)
    assert len(History(tmp_path, read_only=True)) == 0
    assert history.append(examples(0, 2)) == range(2)
    assert history.append(examples(0, 0)) == range(2, 2)
    assert len(History(tmp_path, read_only=True)) == 2
    assert [history.batch(number) for number in range(3)] == [range(0), range(2), range(2, 2)]


def test_any_fixed_dtype_survives(tmp_path: Path) -> None:
    dtypes = ["?", "u1", "<i8", "<f2", "<f4", "<f8", ">f4", "<c8", "<U3", "<M8[s]"]
    columns = {f"c{i}": np.arange(6).reshape(3, 2).astype(dtype) for i, dtype in enumerate(dtypes)}
    History(tmp_path).append(columns)
    assert same(
        rows_of(History(tmp_path, read_only=True), [2, 0]), {name: column[[2, 0]] for name, column in columns.items()}
    )


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
    assert same(rows_of(History(tmp_path, read_only=True), [0, 1, 2, 3]), examples(0, 4))


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"": np.zeros(2)},
        {"x": np.array([None, None])},
        {"x": []},
        {"x": [1, "one"]},
        {"x": ["one", 1]},
        {"x": [b"one", 1]},
        {"x": ["\ud800"]},
        {"x": [np.zeros(2), np.zeros((2, 2))]},
        {"x": [np.zeros(2), np.zeros(3, "f4")]},
        {"x": Ragged(np.arange(3), np.array([0, 4]))},
        {"x": Ragged(np.arange(3), np.array([0, 2, 1]))},
        {"x": Ragged(np.arange(3), np.array([0, 2], "i4"))},
        {"x": Ragged(np.zeros((3, 2)), np.array([0, 2]))},
        {"x": Ragged(np.frombuffer(b"\xff", "u1"), np.array([0, 1]), "text")},
        {"x": Ragged(np.frombuffer("é".encode(), "u1"), np.array([0, 1, 2]), "text")},
        {"x": Ragged(np.arange(2), np.array([0, 1]), "text")},
        {"x": np.zeros(2, "f4,i4")},
        {"x": np.zeros((2, 0))},
        {"x": np.float32(0)},
        {"x": np.zeros(2), "y": np.zeros(3)},
    ],
    ids=[
        "no columns",
        "no name",
        "objects",
        "no row tells",
        "mixed",
        "not str",
        "not bytes",
        "surrogate",
        "2-D row",
        "dtypes",
        "offsets outside",
        "offsets fall",
        "int32 offsets",
        "2-D data",
        "not UTF-8",
        "within a character",
        "text of integers",
        "records",
        "empty rows",
        "scalar",
        "lengths",
    ],
)
def test_impossible_first_batch_is_refused_and_begins_nothing(tmp_path: Path, columns: Columns) -> None:
    history = History(tmp_path / "history")
    with pytest.raises(HistoryMismatch):
        history.append(columns)
    assert not (tmp_path / "history").exists()
    assert history.append(examples(0, 1)) == range(1)


def test_ids_outside_are_told(tmp_path: Path) -> None:
    history = small_history(tmp_path)
    with pytest.raises(NotInHistory, match="holds no example"):
        rows_of(history, [0])
    history.append(examples(0, 3))
    for rows in ([3], [-1], [0, 1 << 40]):
        for ask in (history.gather, history.arrived_us):
            with pytest.raises(NotInHistory, match=f"example {rows[-1]} is not .* examples 0 to 2"):
                ask(np.array(rows))
    with pytest.raises(TypeError):
        history.gather(np.array([0.5]))
    with pytest.raises(NotInHistory, match=r"column 'z' .* columns x, y"):
        history.gather(np.array([0]), ["z"])
    assert History(tmp_path / "other").gather(np.array([], dtype=np.int64)) == {}


def table(**changes: object) -> bytes:
    top = {"format": 2, "rows_per_segment": 4, "bytes_per_segment": 100}
    column = {"name": "y", "kind": "fixed", "dtype": "<i8", "shape": []}
    column |= {key: value for key, value in changes.items() if key not in top and key != "columns"}
    layout = {key: changes.get(key, value) for key, value in top.items()}
    return json.dumps(layout | {"columns": changes.get("columns", [column])}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"{}",
        table(more=1),
        table(name="y\n").replace(b"\\n", b"\xff"),
        table(format=1),
        table(format=3),
        table(rows_per_segment=0),
        table(rows_per_segment=-1),
        table(bytes_per_segment=0),
        table(columns=[{"name": name, "kind": "fixed", "dtype": "<i8"} for name in "yy"]),
        table(name=""),
        table(kind="other"),
        table(kind="text"),
        table(kind="numbers", dtype="<U3"),
        table(kind="numbers", shape=[2]),
        table(dtype="nothing"),
        table(dtype="O"),
        table(dtype="V8"),
        table(dtype="f4,(2"),
        table(shape=[-1, -1]),
        table(shape=[0]),
        table(columns=[]),
    ],
)
def test_unreadable_table_of_columns_is_told(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "history.json").write_bytes(data)
    with pytest.raises(HistoryDamaged) as caught:
        History(tmp_path)
    assert caught.value.path == str(tmp_path)


def test_history_of_another_format_is_told_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "history.json").write_text('{"format": 1, "rows_per_segment": 3, "columns": []}')
    for read_only in (True, False):
        with pytest.raises(HistoryDamaged, match="has format 1, this release reads 2"):
            History(tmp_path, read_only=read_only)


def test_table_that_the_unreadable_ones_were_made_from_is_read(tmp_path: Path) -> None:
    (tmp_path / "history.json").write_bytes(table())
    (tmp_path / "commits").touch()
    history = History(tmp_path)
    assert history.append({"y": np.arange(5)}) == range(5)
    assert (tmp_path / segments_of(tmp_path)[1] / "0.bin").stat().st_size == 4 * 8
    assert rows_of(history, [4, 3])["y"].tolist() == [4, 3]


def test_arrival_times_never_decrease(tmp_path: Path) -> None:
    clock = FakeClock(100.0)
    history = small_history(tmp_path, clock=clock)
    history.append(examples(0, 2))
    clock.advance(-50)
    history.append(examples(2, 2))
    history.append(examples(4, 2), 100.000001)
    history.append(examples(6, 0), 500.0)
    history.close()
    history = History(tmp_path, clock=clock)
    history.append(examples(6, 1))
    times = [100_000_000] * 4 + [100_000_001] * 3
    assert history.arrived_us(np.arange(7)).tolist() == times
    assert history.arrived_us(np.array([5, 0])).tolist() == [100_000_001, 100_000_000]
    assert [history.since(us) for us in (0, 100_000_000, 100_000_001, 100_000_002)] == [0, 0, 4, 7]


@pytest.mark.parametrize("arrived_s", [float("nan"), float("inf"), 1e300])
def test_arrival_that_is_no_time_is_refused(tmp_path: Path, arrived_s: float) -> None:
    history = small_history(tmp_path)
    with pytest.raises(HistoryMismatch, match="arrived_s"):
        history.append(examples(0, 1), arrived_s)
    assert len(history) == 0


def test_batches_keep_their_ids(tmp_path: Path) -> None:
    history = small_history(tmp_path)
    ids = [history.append(examples(history.end, count)) for count in (2, 5, 0, 1)]
    for found in (history, History(tmp_path, read_only=True)):
        assert found.batches == 4
        assert [found.batch(number) for number in range(4)] == ids
        for number in (-1, 4):
            with pytest.raises(NotInHistory, match=f"batch {number} .* 4 batches"):
                found.batch(number)


def test_oldest_segments_go_when_all_their_rows_are_beyond_the_limit(tmp_path: Path) -> None:
    history = small_history(tmp_path, keep_rows=24)  # three rows a segment
    for _ in range(10):
        history.append(examples(history.end, 4))
        assert 24 <= history.end - history.first <= 27 or history.first == 0
    assert (history.first, history.end, len(history)) == (15, 40, 25)
    assert len(segments_of(tmp_path)) == 9
    assert same(rows_of(history, list(range(15, 40))), examples(15, 25))
    for ask in (history.gather, history.arrived_us):
        with pytest.raises(NotInHistory, match=r"example 14 is not .* 15 to 39"):
            ask(np.array([39, 14]))
    assert history.batch(4) == range(16, 20)
    with pytest.raises(NotInHistory, match="batch 3"):
        history.batch(3)
    history.close()
    again = History(tmp_path)
    assert (again.first, again.end) == (15, 40)
    again.append(examples(40, 9))
    assert again.first == 15
    assert same(rows_of(again, [15, 48]), {name: column[[0, 33]] for name, column in examples(15, 34).items()})


def test_bytes_are_kept_up_to_a_limit(tmp_path: Path) -> None:
    history = History(tmp_path, keep_bytes=8000)
    for number in range(100):
        history.append({"x": np.full((10, 2), number), "t": ["word"] * 10})  # 36 bytes a row, times and offsets too
    assert 8000 / 36 <= len(history) <= 9000 / 36 + 1
    assert rows_of(history, [history.first])["x"][0, 0] == history.first // 10


def test_age_is_kept_up_to_a_limit_by_arrival(tmp_path: Path) -> None:
    history = History(tmp_path, keep_s=80.0)
    for second in range(300):
        history.append({"y": np.array([second])}, float(second))
    assert 299 - 80 - 12 <= history.first <= 299 - 80
    history.append({"y": np.array([0])}, 1e6)
    assert (history.first, history.end) == (300, 301), "the newest segment stays"


def test_limits_given_later_are_applied_with_the_next_batch(tmp_path: Path) -> None:
    with small_history(tmp_path) as history:
        history.append(examples(0, 29))
    reader = History(tmp_path, read_only=True)
    with History(tmp_path, keep_rows=24) as history:
        assert history.first == 0
        history.append(examples(29, 1))  # into the newest segment
        assert history.first == 6
        assert (reader.refresh(), reader.first) == (30, 6)


@pytest.mark.parametrize("limit", [{"keep_rows": 0}, {"keep_bytes": -1}, {"keep_s": 0.0}, {"keep_s": float("nan")}])
def test_limits_are_above_0(tmp_path: Path, limit: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(limit))):
        History(tmp_path, **limit)


def test_excluded_ranges_are_kept_and_merged(tmp_path: Path) -> None:
    history = small_history(tmp_path)
    history.append(examples(0, 20))
    for first, last in ((4, 6), (10, 12), (5, 8), (12, 12), (12, 13)):
        history.exclude(first, last)
    reader = History(tmp_path, read_only=True)
    for found in (history, reader):
        assert found.excluded_ranges == ((4, 8), (10, 13))
        assert np.flatnonzero(found.excluded(np.arange(20))).tolist() == [4, 5, 6, 7, 10, 11, 12]
    for first, last in ((-1, 3), (5, 4), (19, 21)):
        with pytest.raises(NotInHistory, match=f"range {first} to {last}"):
            history.exclude(first, last)
    history.exclude(0, 20)
    assert reader.excluded_ranges == ((4, 8), (10, 13))
    reader.refresh()
    assert reader.excluded_ranges == ((0, 20),)


def test_reader_sees_what_was_committed_when_it_looks(tmp_path: Path) -> None:
    reader = History(tmp_path, read_only=True)
    assert (len(reader), reader.refresh(), reader.batches) == (0, 0, 0)
    history = small_history(tmp_path, keep_rows=6)
    assert reader.refresh() == 0
    history.append(examples(0, 4))
    assert len(reader) == 0
    assert reader.refresh() == 4
    assert rows_of(reader, [0])["y"].tolist() == [0]
    history.append(examples(4, 8))
    assert (history.first, reader.first, reader.end) == (6, 0, 4)
    assert rows_of(reader, [0, 0])["y"].tolist() == [0, 0], "it had this segment in memory"
    with pytest.raises(NotInHistory, match=r"example 3 is not .* examples 6 to 11"):
        rows_of(reader, [3])
    assert (reader.first, reader.refresh()) == (6, 12)
    assert same(rows_of(reader, list(range(6, 12))), examples(6, 6))


def test_reader_changes_nothing(tmp_path: Path) -> None:
    small_history(tmp_path).append(examples(0, 2))
    reader = History(tmp_path, read_only=True)
    for change in (lambda: reader.append(examples(2, 1)), lambda: reader.exclude(0, 1), reader.sync):
        with pytest.raises(HistoryUnavailable, match="read_only"):
            change()


def test_closed_history_says_so(tmp_path: Path) -> None:
    history = small_history(tmp_path)
    history.append(examples(0, 2))
    history.close()
    history.close()
    asks = (
        lambda: history.append(examples(2, 1)), lambda: history.gather(np.array([0])), lambda: history.batch(0),
        lambda: history.arrived_us(np.array([0])), lambda: history.exclude(0, 1), history.refresh, history.sync,
    )  # fmt: skip
    for ask in asks:
        with pytest.raises(HistoryUnavailable, match="it is closed"):
            ask()


def test_history_that_nobody_holds_lets_go_of_its_lock(tmp_path: Path) -> None:
    small_history(tmp_path).append(examples(0, 2))
    assert len(History(tmp_path)) == 2


def test_sync_waits_for_all_that_was_written_since_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    history = small_history(tmp_path / "history")
    tmp_path /= "history"
    synced.clear()
    history.append(examples(0, 7))
    assert synced == []
    history.sync()
    places = [tmp_path / name for name in segments_of(tmp_path)]
    files = [each / name for each in places for name in ("arrived.bin", "0.bin", "1.bin")]
    own = [tmp_path / name for name in ("history.json", "commits", "synced.new")]
    wanted = {str(each) for each in (tmp_path.parent, tmp_path, *own, *places, *files)}
    assert set(synced) == wanted
    assert synced[-2:] == [str(tmp_path / "synced.new"), str(tmp_path)], "the mark comes last"
    synced.clear()
    history.append(examples(7, 1))
    history.sync()
    assert str(files[0]) not in synced
    assert str(files[-1]) in synced


@pytest.mark.parametrize("where", ["commits.Commits.append", "commits.write_all"])
def test_interrupt_after_the_commit_leaves_the_batch_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    history = small_history(tmp_path)
    history.append(examples(0, 2), 5.0)
    done: Any = commits.Commits.append if where.endswith("append") else commits.write_all

    def interrupted(*arguments: Any) -> None:
        done(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"evergrad.history.{where}", interrupted)
        with pytest.raises(KeyboardInterrupt):
            history.append(examples(2, 7), 9.0)
    assert len(history) == 2
    assert same(rows_of(history, [0, 1]), examples(0, 2))
    assert history.append(examples(9, 2), 7.0) == range(9, 11)
    assert same(rows_of(history, list(range(11))), examples(0, 11))
    assert history.arrived_us(np.arange(11)).tolist() == [5_000_000] * 2 + [9_000_000] * 9
    assert history.batches == 3
