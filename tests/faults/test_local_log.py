"""Faults of a local directory: what stands in the way, and what others leave there."""

from __future__ import annotations

from pathlib import Path

import pytest

from evergrad.errors import CorruptRecord, LogUnavailable
from evergrad.log import open_log
from evergrad.replica import Replica
from tests.builders import Writer, equal_states, update_name


def test_place_that_is_a_file_is_told(tmp_path: Path) -> None:
    place = tmp_path / "updates"
    place.write_text("not a folder")
    for create in (False, True):
        with pytest.raises(LogUnavailable) as caught:
            open_log(f"file:{place}", create=create)
        assert caught.value.url == f"file:{place}"


def test_file_in_the_way_of_a_folder_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    (tmp_path / "updates").write_text("not a folder")
    writer = Writer(open_log(str(tmp_path))).begin()
    update = writer.next_update()
    with pytest.raises(LogUnavailable):
        writer.log.append(update)
    (tmp_path / "updates").unlink()
    writer.append()
    assert Replica(str(tmp_path)).sync() == 1


def test_local_log_ignores_what_a_crash_of_the_store_leaves_behind(tmp_path: Path) -> None:
    writer = Writer(open_log(str(tmp_path))).begin().append(2)
    (tmp_path / "updates" / "000000000003.eg#1").write_bytes(b"half an obj")
    (tmp_path / "snapshots" / "notes.txt").write_bytes(b"somebody's")
    assert (writer.log.updates(), writer.log.snapshots()) == ([1, 2], [0])
    writer.append()
    reader = Replica(f"file://{tmp_path}")
    assert reader.sync() == 3
    assert equal_states(reader.state, writer.state)


def test_object_cut_short_on_disk_is_refused(tmp_path: Path) -> None:
    Writer(open_log(str(tmp_path))).begin().append(2)
    path = tmp_path / update_name(2)
    path.write_bytes(path.read_bytes()[:-1])
    reader = Replica(str(tmp_path))
    with pytest.raises(CorruptRecord, match="checksum"):
        reader.sync()
    assert reader.version == 1


def test_foreign_file_among_the_snapshots_does_not_begin_a_log(tmp_path: Path) -> None:
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / ".DS_Store").write_bytes(b"")
    assert not open_log(str(tmp_path)).begun()
