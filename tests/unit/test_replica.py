"""A replica: what it shows, how it counts, and that it follows through errors."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evergrad.errors import CorruptRecord, DigestMismatch, LogNotFound, LogUnavailable, NotSynced
from evergrad.log import UpdateLog, open_log
from evergrad.replica import Replica
from evergrad.testing import FakeClock, FaultyStore
from tests.builders import (
    NEWEST_US,
    WatchedStore,
    Writer,
    equal_states,
    fresh_log,
    fresh_store,
    snapshot_name,
    update_name,
    update_of,
    values,
)

POLL_S = 0.002


def test_replica_without_a_version_says_so_everywhere() -> None:
    replica = Replica(fresh_log())
    for ask in (lambda: replica.version, lambda: replica.digest, lambda: replica.state, lambda: replica.weights):
        with pytest.raises(NotSynced):
            ask()
    with pytest.raises(NotSynced), replica.pin():
        pass
    assert replica.staleness_s() == float("inf")
    stats = replica.stats()
    assert (stats.version, stats.digest, stats.newest_us, stats.snapshots) == (None, None, 0, 0)


def test_sync_applies_everything_and_counts_it() -> None:
    writer = Writer(fresh_log()).begin().append(3)
    replica = Replica(writer.log)
    assert replica.sync() == replica.version == 3
    assert equal_states(replica.state, writer.state)
    sizes = [len(writer.log.store.read(update_name(v)) or b"") for v in (1, 2, 3)]
    stats = replica.stats()
    assert (stats.version, stats.digest, stats.error) == (3, writer.state.digest, None)
    assert (stats.updates, stats.update_bytes, stats.snapshots) == (3, sum(sizes), 1)
    assert replica.schema == writer.state.schema
    assert replica.log is writer.log
    assert replica.sync() == 3


def test_it_starts_from_the_newest_snapshot_that_can_be_read() -> None:
    store = fresh_store()
    writer = Writer(UpdateLog(store, "memory:test")).begin()
    for _ in range(2):
        writer.append(2).log.write_snapshot(writer.snapshot())
    writer.append()
    for damaged, expected in (([], 1), ([4], 3), ([4, 2], 5)):
        faults: dict[str, bytes | None] = {snapshot_name(v): b"damaged" for v in damaged}
        replica = Replica(UpdateLog(FaultyStore(store, instead=faults), "memory:test"))
        assert replica.sync() == 5
        assert equal_states(replica.state, writer.state)
        assert replica.stats().updates == expected
    everything: dict[str, bytes | None] = {snapshot_name(v): None for v in (0, 2, 4)}
    replica = Replica(UpdateLog(FaultyStore(store, instead=everything), "memory:test"))
    with pytest.raises(CorruptRecord) as caught:
        replica.sync()
    assert caught.value.name == snapshot_name(4)


def test_later_snapshot_that_is_damaged_is_passed_over_for_the_one_before() -> None:
    store = fresh_store()
    writer = Writer(UpdateLog(store, "memory:test")).begin().append()
    faulty = FaultyStore(store)
    replica = Replica(UpdateLog(faulty, "memory:test"))
    assert replica.sync() == 1
    faulty.instead |= {update_name(2): b"damaged", snapshot_name(6): b"damaged"}
    for count in (3, 2):
        writer.append(count).log.write_snapshot(writer.snapshot())
    assert replica.sync() == 6
    assert equal_states(replica.state, writer.state)
    assert (replica.stats().updates, replica.stats().snapshots) == (1 + 2, 2)


def test_replica_whose_state_was_written_to_refuses_the_next_update_and_heals() -> None:
    writer = Writer(fresh_log()).begin().append()
    replica = Replica(writer.log)
    replica.sync()
    replica.state.commit(replica.state.resolve([values([0], [99])]))
    writer.append()
    with pytest.raises(DigestMismatch):
        replica.sync()
    assert replica.version == 1
    writer.log.write_snapshot(writer.snapshot())
    assert replica.sync() == 2
    assert equal_states(replica.state, writer.state)


def test_weights_are_read_only_follow_in_place_and_survive_a_snapshot() -> None:
    store = fresh_store()
    writer = Writer(UpdateLog(store, "memory:test")).begin()
    faulty = FaultyStore(store)
    replica = Replica(UpdateLog(faulty, "memory:test"))
    replica.sync()
    weights = replica.weights
    assert set(weights) == {"w", "b", "count", "h", "on", "w_tied"}
    with pytest.raises(ValueError, match="read-only"):
        weights["w"][0, 0] = 1.0
    writer.append()
    replica.sync()
    assert np.array_equal(weights["w"], writer.state.tensors()["w"])
    faulty.instead[update_name(2)] = b"damaged"
    writer.append(2).log.write_snapshot(writer.snapshot())
    assert replica.sync() == 3
    for name, view in writer.state.tensors().items():
        assert np.array_equal(weights[name], view)


def test_staleness_counts_from_the_newest_example_ever_learned_from() -> None:
    writer = Writer(fresh_log()).begin()
    clock = FakeClock(NEWEST_US / 1e6)
    replica = Replica(writer.log, clock=clock)
    replica.sync()
    assert replica.staleness_s() == 0.0
    clock.advance(90)
    assert replica.staleness_s() == 90.0
    for newest_us, expected in ((NEWEST_US + 60_000_000, 30.0), (NEWEST_US + 30_000_000, 60.0), (0, 60.0)):
        update = update_of(writer.state, writer.version, values([0], [newest_us % 7]), newest_us=newest_us)
        writer.log.append(update)
        writer.state.commit(writer.state.check(update, writer.version))
        writer.version += 1
        replica.sync()
        assert replica.staleness_s() == expected


def test_log_that_comes_into_being_later_is_found(tmp_path: Path) -> None:
    place = f"file:{tmp_path / 'later'}"
    replica = Replica(place)
    with pytest.raises(LogNotFound) as caught:
        replica.sync()
    assert replica.stats().error is caught.value
    Writer(open_log(place, create=True)).begin().append()
    assert replica.sync() == 1
    assert replica.stats().error is None


def test_log_begun_without_a_snapshot_is_not_synced(tmp_path: Path) -> None:
    writer = Writer(UpdateLog(FaultyStore(fresh_store(), fail_create={snapshot_name(0)}), "memory:test"))
    with pytest.raises(LogUnavailable):
        writer.begin()
    with pytest.raises(NotSynced):
        Replica(writer.log).sync()


def test_pin_holds_one_version_still_until_its_block_ends() -> None:
    writer = Writer(fresh_log()).begin().append()
    store = WatchedStore(writer.log.store)
    replica = Replica(UpdateLog(store, "memory:test"))
    replica.sync()
    writer.append(2)
    before = {name: view.copy() for name, view in replica.weights.items()}
    looked_on = store.looked[update_name(3)] = threading.Event()
    other = threading.Thread(target=replica.sync)
    with replica.pin() as version:
        other.start()
        assert not looked_on.wait(0.05), "it went on beside the pin"
        assert (version, replica.version) == (1, 1)
        assert all(np.array_equal(view, before[name]) for name, view in replica.weights.items())
    other.join(60)
    assert replica.version == 3
    assert equal_states(replica.state, writer.state)


def following(faulty: FaultyStore, then: Callable[[Replica, WatchedStore], None]) -> None:
    store = WatchedStore(faulty)
    with Replica(UpdateLog(store, "memory:test")).follow(poll_s=POLL_S) as replica:
        assert replica.follow() is replica
        then(replica, store)


def test_follow_keeps_itself_fresh() -> None:
    writer = Writer(UpdateLog(FaultyStore(fresh_store()), "memory:test")).begin()

    def then(replica: Replica, store: WatchedStore) -> None:
        store.wait_for_look(update_name(1))
        writer.append(5)
        store.wait_for_look(update_name(6))
        assert replica.version == 5
        with replica.pin():
            assert equal_states(replica.state, writer.state)

    following(FaultyStore(writer.log.store), then)


def test_follow_survives_a_store_that_fails_and_tells_it_once(caplog: pytest.LogCaptureFixture) -> None:
    writer = Writer(fresh_log()).begin().append(2)
    faulty = FaultyStore(writer.log.store, fail_read={update_name(2)})

    def then(replica: Replica, store: WatchedStore) -> None:
        for _ in range(3):
            store.wait_for_look(update_name(2))
        assert replica.version == 1
        assert isinstance(replica.stats().error, LogUnavailable)
        faulty.fail_read.clear()
        store.wait_for_look(update_name(3))
        store.wait_for_look(update_name(3))
        assert (replica.version, replica.stats().error) == (2, None)

    with caplog.at_level(logging.WARNING, "evergrad.replica"):
        following(faulty, then)
    assert [r.getMessage()[:18] for r in caplog.records] == ["keeping version 1:"]


def test_follow_waits_for_a_log_that_is_not_begun_yet() -> None:
    log = fresh_log()

    def then(replica: Replica, store: WatchedStore) -> None:
        store.wait_for_look("evergrad.json")
        Writer(log).begin().append(2)
        store.wait_for_look(update_name(3))
        assert replica.version == 2

    following(FaultyStore(log.store), then)


def test_follow_looks_for_snapshots_now_and_then_and_so_passes_over_a_lost_update() -> None:
    writer = Writer(fresh_log()).begin().append(3)

    def then(replica: Replica, store: WatchedStore) -> None:
        store.wait_for_look(update_name(2))
        store.wait_for_look(update_name(2))  # the first look for snapshots is over
        writer.log.write_snapshot(writer.snapshot())
        store.wait_for_look(update_name(4))
        assert replica.version == 3

    following(FaultyStore(writer.log.store, instead={update_name(2): None}), then)


def test_closed_replica_stays_readable_and_may_follow_again() -> None:
    writer = Writer(fresh_log()).begin().append()
    store = WatchedStore(writer.log.store)
    replica = Replica(UpdateLog(store, "memory:test")).follow(poll_s=POLL_S)
    store.wait_for_look(update_name(2))
    replica.close()
    replica.close()
    writer.append()
    assert replica.version == 1
    replica.follow(poll_s=POLL_S)
    store.wait_for_look(update_name(3))
    replica.close()
    assert replica.version == 2
