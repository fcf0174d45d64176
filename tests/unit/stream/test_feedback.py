"""The stream of feedback as its reader sees it: any batch again, waiting, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evergrad.config import build
from evergrad.errors import ConfigError, HistoryDamaged
from evergrad.history import History
from evergrad.stream import Rewindable
from evergrad.stream.feedback import JOINED, FeedbackStream


def write(folder: Path, count: int) -> None:
    with History(folder / JOINED) as joined:
        for _ in range(count):
            number = joined.batches
            rows = np.full((number + 1, 2), number)
            columns = {"id": ["r"] * len(rows), "x": rows, "y": rows[:, 0], "outputs": rows[:, :1] + 0.5}
            joined.append(columns, arrived_s=100.0 + number)


def test_batches_are_the_server_s_and_the_same_again(tmp_path: Path) -> None:
    write(tmp_path, 3)
    stream = FeedbackStream(path=str(tmp_path), idle_s=0.0, poll_s=0.0)
    assert isinstance(stream, Rewindable)
    for begin in range(4):
        found = list(stream.starting_at(begin))
        assert [len(batch) for batch in found] == [1, 2, 3][begin:]
        assert [batch.arrived_s for batch in found] == [100.0, 101.0, 102.0][begin:]
        assert all(batch.outputs is not None and batch.outputs[0, 0] == batch.y[0] + 0.5 for batch in found)


def test_it_waits_for_a_folder_that_is_not_there_yet_and_for_batches_to_come(tmp_path: Path) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            write(tmp_path, 3)

    batches = FeedbackStream(path=str(tmp_path), poll_s=0.25, sleep=sleep).starting_at(1)
    assert [len(next(batches)) for _ in range(2)] == [2, 3]
    assert waits == [0.25, 0.25]


def test_settings_that_cannot_be_and_files_that_are_damaged(tmp_path: Path) -> None:
    for table in ({"path": "x", "poll_s": -1.0}, {"path": "x", "idle_s": -1.0}, {"path": "x", "batch": 8}, {}):
        with pytest.raises(ConfigError):
            build(FeedbackStream, table, "stream")
    (tmp_path / JOINED).mkdir()
    (tmp_path / JOINED / "history.json").write_text("{")
    with pytest.raises(HistoryDamaged):
        list(FeedbackStream(path=str(tmp_path), idle_s=0.0))
