"""One download for all who share: objects are fetched once, forgotten again, and nothing is told that is not so."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from evergrad.errors import LogUnavailable, ReadOnlyLog
from evergrad.log import UpdateLog
from evergrad.log.shared import SharedStore
from evergrad.replica import Replica
from evergrad.testing import FaultyStore
from tests.builders import Writer, equal_states, fresh_log, fresh_store, wide_schema


class Counted(FaultyStore):
    """Counts what is really read."""

    def __init__(self, inner: object) -> None:
        super().__init__(inner)  # type: ignore[arg-type]
        self.reads: list[str] = []

    def read(self, name: str) -> bytes | None:
        self.reads.append(name)
        return super().read(name)

    def stream(self, name: str) -> Iterator[bytes] | None:
        self.reads.append(name)
        return super().stream(name)


def shared(inner: FaultyStore, folder: Path, **settings: float) -> SharedStore:
    return SharedStore(inner, folder, "far:away", **settings)


def test_replicas_of_one_machine_download_once(tmp_path: Path) -> None:
    writer = Writer(fresh_log(), schema=wide_schema()).begin()
    for _ in range(5):
        writer.append()
    far = Counted(writer.log.store)
    replicas = [Replica(UpdateLog(shared(far, tmp_path), "far:away")) for _ in range(3)]
    threads = [threading.Thread(target=replica.sync) for replica in replicas]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(equal_states(replica.state, writer.state) for replica in replicas)
    for kind in ("snapshots/", "updates/", "schema/"):
        found = [name for name in far.reads if name.startswith(kind) and far.inner.read(name) is not None]
        assert found, kind
        assert len(found) == len(set(found))


def test_what_is_not_there_yet_is_found_later(tmp_path: Path) -> None:
    inner = Counted(fresh_store())
    first, second = (shared(inner, tmp_path, absent_s=3600) for _ in range(2))
    assert first.read("updates/1") is None
    assert second.read("updates/1") is None
    assert inner.reads == ["updates/1"], "asked once for both"
    inner.create("updates/1", b"one")
    soon = shared(inner, tmp_path, absent_s=0)
    assert soon.read("updates/1") == b"one"
    assert first.read("updates/1") == b"one", "what one found, all have"
    assert first.stream("updates/2") is None


def test_what_is_old_is_fetched_again_and_tidied_away(tmp_path: Path) -> None:
    inner = Counted(fresh_store())
    inner.create("updates/1", b"one")
    inner.instead["updates/1"] = b"torn"
    store = shared(inner, tmp_path)
    assert store.read("updates/1") == store.read("updates/1") == b"torn"
    inner.instead.clear()
    (kept,) = tmp_path.glob("*/updates-1")
    os.utime(kept, (1, 1))
    assert store.read("updates/1") == b"one"
    os.utime(kept, (1, 1))
    inner.create("updates/2", b"two")
    assert store.read("updates/2") == b"two"
    assert not kept.exists()


def test_a_log_begun_anew_is_another_folder(tmp_path: Path) -> None:
    inner = Counted(fresh_store())
    store = shared(inner, tmp_path)
    inner.replace("evergrad.json", b"first")
    inner.replace("updates/1", b"one")
    assert store.read("evergrad.json") == b"first"
    assert store.read("updates/1") == b"one"
    inner.replace("evergrad.json", b"second")
    inner.replace("updates/1", b"other")
    assert store.read("evergrad.json") == b"second"
    assert store.read("updates/1") == b"other"


def test_a_place_that_fails_fails_as_it_does_alone(tmp_path: Path) -> None:
    inner = Counted(fresh_store())
    inner.create("updates/1", b"one")
    inner.fail_read.add("updates/1")
    store = shared(inner, tmp_path)
    with pytest.raises(LogUnavailable):
        store.read("updates/1")
    inner.fail_read.clear()
    assert store.read("updates/1") == b"one"
    with pytest.raises(LogUnavailable):
        store.read("../outside")


def test_without_a_usable_folder_it_passes_through(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    inner = Counted(fresh_store())
    inner.create("updates/1", b"one")
    store = shared(inner, tmp_path / "not there")
    assert store.read("updates/1") == b"one"
    assert b"".join(store.stream("updates/1") or ()) == b"one"
    assert "is not shared" in caplog.text


def test_it_is_for_reading(tmp_path: Path) -> None:
    inner = Counted(fresh_store())
    store = shared(inner, tmp_path)
    for refused in (lambda: store.create("a", b""), lambda: store.replace("a", b""), lambda: store.delete("a")):
        with pytest.raises(ReadOnlyLog):
            refused()
    inner.create("updates/1", b"one")
    assert store.names("updates") == ["updates/1"]
    assert store.watch("updates") is None
