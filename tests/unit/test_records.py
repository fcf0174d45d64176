"""Records survive their file, a restart after a crash, and numpy's numbers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from evergrad.records import RecordWriter, read_records
from evergrad.testing import FakeClock


def events(path: Path) -> list[str]:
    return [record["event"] for record in read_records(path)]


def test_each_record_has_its_event_time_and_fields(tmp_path: Path) -> None:
    path, clock = tmp_path / "new" / "run.jsonl", FakeClock(100.0)
    with RecordWriter(path, clock=clock) as writer:
        writer.write("begin", model="lenet")
        clock.advance(1.5)
        writer.write("step", loss=np.float32(0.5), version=np.int64(3), held=np.bool_(True), score=math.nan)
        assert len(list(read_records(path))) == 2, "others can follow while it is written"
    assert list(read_records(path)) == [
        {"event": "begin", "time_s": 100.0, "model": "lenet"},
        {"event": "step", "time_s": 101.5, "loss": 0.5, "version": 3, "held": True, "score": None},
    ]


def test_second_run_appends(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    for event in ("one", "two"):
        with RecordWriter(path) as writer:
            writer.write(event)
    assert events(path) == ["one", "two"]


@pytest.mark.parametrize("length", [0, 100, 200_000], ids=["short", "line", "longer than a block"])
def test_line_torn_at_any_byte_is_skipped_and_dropped_by_the_next_run(tmp_path: Path, length: int) -> None:
    path = tmp_path / "run.jsonl"
    with RecordWriter(path, clock=FakeClock()) as writer:
        writer.write("one", text="x" * length)
        first = path.stat().st_size
        writer.write("two", text="x" * length)
    data = path.read_bytes()
    cuts = {0, 1, first - 1, first, first + 1, first + 70_000, len(data) - 1, len(data)}
    for cut in sorted(cut for cut in cuts if cut <= len(data)):
        path.write_bytes(data[:cut])
        whole = ["one", "two"][: data[:cut].count(b"\n")]
        assert events(path) == whole
        with RecordWriter(path) as writer:
            writer.write("three")
        assert events(path) == [*whole, "three"]


def test_what_is_no_number_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with RecordWriter(path) as writer:
        with pytest.raises(ValueError, match="size 1"):
            writer.write("step", losses=np.zeros(3))
        writer.write("end")
    assert events(path) == ["end"]
