"""What could be drawn at an earlier time, and what is spared for whoever goes back there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evergrad.errors import NotInHistory
from evergrad.history import History

LIMITS: list[dict[str, Any]] = [
    {},
    {"keep_rows": 40},
    {"keep_bytes": 16 * 40},
    {"keep_s": 30.0},
    {"keep_rows": 80, "keep_s": 20.0},
]


def append(history: History, number: int) -> None:
    history.append({"x": np.arange(number % 5 + 1, dtype=np.int64)}, 1000.0 + number * (1 + number % 3))


@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_it_is_what_was_held_at_that_time(limits: dict[str, Any], tmp_path: Path) -> None:
    with History(tmp_path / "at once", **limits) as at_once, History(tmp_path / "spared", **limits) as spared:
        spared.keep_from = 0
        then = []
        for number in range(80):
            append(at_once, number)
            append(spared, number)
            then.append((at_once.end, at_once.first))
        assert spared.first == 0
        assert [(end, spared.first_at(end)) for end, _ in then] == then
        assert at_once.first_at(at_once.end) == at_once.first
        assert bool(at_once.first) == bool(limits)


def test_what_is_spared_goes_with_the_next_batch_after(tmp_path: Path) -> None:
    with History(tmp_path, keep_rows=40) as history:
        history.keep_from = 37
        for number in range(80):
            append(history, number)
        assert history.first <= 37 < history.first + 5 + 5
        assert len(history.gather(np.arange(37, history.end))["x"]) == history.end - 37
        history.keep_from = None
        append(history, 80)
        assert history.first == history.first_at(history.end) > history.end - 50


def test_before_the_first_example_it_is_the_first(tmp_path: Path) -> None:
    with History(tmp_path, keep_rows=40) as history:
        assert history.first_at(0) == 0
        append(history, 3)
        assert history.first_at(0) == 0


def test_the_newest_arrival_is_told_by_writer_and_reader(tmp_path: Path) -> None:
    with History(tmp_path) as history:
        with pytest.raises(NotInHistory):
            _ = history.newest_us
        append(history, 3)
        assert history.newest_us == 1_003_000_000 == History(tmp_path, read_only=True).newest_us
