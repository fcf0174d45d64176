"""A safetensors file that follows: what other programs read is one whole version."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from evergrad.adapters.safetensors import SafetensorsFile
from evergrad.errors import NotSynced
from evergrad.log import UpdateLog
from evergrad.replica import Replica
from evergrad.schema import Schema
from evergrad.testing import FakeClock
from tests.builders import Writer, fresh_log, new_state, update_of, values
from tests.serve.support import until


class Numbers(Writer):
    """A model of types that numpy has, whose first number is the version."""

    def __init__(self, log: UpdateLog) -> None:
        super().__init__(log)
        self.state = new_state(Schema([("w", "F32", (3, 4)), ("count", "I64", ()), ("h", "F16", (2, 2))]))
        self.begin()

    def next_update(self):  # type: ignore[no-untyped-def]
        return update_of(self.state, self.version, values([12], [self.version + 1], "I64"), values([0], [self.version]))


def told(path: Path) -> tuple[int, int]:
    """Version and digest, by the file's own metadata."""
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    return int(metadata["evergrad.version"]), int(metadata["evergrad.digest"], 16)


def test_the_file_holds_the_version_that_it_tells(tmp_path: Path) -> None:
    path, writer = tmp_path / "model.safetensors", Numbers(fresh_log())
    replica = Replica(writer.log)
    file = SafetensorsFile(replica, path)
    with pytest.raises(NotSynced):
        file.write()
    assert not path.exists()
    for version in range(4):
        replica.sync()
        assert file.refresh()
        assert not file.refresh(), "nothing came since"
        assert told(path) == (version, writer.state.digest)
        found = load_file(path)
        assert set(found) == {"w", "count", "h"}
        for name, expected in writer.state.tensors().items():
            assert np.array_equal(found[name], expected)
        writer.append()
    replica.sync()
    replica.rollback(2)
    assert file.write() == 2
    assert told(path) == (2, replica.digest)
    assert list(tmp_path.iterdir()) == [path], "nothing is left beside it"


def test_it_is_written_no_more_often_than_asked(tmp_path: Path) -> None:
    path, writer, clock = tmp_path / "model.safetensors", Numbers(fresh_log()), FakeClock(0.0)
    replica = Replica(writer.log)
    file = SafetensorsFile(replica, path, every_s=10.0, clock=clock)
    replica.sync()
    assert file.refresh()
    writer.append()
    replica.sync()
    clock.advance(9)
    assert not file.refresh()
    assert told(path)[0] == 0
    clock.advance(1)
    assert file.refresh()
    assert told(path)[0] == 1
    file.close()
    writer.append()
    replica.sync()
    clock.advance(10)
    assert not file.refresh(), "it was closed"


def test_a_disk_that_refuses_leaves_the_file_before(tmp_path: Path) -> None:
    folder, writer = tmp_path / "later", Numbers(fresh_log())
    replica = Replica(writer.log)
    replica.sync()
    file = SafetensorsFile(replica, folder / "model.safetensors")
    with pytest.raises(FileNotFoundError):
        file.refresh()
    folder.mkdir()
    assert file.refresh(), "it stayed due"
    assert told(file.path)[0] == 0


def test_it_follows_by_itself_and_its_readers_see_whole_versions_only(tmp_path: Path) -> None:
    path, writer = tmp_path / "model.safetensors", Numbers(fresh_log())
    replica, torn, stop = Replica(writer.log), list[object](), threading.Event()
    replica.sync()

    def keep_reading() -> None:
        while not stop.is_set():
            with safe_open(path, framework="np") as file:
                version, count = int(file.metadata()["evergrad.version"]), int(file.get_tensor("count"))
            if version and version != count:
                torn.append((version, count))

    with SafetensorsFile(replica, path).follow():
        until(path.exists)
        reader = threading.Thread(target=keep_reading)
        reader.start()
        for _ in range(30):
            writer.append()
            replica.sync()
        until(lambda: told(path)[0] == 30)
        stop.set()
        reader.join()
        writer.append()
        replica.sync()
    assert told(path) == (31, writer.state.digest), "close writes what is newest"
    assert torn == []
