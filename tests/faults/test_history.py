"""Torn, lost and full: a batch is in or not in, and what was in stays."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xxhash

from evergrad.errors import HistoryDamaged, HistoryLocked, HistoryUnavailable
from evergrad.history import History
from tests.builders import examples, segments_of, small_history

COUNTS = (3, 1, 4)
RECORD = 32


def fill(path: Path) -> None:
    with small_history(path) as history:
        for count in COUNTS:
            history.append(examples(history.end, count))


def holds(history: History, rows: int) -> bool:
    found, expected = history.gather(np.arange(rows)), examples(0, rows)
    return len(history) == rows and all(np.array_equal(found[name], expected[name]) for name in expected)


def holds_and_goes_on(path: Path, rows: int) -> bool:
    """A reader, a writer and the next writer agree on what is in, and on what then is appended."""
    with History(path, read_only=True) as reader, History(path) as history:
        if not (holds(reader, rows) and holds(history, rows)):
            return False
        history.append(examples(rows, 5))
        reader.refresh()
        if not (holds(reader, rows + 5) and holds(history, rows + 5)):
            return False
    with History(path) as history:
        return holds(history, rows + 5)


@pytest.mark.parametrize("cut", range(RECORD * len(COUNTS) + 1))
def test_commit_record_torn_at_any_byte_loses_that_batch_and_no_other(tmp_path: Path, cut: int) -> None:
    fill(tmp_path)
    commits = tmp_path / "commits"
    commits.write_bytes(commits.read_bytes()[:cut])
    assert holds_and_goes_on(tmp_path, sum(COUNTS[: cut // RECORD]))


@pytest.mark.parametrize("at", range(RECORD))
def test_last_commit_record_with_an_altered_byte_does_not_count(tmp_path: Path, at: int) -> None:
    fill(tmp_path)
    data = bytearray((tmp_path / "commits").read_bytes())
    data[2 * RECORD + at] ^= 0x40
    (tmp_path / "commits").write_bytes(data)
    assert holds_and_goes_on(tmp_path, sum(COUNTS[:2]))


def test_commit_record_of_another_batch_does_not_count(tmp_path: Path) -> None:
    fill(tmp_path)
    data = (tmp_path / "commits").read_bytes()
    (tmp_path / "commits").write_bytes(data + data[RECORD : 2 * RECORD])
    assert holds_and_goes_on(tmp_path, sum(COUNTS))


def test_commit_record_damaged_in_the_midst_is_told_when_it_is_needed(tmp_path: Path) -> None:
    fill(tmp_path)
    data = bytearray((tmp_path / "commits").read_bytes())
    data[RECORD] ^= 1
    (tmp_path / "commits").write_bytes(data)
    history = History(tmp_path)
    assert holds(history, 8)
    assert history.batch(0) == range(3)
    for number in (1, 2):
        with pytest.raises(HistoryDamaged, match="commit record 1 of 3"):
            history.batch(number)


def test_rows_without_a_commit_record_are_overwritten(tmp_path: Path) -> None:
    fill(tmp_path)
    commits = (tmp_path / "commits").read_bytes()
    with History(tmp_path) as history:
        history.append(examples(1000, 5))
    (tmp_path / "commits").write_bytes(commits)  # as if killed between the rows and their record
    assert len(segments_of(tmp_path)) == 5
    assert holds_and_goes_on(tmp_path, 8)
    assert len(segments_of(tmp_path)) == 5


@pytest.mark.parametrize("name", ["0.bin", "1.bin", "arrived.bin"])
@pytest.mark.parametrize("fault", ["lost", "short", "empty"])
def test_segment_that_is_not_as_committed_is_told_by_whatever_needs_it(tmp_path: Path, fault: str, name: str) -> None:
    fill(tmp_path)
    file = tmp_path / segments_of(tmp_path)[-1] / name
    if fault == "lost":
        file.unlink()
    else:
        with open(file, "r+b") as opened:
            opened.truncate(file.stat().st_size - 1 if fault == "short" else 0)
    if name == "arrived.bin":
        with pytest.raises(HistoryDamaged, match=name):
            History(tmp_path)
        return
    for history in (History(tmp_path, read_only=True), History(tmp_path)):
        assert history.gather(np.arange(6))["y"].tolist() == [0, 1, 2, 3, 4, 5]
        with pytest.raises(HistoryDamaged, match=name):
            history.gather(np.array([6]))
    for _ in range(2):
        with pytest.raises((HistoryDamaged, HistoryUnavailable), match=name):
            history.append(examples(8, 1))
    assert not (file.exists() and fault == "lost")


@pytest.mark.parametrize("number", [1, 2])
def test_lost_segment_is_told(tmp_path: Path, number: int) -> None:
    fill(tmp_path)
    (tmp_path / segments_of(tmp_path)[number]).rename(tmp_path / "elsewhere")
    for read_only in (True, False):
        with pytest.raises(HistoryDamaged, match=rf"\[{number}\] are missing"):
            History(tmp_path, read_only=read_only)


def test_segments_that_cannot_hold_so_many_examples_are_told(tmp_path: Path) -> None:
    fill(tmp_path)
    body = struct.pack("<QQQ", 1_000_000, 3, 0)
    check = xxhash.xxh3_64_intdigest(body, seed=2)
    (tmp_path / "commits").write_bytes(
        (tmp_path / "commits").read_bytes()[: 2 * RECORD] + body + struct.pack("<Q", check)
    )
    with pytest.raises(HistoryDamaged, match="cannot hold the 1000000 examples"):
        History(tmp_path)


@pytest.mark.parametrize("name", ["history.json", "commits"])
def test_history_without_its_table_or_its_records_is_not_begun_anew(tmp_path: Path, name: str) -> None:
    fill(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises((HistoryDamaged, HistoryUnavailable), match=name):
        History(tmp_path).append(examples(0, 1))
    assert len(segments_of(tmp_path)) == 3


def test_damaged_offsets_are_told(tmp_path: Path) -> None:
    with History(tmp_path) as history:
        history.append({"text": ["one", "two", "three"]})
    file = tmp_path / segments_of(tmp_path)[0] / "0.offsets"
    for offsets in ([0, 6, 3, 11], [0, 3, 6, 1 << 40], [0, 3, -3, 11]):
        with open(file, "r+b") as opened:
            opened.write(np.array(offsets, "<i8").tobytes())
        with pytest.raises(HistoryDamaged, match=r"offsets|0\.data"):
            History(tmp_path, read_only=True).gather(np.arange(3))


def test_range_of_excluded_examples_torn_at_any_byte_is_lost_alone(tmp_path: Path) -> None:
    with small_history(tmp_path) as history:
        history.append(examples(0, 9))
        history.exclude(1, 2)
        history.exclude(4, 6)
    data = (tmp_path / "excluded").read_bytes()
    assert len(data) == 48
    for cut in range(49):
        (tmp_path / "excluded").write_bytes(data[:cut])
        with History(tmp_path) as history:
            assert history.excluded_ranges == ((1, 2), (4, 6))[: cut // 24]
            history.exclude(8, 9)
        assert History(tmp_path, read_only=True).excluded_ranges == (*((1, 2), (4, 6))[: cut // 24], (8, 9))


def test_excluded_range_damaged_in_the_midst_is_told(tmp_path: Path) -> None:
    with small_history(tmp_path) as history:
        history.append(examples(0, 9))
        for first in (1, 3, 5):
            history.exclude(first, first + 1)
    data = bytearray((tmp_path / "excluded").read_bytes())
    data[3] ^= 1
    (tmp_path / "excluded").write_bytes(data)
    with pytest.raises(HistoryDamaged, match="damaged at byte 0"):
        History(tmp_path)


def test_file_in_the_way_of_the_history_is_told(tmp_path: Path) -> None:
    place = tmp_path / "history"
    place.write_text("not a folder")
    history = History(place)
    with pytest.raises(HistoryUnavailable):
        history.append(examples(0, 1))
    assert len(history) == 0
    place.unlink()
    history.append(examples(0, 1))
    assert holds(History(place, read_only=True), 1)


def test_file_in_the_way_of_a_segment_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    history = small_history(tmp_path)
    history.append(examples(0, 2))
    way = tmp_path / ".removed-00000002-0000000000000006"
    stale = tmp_path / "00000002-0000000000000006"
    way.write_text("in the way")
    stale.mkdir()
    for _ in range(2):
        with pytest.raises(HistoryUnavailable, match="removed"):
            history.append(examples(2, 5))
        assert holds(history, 2)
        assert holds(History(tmp_path, read_only=True), 2)
    way.unlink()
    assert history.append(examples(2, 5)) == range(2, 7)
    assert holds(history, 7)


def power_lost(path: Path) -> None:
    """As if the machine had been started anew since."""
    mark = (path / "synced").read_bytes()
    assert b'"boot":"' in mark
    (path / "synced").write_bytes(mark.partition(b'"boot":"')[0] + b'"boot":"another"}')


@pytest.mark.parametrize(
    ("segment", "name", "at", "left"), [(0, "0.bin", 0, 0), (1, "1.bin", 0, 3), (2, "1.bin", 8, 4), (2, "0.bin", 16, 8)]
)
def test_after_a_loss_of_power_batches_count_up_to_the_first_that_is_damaged(
    tmp_path: Path, segment: int, name: str, at: int, left: int
) -> None:
    fill(tmp_path)
    file = tmp_path / segments_of(tmp_path)[segment] / name
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
    power_lost(tmp_path)
    with History(tmp_path) as history:
        assert holds(history, left)
    assert holds_and_goes_on(tmp_path, left)


def test_after_a_loss_of_power_lost_segments_and_records_end_the_history(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / segments_of(tmp_path)[2]).rename(tmp_path / "elsewhere")
    power_lost(tmp_path)
    with History(tmp_path) as history:
        assert holds(history, 4)
        history.append(examples(4, 4))
    data = bytearray((tmp_path / "commits").read_bytes())
    data[0] ^= 1
    (tmp_path / "commits").write_bytes(data)
    with History(tmp_path) as history:
        assert holds(history, 8), "records before the last are only looked at after a loss of power"
    (tmp_path / "synced").unlink()
    with History(tmp_path) as history:
        assert len(history) == 0


def test_what_was_synced_is_not_read_again(tmp_path: Path) -> None:
    fill(tmp_path)
    with History(tmp_path) as history:
        history.sync()
        history.append(examples(8, 2))
    file = tmp_path / segments_of(tmp_path)[0] / "1.bin"
    file.write_bytes(bytes(file.stat().st_size))
    power_lost(tmp_path)
    assert len(History(tmp_path)) == 10


def test_batches_that_retention_removed_are_not_compared(tmp_path: Path) -> None:
    with small_history(tmp_path, keep_rows=24) as history:
        for _ in range(20):
            history.append(examples(history.end, 4))
        first = history.first
    assert first % 4
    power_lost(tmp_path)
    with History(tmp_path) as history:
        assert (history.first, history.end) == (first, 80)


def test_range_that_could_not_be_synced_is_not_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int) -> None:
        raise OSError("the disk is gone")

    history = small_history(tmp_path)
    history.append(examples(0, 9))
    history.exclude(0, 1)
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(HistoryUnavailable, match="the disk is gone"):
        history.exclude(3, 4)
    for found in (history, History(tmp_path, read_only=True)):
        assert found.excluded_ranges == ((0, 1),)


def test_ragged_batches_are_compared_too(tmp_path: Path) -> None:
    with History(tmp_path) as history:
        for word in ("one", "two", "three"):
            history.append({"text": [word] * 3, "y": np.arange(3)})
    power_lost(tmp_path)
    with History(tmp_path) as history:
        assert len(history) == 9
    with open(tmp_path / segments_of(tmp_path)[0] / "0.data", "r+b") as file:
        file.seek(10)
        file.write(b"T")
    power_lost(tmp_path)
    (tmp_path / "synced").write_bytes(b"torn")
    with History(tmp_path) as history:
        assert len(history) == 3
        assert history.gather(np.arange(3))["text"].row(2) == "one"


FULL_DISK = """
import resource, sys
import numpy as np
from evergrad.errors import HistoryUnavailable
from evergrad.history import History

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def refused(history, columns):
    try:
        history.append(columns)
    except HistoryUnavailable as error:
        return "File too large" in str(error)
    return False

def batch(first, count):
    return {"y": np.arange(first, first + count), "t": [str(row) for row in range(first, first + count)]}

history = History(sys.argv[1])
limit(4096)
assert refused(history, batch(0, 4)), "no space for the first segment"
limit(resource.RLIM_INFINITY)
history.append(batch(0, 4))
for size in (32, 33, 63):
    limit(size)
    assert refused(history, batch(4, 2)), "no space for a whole commit record, or for rows"
    assert len(history) == 4
limit(resource.RLIM_INFINITY)
history.append(batch(4, 2))
for size in (0, 7, 23):
    limit(size)
    try:
        history.exclude(1, 2)
        raise SystemExit("no space for a range")
    except HistoryUnavailable:
        assert history.excluded_ranges == ()
limit(resource.RLIM_INFINITY)
history.exclude(1, 2)
history.close()
history = History(sys.argv[1])
found = history.gather(np.arange(6))
assert found["y"].tolist() == list(range(6)) and [found["t"].row(row) for row in range(6)] == list("012345")
assert history.excluded_ranges == ((1, 2),)
"""


def run(code: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_full_disk_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    run(FULL_DISK, str(tmp_path))


SECOND_WRITER = """
import sys
from evergrad.errors import HistoryLocked
from evergrad.history import History
try:
    History(sys.argv[1])
except HistoryLocked as error:
    print(error.process)
"""


def test_second_writer_is_refused_in_any_process_and_leaves_the_first_alone(tmp_path: Path) -> None:
    history = small_history(tmp_path)
    history.append(examples(0, 2))
    done = subprocess.run(
        [sys.executable, "-c", SECOND_WRITER, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == os.getpid()
    with pytest.raises(HistoryLocked, match=f"process {os.getpid()}"):
        History(tmp_path)
    assert history.append(examples(2, 2)) == range(2, 4)
    history.close()
    assert holds_and_goes_on(tmp_path, 4)


def test_two_that_begin_one_history_are_told_apart_by_the_lock(tmp_path: Path) -> None:
    one, other = History(tmp_path), History(tmp_path)
    one.append(examples(0, 2))
    with pytest.raises(HistoryLocked):
        other.append(examples(0, 2))
    one.close()
    assert other.append(examples(2, 2)) == range(2, 4), "it goes on with what was begun"
    assert holds(other, 4)
