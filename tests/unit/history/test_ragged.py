"""Rows of any length, made from lists and taken apart again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evergrad.errors import HistoryMismatch
from evergrad.history import Ragged


@pytest.mark.parametrize(
    ("rows", "kind", "offsets"),
    [
        (["é", "", "abc"], "text", [0, 2, 2, 5]),
        ([b"", b"\xff\x00"], "bytes", [0, 0, 2]),
        ([""], "text", [0, 0]),
    ],
)
def test_text_and_bytes_come_back(rows: list[Any], kind: str, offsets: list[int]) -> None:
    ragged = Ragged.from_rows(rows)
    assert (ragged.kind, ragged.data.dtype, ragged.offsets.tolist()) == (kind, np.uint8, offsets)
    assert [ragged.row(number) for number in range(len(ragged))] == rows


def test_numbers_come_back_in_the_dtype_of_the_rows_that_have_any() -> None:
    ragged = Ragged.from_rows([[], np.array([1, 2], "i2"), np.array([], "f8"), np.array([3], "i2")])
    assert (ragged.kind, ragged.data.dtype, ragged.offsets.tolist()) == ("numbers", np.dtype("i2"), [0, 0, 2, 2, 3])
    row = ragged.row(1)
    assert isinstance(row, np.ndarray)
    assert row.tolist() == [1, 2]
    assert Ragged.from_rows([np.array([], "f4")]).data.dtype == np.dtype("f4")


def test_slices_are_rows() -> None:
    ragged = Ragged.from_rows(["a", "bc", "", "def"])
    assert [ragged[1:3].row(number) for number in range(2)] == ["bc", ""]
    assert len(ragged[2:1]) == len(ragged[4:]) == 0
    assert ragged[-1:].row(0) == "def"


def test_rows_outside_are_an_index_error() -> None:
    for number in (-1, 1):
        with pytest.raises(IndexError, match=f"row {number} of 1"):
            Ragged.from_rows(["a"]).row(number)


@pytest.mark.parametrize(
    "rows", [[], ["a", b"b"], [b"a", "b"], ["a", 1], [[1], 2], [[1], ["a"]], [[1], [[2]]], ["\ud800"]]
)
def test_rows_of_several_kinds_are_refused_by_the_columns_name(rows: list[Any]) -> None:
    with pytest.raises(HistoryMismatch) as caught:
        Ragged.from_rows(rows, "words")
    assert caught.value.column == "words"
