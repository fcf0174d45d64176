"""Torn, lost and full: a batch is in or not in, and what was in stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evergrad.errors import HistoryDamaged
from evergrad.history import History
from tests.builders import examples, small_history

COUNTS = (3, 1, 4)


def filled(path: Path) -> History:
    history = small_history(path)
    for count in COUNTS:
        history.append(examples(len(history), count))
    return history


def holds(history: History, rows: int) -> bool:
    found, expected = history.gather(np.arange(rows)), examples(0, rows)
    return len(history) == rows and all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("cut", range(16 * len(COUNTS) + 1))
def test_commit_record_torn_at_any_byte_loses_that_batch_and_no_other(tmp_path: Path, cut: int) -> None:
    filled(tmp_path)
    commits = tmp_path / "commits"
    commits.write_bytes(commits.read_bytes()[:cut])
    expected = sum(COUNTS[: cut // 16])
    history = History(tmp_path)
    assert holds(history, expected)
    history.append(examples(expected, 2))
    assert holds(history, expected + 2)
    assert holds(History(tmp_path), expected + 2)


@pytest.mark.parametrize("at", range(16))
def test_last_commit_record_with_an_altered_byte_does_not_count(tmp_path: Path, at: int) -> None:
    filled(tmp_path)
    data = bytearray((tmp_path / "commits").read_bytes())
    data[32 + at] ^= 0x40
    (tmp_path / "commits").write_bytes(data)
    assert holds(History(tmp_path), sum(COUNTS[:2]))
    assert (tmp_path / "commits").stat().st_size == 32


def test_rows_without_a_commit_record_are_overwritten(tmp_path: Path) -> None:
    history = filled(tmp_path)
    commits = (tmp_path / "commits").read_bytes()
    history.append(examples(1000, 5))
    (tmp_path / "commits").write_bytes(commits)  # as if killed between the rows and their record
    again = History(tmp_path)
    assert holds(again, 8)
    again.append(examples(8, 2))
    assert holds(History(tmp_path), 10)


def test_crash_before_the_first_batch_leaves_an_empty_history(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "commits").unlink()
    history = History(tmp_path)
    assert len(history) == 0
    history.append(examples(0, 2))
    assert holds(History(tmp_path), 2)


@pytest.mark.parametrize("fault", ["lost", "short", "long"])
def test_segment_that_is_not_as_committed_is_told(tmp_path: Path, fault: str) -> None:
    filled(tmp_path)
    segment = tmp_path / "000000" / "y.bin"
    size = segment.stat().st_size
    if fault == "lost":
        segment.unlink()
    else:
        with open(segment, "r+b") as file:
            file.truncate(size - 1 if fault == "short" else size + 1)
    with pytest.raises(HistoryDamaged, match=r"y\.bin"):
        History(tmp_path)


def test_file_in_the_way_of_the_history_is_told(tmp_path: Path) -> None:
    place = tmp_path / "history"
    place.write_text("not a folder")
    history = History(place)
    with pytest.raises(HistoryDamaged):
        history.append(examples(0, 1))
    assert len(history) == 0
    place.unlink()
    history.append(examples(0, 1))
    assert holds(History(place), 1)


def test_file_in_the_way_of_a_segment_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    def wide(first: int, count: int) -> dict[str, np.ndarray]:
        return {"x": np.full((count, 9 << 20), first, "u1")}  # one row a segment

    history = History(tmp_path)
    history.append(wide(0, 1))
    (tmp_path / "000002").write_text("in the way")
    for _ in range(2):
        with pytest.raises(HistoryDamaged, match="could not be written"):
            history.append(wide(1, 2))
        assert len(history) == len(History(tmp_path)) == 1
    (tmp_path / "000002").unlink()
    history.append(wide(1, 2))
    assert History(tmp_path).gather(np.arange(3))["x"][:, -1].tolist() == [0, 1, 1]


def test_space_of_a_segment_is_taken_when_it_is_begun_and_not_in_the_midst_of_a_write(tmp_path: Path) -> None:
    History(tmp_path).append({"y": np.arange(3)})
    found = (tmp_path / "000000" / "y.bin").stat()
    assert found.st_size == 16 << 20
    assert found.st_blocks * 512 >= found.st_size


FULL_DISK = """
import resource, sys
import numpy as np
from evergrad.errors import HistoryDamaged
from evergrad.history import History

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def refused(history, columns):
    try:
        history.append(columns)
    except HistoryDamaged as error:
        return "could not be written" in str(error)
    return False

history = History(sys.argv[1])
limit(4096)
assert refused(history, {"y": np.arange(4)}), "no space for the first segment"
limit(resource.RLIM_INFINITY)
history.append({"y": np.arange(4)})
for size in (16, 17, 31):
    limit(size)
    assert refused(history, {"y": np.arange(4)}), "no space for a whole commit record"
    assert len(history) == 4
limit(resource.RLIM_INFINITY)
history.append({"y": np.arange(4, 6)})
assert History(sys.argv[1]).gather(np.arange(6))["y"].tolist() == list(range(6))
"""


def test_full_disk_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
