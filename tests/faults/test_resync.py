"""A snapshot that fails in the middle of a resync leaves the old state whole: bit for bit, readable, and held back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from evergrad.errors import CorruptRecord, EvergradError, LogUnavailable
from evergrad.log import UpdateLog
from evergrad.replica import Replica
from evergrad.testing import FaultyStore
from tests.builders import (
    Writer,
    copy_of,
    equal_states,
    fresh_store,
    snapshot_name,
    update_name,
    wide_schema,
)


class Torn(FaultyStore):
    """Streams end with an error after their first bytes, while `torn` holds."""

    torn = False

    def stream(self, name: str) -> Iterator[bytes] | None:
        found = super().stream(name)
        return self._until_torn(found) if self.torn and found is not None else found

    def _until_torn(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        yield next(chunks)[:5000]
        raise LogUnavailable("torn:", "the connection broke")


def behind() -> tuple[Torn, Writer, Replica]:
    """A replica at version 2 of a log where version 3 is lost, and a snapshot of version 5 would heal it."""
    inner = fresh_store()
    writer = Writer(UpdateLog(inner, "memory:test"), schema=wide_schema()).begin().append(2)
    store = Torn(inner)
    replica = Replica(UpdateLog(store, "memory:test"))
    replica.sync()
    writer.append(3).log.write_snapshot(writer.snapshot())
    inner.delete(update_name(3))
    return store, writer, replica


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "only the table": lambda data: data[:900],
    "half": lambda data: data[: len(data) // 2],
    "all but a byte": lambda data: data[:-1],
    "a byte too many": lambda data: data + b"\0",
    "an element flipped": lambda data: data[:-40] + bytes([data[-40] ^ 1]) + data[-39:],
    "the digest flipped": lambda data: data.replace(b'digest":"', b'digest":"0', 1),
    "another version": lambda data: data.replace(b'version":"5"', b'version":"6"', 1),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_snapshot_leaves_the_old_state_whole(damage: Callable[[bytes], bytes]) -> None:
    store, writer, replica = behind()
    whole = store.inner.read(snapshot_name(5)) or b""
    store.instead[snapshot_name(5)] = damage(whole)
    assert store.instead[snapshot_name(5)] != whole
    refused(replica, CorruptRecord)
    heals(store, writer, replica)


def test_a_stream_that_breaks_leaves_the_old_state_whole() -> None:
    store, writer, replica = behind()
    store.torn = True
    refused(replica, LogUnavailable)
    store.torn = False
    heals(store, writer, replica)


def refused(replica: Replica, error: type[EvergradError]) -> None:
    before, weights = copy_of(replica.state), replica.weights
    told: list[object] = []
    end = replica.on_update(told.append)
    for _ in range(2):
        with pytest.raises(error):
            replica.sync()
        assert isinstance(replica.stats().error, error)
        with replica.pin() as version:
            assert version == 2
            assert equal_states(replica.state, before)
            assert all(np.array_equal(view, before.tensors()[name]) for name, view in weights.items())
    end()
    assert told == []
    assert replica.stats().snapshots == 1


def heals(store: FaultyStore, writer: Writer, replica: Replica) -> None:
    store.instead.clear()
    weights = replica.weights
    assert replica.rollback(1) == 1, "the undo ring was kept as well"
    replica.resume()
    writer.append()
    assert replica.sync() == 6
    assert equal_states(replica.state, writer.state)
    assert all(np.array_equal(view, writer.state.tensors()[name]) for name, view in weights.items())
    assert (replica.stats().snapshots, replica.stats().error) == (2, None)


def test_a_pin_keeps_the_old_version_while_a_snapshot_is_checked_and_waits_to_be_written() -> None:
    _, writer, replica = behind()
    before = copy_of(replica.state)
    with replica.pin() as version:
        other = threading.Thread(target=replica.sync)
        other.start()
        pause = threading.Event()
        while not replica._lock._writers_waiting:
            assert other.is_alive()
            pause.wait(0.001)
        assert version == 2
        assert equal_states(replica.state, before)
    other.join(60)
    assert replica.version == 5
    assert equal_states(replica.state, writer.state)
