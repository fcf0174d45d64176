"""Columns of rows of any length, tensors, and lists: what goes in comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evergrad.errors import HistoryMismatch
from evergrad.history import History, Ragged
from tests.builders import begin_history, rows_of, segments_of


def words(first: int, count: int) -> dict[str, Any]:
    rows = range(first, first + count)
    return {
        "text": [f"é{row}" * (row % 4) for row in rows],
        "raw": [bytes([row % 256]) * (row % 3) for row in rows],
        "ids": [np.arange(row % 5, dtype="u2") + row for row in rows],
        "y": np.arange(first, first + count),
    }


RAGGED = [
    {"name": "text", "kind": "text", "dtype": "|u1"},
    {"name": "raw", "kind": "bytes", "dtype": "|u1"},
    {"name": "ids", "kind": "numbers", "dtype": "<u2"},
    {"name": "y", "kind": "fixed", "dtype": "<i8"},
]


def lists_of(found: dict[str, Any]) -> dict[str, list[Any]]:
    return {
        name: [row.tolist() if isinstance(row, np.ndarray) else row for row in map(column.row, range(len(column)))]
        if isinstance(column, Ragged)
        else column.tolist()
        for name, column in found.items()
    }


def as_lists(given: dict[str, Any], rows: list[int]) -> dict[str, list[Any]]:
    return {
        name: [column[row].tolist() if isinstance(column[row], np.ndarray) else column[row] for row in rows]
        for name, column in given.items()
    }


@pytest.mark.parametrize("sizes", [(1,) * 12, (5, 0, 7), (12,)])
@pytest.mark.parametrize(
    ("rows", "size"), [(4, 1000), (100, 12), (100, 1)], ids=["by rows", "by bytes", "one a segment"]
)
def test_ragged_columns_cross_segments(tmp_path: Path, sizes: tuple[int, ...], rows: int, size: int) -> None:
    begin_history(tmp_path, rows, size, RAGGED)
    history = History(tmp_path)
    for count in sizes:
        history.append(words(history.end, count))
    assert len(segments_of(tmp_path)) > 2
    for found in (history, History(tmp_path, read_only=True)):
        for ids in ([11, 0, 7, 7, 3], list(range(12)), []):
            assert lists_of(rows_of(found, ids)) == as_lists(words(0, 12), ids)
    history.close()
    history = History(tmp_path)
    assert history.append(words(12, 3)) == range(12, 15)
    assert lists_of(rows_of(history, [14, 13, 2])) == as_lists(words(0, 15), [14, 13, 2])


def test_kinds_of_ragged_rows_are_told_apart_and_stay(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.append(words(0, 3))
    assert [(column.name, column.kind) for column in history.columns] == [
        ("text", "text"), ("raw", "bytes"), ("ids", "numbers"), ("y", "fixed"),
    ]  # fmt: skip
    for name, value in (("text", [b"", b""]), ("raw", ["", ""]), ("ids", ["", ""]), ("ids", [[0.5], []])):
        with pytest.raises(HistoryMismatch, match=f"column '{name}': expected ragged"):
            history.append(words(3, 2) | {name: value})
    assert history.append(words(3, 0)) == range(3, 3)
    assert history.append(words(3, 2) | {"ids": Ragged(np.arange(9, dtype="u2"), np.array([2, 3, 7]))}) == range(3, 5)
    assert lists_of(rows_of(history, [3, 4]))["ids"] == [[2], [3, 4, 5, 6]]


def test_lists_of_numbers_are_of_a_fixed_shape_and_object_arrays_are_lists(tmp_path: Path) -> None:
    history = History(tmp_path)
    given = {"y": [3, 4], "x": [[1, 2], [3, 4]], "words": np.array(["a", "bc"], dtype=object), "uneven": [[1], [2, 3]]}
    history.append(given)
    assert [column.kind for column in history.columns] == ["fixed", "fixed", "text", "numbers"]
    assert history.columns[1].shape == (2,)
    history.append(given | {"x": [np.array([5, 6]), np.array([7, 8])]})
    assert rows_of(history, [3])["x"].tolist() == [[7, 8]]


class Tensor:
    """What numpy may ask for its array, and may be told why not."""

    def __init__(self, values: np.ndarray[Any, Any] | None) -> None:
        self._values = values

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray[Any, Any]:
        if self._values is None:
            raise RuntimeError("Can't call numpy() on a tensor that requires grad")
        return self._values


def test_tensors_go_in_by_numpys_protocol(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.append({"x": Tensor(np.arange(3))})
    assert rows_of(history, [2])["x"].tolist() == [2]
    with pytest.raises(HistoryMismatch, match=r"column 'x'.*requires grad"):
        history.append({"x": Tensor(None)})


def test_only_the_columns_asked_for_are_gathered(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.append(words(0, 3))
    assert list(history.gather(np.arange(3), ["y", "text"])) == ["y", "text"]
