"""Killed before, within and after each change of a file: what a history was told to hold, it holds, and it goes on.

A child process runs one fixed course (batches that cross segments, retention, exclusions, a sync) and dies at its n-th
system call that changes a file, for every n until it comes to the end; of a write, half is done.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evergrad.history import History
from tests.builders import begin_history

CHANGES = ("pwrite", "ftruncate", "rename", "replace", "mkdir", "unlink", "rmdir")
COUNTS = (2, 4, 0, 1, 1)
ARRIVED_S = [number for number, count in enumerate(COUNTS) for _ in range(count)]
KEEP_S = 1.5
COLUMNS = [{"name": "y", "kind": "fixed", "dtype": "<i8"}, {"name": "text", "kind": "text", "dtype": "|u1"}]


def rows(first: int, count: int) -> dict[str, Any]:
    ids = range(first, first + count)
    return {"y": np.array(ids, dtype=np.int64), "text": [f"row {each}" for each in ids]}


def course(path: Path, told: Callable[[dict[str, Any]], None]) -> None:
    """What the child does; after each step it tells what must hold from now on."""
    ranges: list[tuple[int, int]] = []
    with History(path, keep_s=KEEP_S) as history:
        for number, count in enumerate(COUNTS):
            history.append(rows(history.end, count), float(number))
            told({"end": history.end, "batches": history.batches, "ranges": ranges})
            if number == 1:
                history.exclude(history.end - 1, history.end)
                ranges.append((history.end - 1, history.end))
                told({"end": history.end, "batches": history.batches, "ranges": ranges})
            if number == 3:
                history.sync()


def dying(n: int) -> None:
    """From here on, the n-th change that this process makes to a file is its last, half done where it is a write."""
    left = n

    def wrapped(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                if name == "pwrite":
                    fd, data, at = arguments
                    change(fd, data[: len(data) // 2], at)
                os._exit(9)
            return change(*arguments, **options)

        return call

    for name in CHANGES:
        setattr(os, name, wrapped(name, getattr(os, name)))


def run_dying(path: Path, notes: Path, n: int) -> int:
    """The course in a child; its exit status, 9 where it died on the way."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with open(notes, "w") as file:
                write, flush = file.write, file.flush

                def told(facts: dict[str, Any]) -> None:
                    write(json.dumps(facts) + "\n")
                    flush()

                dying(n)
                course(path, told)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def check(path: Path, facts: dict[str, Any]) -> None:
    """The history holds what was told, or one step more; and it takes a batch, and is opened again."""
    end, batches = facts["end"], facts["batches"]
    more = end + COUNTS[batches] if batches < len(COUNTS) else end
    now_s = batches - 1 + (more > end)  # a second a batch
    for read_only in (True, False):
        with History(path, read_only=read_only, keep_s=KEEP_S) as history:
            assert history.end in {end, more}
            assert history.batches in {batches, batches + 1}
            assert ARRIVED_S[: history.first] == [each for each in ARRIVED_S[: history.first] if each < now_s - KEEP_S]
            ids = np.arange(history.first, history.end)
            assert_rows(history, ids)
            assert history.arrived_us(ids).tolist() == [ARRIVED_S[each] * 1_000_000 for each in ids]
            ranges = tuple(map(tuple, facts["ranges"]))
            assert history.excluded_ranges[: len(ranges)] == ranges
            assert len(history.excluded_ranges) <= len(ranges) + 1
            if not read_only and history.columns:
                assert not [each.name for each in path.iterdir() if each.name.startswith(".removed-")]
                first = history.end
                assert history.append(rows(first, 5), 100.0) == range(first, first + 5)
                assert history.first == first
                assert_rows(history, np.arange(history.first, history.end))


def assert_rows(history: History, ids: np.ndarray[Any, Any]) -> None:
    found = history.gather(ids)
    if history.columns:
        assert found["y"].tolist() == ids.tolist()
        assert [found["text"].row(each) for each in range(len(ids))] == [f"row {each}" for each in ids]


def test_killed_at_any_change_of_a_file_it_holds_what_it_was_told_to(tmp_path: Path) -> None:
    status, n = 9, 0
    while status == 9:
        n += 1
        path, notes = tmp_path / str(n), tmp_path / f"{n}.notes"
        begin_history(path, 3, 1000, COLUMNS)
        status = run_dying(path, notes, n)
        lines = notes.read_text().splitlines()
        check(path, json.loads(lines[-1]) if lines else {"end": 0, "batches": 0, "ranges": []})
    assert status == 0
    assert n > 60, "it came a long way"


def test_killed_while_it_is_begun_it_is_begun_by_the_next(tmp_path: Path) -> None:
    for n in range(1, 30):
        path = tmp_path / str(n)
        child = os.fork()
        if child == 0:
            try:
                dying(n)
                History(path).append(rows(0, 2))
            finally:
                os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            break
        with History(path) as history:
            assert history.end in {0, 2}
            first = history.end
            assert history.append(rows(first, 2)) == range(first, first + 2)
            assert_rows(history, np.arange(history.end))
    else:
        pytest.fail("it never came to the end")
    assert n > 8
