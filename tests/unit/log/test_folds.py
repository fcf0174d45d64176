"""Folds in a log: how few objects a reader fetches by them, and that it does without those that are not there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evergrad.errors import ConfigError, CorruptRecord
from evergrad.log import ObjectStore, UpdateLog
from evergrad.replica import Replica
from evergrad.testing import FaultyStore
from tests.builders import (
    Unlisted,
    Writer,
    copy_of,
    equal_states,
    fold_name,
    fresh_log,
    fresh_store,
    snapshot_name,
    update_name,
    wide_schema,
)


def log_on(store: ObjectStore) -> UpdateLog:
    return UpdateLog(store, "memory:test")


def reader_at_the_beginning(store: Unlisted) -> Replica:
    """A replica of version 0 of a log that has more, and that asks for more from now on."""
    store.instead[update_name(1)] = None
    replica = Replica(log_on(store))
    assert replica.sync() == 0
    del store.instead[update_name(1)]
    store.asked.clear()
    return replica


@pytest.fixture(scope="module")
def long() -> tuple[Writer, dict[int, Replica]]:
    """A log of 10,000 versions, and replicas that stayed behind in it, each with its own store."""
    inner = fresh_store()
    writer, behind = Writer(log_on(inner), schema=wide_schema()).begin(), {}
    for stop in (0, 9_000, 9_900, 9_999, 10_000):
        writer.append(stop - writer.version)
        replica = Replica(log_on(Unlisted(inner)))
        if writer.version < 10_000:
            replica.sync()
            behind[10_000 - writer.version] = replica
    return writer, behind


@pytest.mark.parametrize(("versions", "most"), [(1, 3), (100, 40), (1_000, 50), (10_000, 80)])
def test_a_reader_far_behind_asks_for_few_objects(
    versions: int, most: int, long: tuple[Writer, dict[int, Replica]]
) -> None:
    writer, behind = long
    replica = behind[versions]
    store = replica.log.store
    assert isinstance(store, Unlisted)
    store.asked.clear()
    assert replica.sync() == 10_000
    assert equal_states(replica.state, writer.state)
    assert len(store.asked) <= most
    assert replica.stats().snapshots == 1


def test_levels_of_folds_are_taken_as_far_as_they_lead() -> None:
    inner = fresh_store()
    Writer(log_on(inner), schema=wide_schema(), fold_base=2).begin().append(11)
    store = Unlisted(inner)
    assert reader_at_the_beginning(store).sync() == 11
    assert [name for name in store.asked if inner.read(name) and name != "latest.json"] == [
        update_name(1),
        update_name(2),
        fold_name(2, 4),
        fold_name(4, 8),
        fold_name(8, 10),
        update_name(11),
    ]


@pytest.mark.parametrize("damage", [None, b"", b"EG", b"damaged" * 20, "cut", "other"])
def test_a_fold_that_is_missing_or_damaged_costs_its_own_span_and_no_more(damage: bytes | str | None) -> None:
    inner = fresh_store()
    writer = Writer(log_on(inner), schema=wide_schema(), fold_base=4).begin().append(40)
    whole = inner.read(fold_name(4, 8)) or b""
    found = {"cut": whole[:-1], "other": inner.read(fold_name(8, 12))}.get(str(damage), damage)
    store = Unlisted(inner, instead={fold_name(4, 8): found if isinstance(found, bytes) else None})
    replica = reader_at_the_beginning(store)
    assert replica.sync() == 40
    assert equal_states(replica.state, writer.state)
    read = {name for name in store.asked if store.inner.read(name)}
    assert {update_name(version) for version in (5, 6, 7, 8)} <= read
    assert {fold_name(8, 12), fold_name(12, 16), fold_name(16, 32), fold_name(32, 36)} <= read
    assert update_name(9) not in read
    assert (replica.stats().snapshots, replica.stats().error) == (1, None)


def test_a_fold_of_another_history_is_passed_over() -> None:
    inner, other = fresh_store(), fresh_store()
    writer = Writer(log_on(inner), schema=wide_schema(), fold_base=2).begin().append(6)
    Writer(log_on(other), schema=wide_schema(), fold_base=2, seed=9).begin().append(6)
    replica = reader_at_the_beginning(Unlisted(inner, instead={fold_name(2, 4): other.read(fold_name(2, 4))}))
    assert replica.sync() == 6
    assert equal_states(replica.state, writer.state)


def test_no_fold_is_made_over_an_update_that_starts_anew() -> None:
    log = fresh_log()
    writer = Writer(log, schema=wide_schema(), fold_base=4).begin().append(4)
    before, far = Replica(log), reader_at_the_beginning(Unlisted(log.store))
    before.sync()
    writer.append()
    writer.state = copy_of(Writer(log, schema=wide_schema(), seed=5).state)
    broken = replace(writer.next_update(), digest_before=writer.state.digest ^ 1)
    log.append(replace(broken, sections=(), digest_after=writer.state.digest))
    writer.version = 6
    log.write_folds(6, writer.state)
    log.write_snapshot(writer.snapshot())
    writer.append(10)
    assert log.folds() == [(0, 4), (8, 12), (12, 16)]
    for replica in (before, far, Replica(log)):
        assert replica.sync() == 16
        assert equal_states(replica.state, writer.state)


@pytest.mark.parametrize("part", [2, 3])
def test_no_fold_is_made_of_a_part_that_is_missing_or_damaged(part: int) -> None:
    for damage in (None, b"", b"damaged"):
        store = FaultyStore(fresh_store())
        first = Writer(log_on(store), schema=wide_schema(), fold_base=4).begin().append(3)
        again = Writer(log_on(store), schema=wide_schema())  # a restarted one, which remembers no update
        again.version, again.state = first.version, first.state
        store.instead[update_name(part)] = damage
        again.append()
        assert again.log.folds() == []


def test_folds_of_a_restarted_writer_are_the_same_bytes() -> None:
    calm, store = fresh_store(), fresh_store()
    Writer(log_on(calm), schema=wide_schema(), fold_base=2).begin().append(8)
    writer = Writer(log_on(store), schema=wide_schema(), fold_base=2).begin()
    for _ in range(8):
        following = Writer(log_on(store), schema=wide_schema())
        following.version, following.state = writer.version, writer.state
        writer = following.append()
    assert store.names("folds") == calm.names("folds")
    assert all(store.read(name) == calm.read(name) for name in calm.names("folds"))


def test_a_reader_much_behind_takes_the_snapshot_where_that_is_less() -> None:
    log = fresh_log()
    writer = Writer(log).begin()  # a model smaller than two updates
    store = Unlisted(log.store)
    replica = reader_at_the_beginning(store)
    faulty = Unlisted(log.store, instead={snapshot_name(9): b"damaged"})
    other = reader_at_the_beginning(faulty)
    writer.append(9).log.write_snapshot(writer.snapshot())
    writer.append()
    assert replica.sync() == 10
    assert (replica.stats().updates, replica.stats().snapshots) == (2, 2)
    assert equal_states(replica.state, writer.state)
    assert other.sync() == 10
    assert (other.stats().updates, other.stats().snapshots, other.stats().error) == (10, 1, None)


def test_fold_base_out_of_range_is_refused_before_anything_is_written() -> None:
    for fold_base in (1, 0, -2, (1 << 20) + 1):
        log = fresh_log()
        with pytest.raises(ConfigError, match="fold_base"):
            Writer(log, fold_base=fold_base).begin()
        assert log.store.read("evergrad.json") is None


def test_read_fold_refuses_one_of_another_span() -> None:
    store = fresh_store()
    log = log_on(FaultyStore(store))
    Writer(log, schema=wide_schema(), fold_base=2).begin().append(4)
    assert isinstance(log.store, FaultyStore)
    log.store.instead[fold_name(0, 2)] = store.read(fold_name(2, 4))
    with pytest.raises(CorruptRecord, match="it holds version 4, from 2"):
        log.read_fold(0, 2)
    assert log.read_fold(4, 6) is None
