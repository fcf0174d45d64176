"""Faults of the writer and its store, each at a named point: then every reader equals the writer bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evergrad.codec import decode, encode
from evergrad.errors import (
    BaseMismatch,
    CorruptRecord,
    LogNotFound,
    SchemaMismatch,
    UnsupportedFormat,
    WriterConflict,
)
from evergrad.log import ObjectStore, UpdateLog, open_log
from evergrad.replica import Replica
from evergrad.schema import Schema
from evergrad.testing import FaultyStore
from tests.builders import (
    TENSORS,
    Writer,
    equal_states,
    fresh_store,
    new_state,
    small_schema,
    snapshot_name,
    snapshot_of,
    update_name,
)


def log_on(store: ObjectStore) -> UpdateLog:
    return UpdateLog(store, "memory:test")


def restarted(log: UpdateLog) -> Writer:
    """What a publisher does that starts on a log that may hold something."""
    writer = Writer(log)
    if not log.begun():
        return writer.begin()
    replica = Replica(log)
    writer.version, writer.state = replica.sync(), replica.state
    return writer


@pytest.mark.parametrize("cut", [0, 1, 63, 64, 70, -1])
@pytest.mark.parametrize("snapshot", [False, True], ids=["no snapshot", "later snapshot"])
def test_truncated_update_keeps_the_last_good_version_until_a_snapshot_heals_it(cut: int, snapshot: bool) -> None:
    store = fresh_store()
    writer = Writer(log_on(store)).begin().append(4)
    good = Replica(log_on(FaultyStore(store, instead={update_name(3): None})))
    good.sync()
    data = store.read(update_name(3))
    assert data is not None
    reader = Replica(log_on(FaultyStore(store, instead={update_name(3): data[:cut]})))
    if snapshot:
        writer.log.write_snapshot(writer.snapshot())
        assert reader.sync() == 4
        assert equal_states(reader.state, writer.state)
        assert reader.stats().error is None
        return
    for _ in range(2):
        with pytest.raises(CorruptRecord) as caught:
            reader.sync()
        assert caught.value.name == update_name(3)
        assert (reader.version, reader.stats().error) == (2, caught.value)
        assert equal_states(reader.state, good.state)


def test_lost_update_ends_the_log_until_a_later_snapshot_heals_it() -> None:
    store = fresh_store()
    writer = Writer(log_on(store)).begin().append(4)
    reader = Replica(log_on(FaultyStore(store, instead={update_name(3): None})))
    assert reader.sync() == 2
    writer.log.write_snapshot(writer.snapshot())
    writer.append(2)
    assert reader.sync() == 6
    assert equal_states(reader.state, writer.state)
    assert (reader.stats().updates, reader.stats().snapshots) == (4, 2)


def test_lost_update_with_a_damaged_later_snapshot_is_told_and_nothing_moves() -> None:
    store = fresh_store()
    writer = Writer(log_on(store)).begin().append(4)
    writer.log.write_snapshot(writer.snapshot())
    faults: dict[str, bytes | None] = {update_name(3): None, snapshot_name(4): b"damaged"}
    reader = Replica(log_on(FaultyStore(store, instead=faults)))
    with pytest.raises(CorruptRecord) as caught:
        reader.sync()
    assert (caught.value.name, reader.version) == (snapshot_name(4), 2)


def test_newer_update_format_is_told_and_a_snapshot_of_this_format_heals_it() -> None:
    store = fresh_store()
    writer = Writer(log_on(store)).begin().append(2)
    data = store.read(update_name(2))
    assert data is not None
    reader = Replica(log_on(FaultyStore(store, instead={update_name(2): data[:2] + b"\x02" + data[3:]})))
    with pytest.raises(UnsupportedFormat) as caught:
        reader.sync()
    assert (caught.value.name, caught.value.found, reader.version) == (update_name(2), 2, 1)
    writer.log.write_snapshot(writer.snapshot())
    assert reader.sync() == 2


@pytest.mark.parametrize("wrong", ["version", "swapped"])
def test_update_under_another_versions_name_is_refused(wrong: str) -> None:
    store = fresh_store()
    Writer(log_on(store)).begin().append(3)
    data = store.read(update_name(2 if wrong == "version" else 3))
    reader = Replica(log_on(FaultyStore(store, instead={update_name(1): data})))
    with pytest.raises(CorruptRecord, match="it holds version"):
        reader.sync()
    assert reader.version == 0


def test_second_writer_is_told_of_the_conflict_and_by_whom() -> None:
    store = fresh_store()
    Writer(log_on(store)).begin().append(2)
    second = restarted(log_on(store))
    first = restarted(log_on(store)).append()
    late = second.next_update()
    with pytest.raises(WriterConflict) as caught:
        second.log.append(replace(late, newest_us=1))
    assert (caught.value.version, caught.value.writer) == (3, "run 0123456789abcdef")
    reader = Replica(log_on(store))
    assert reader.sync() == 3
    assert equal_states(reader.state, first.state)


def test_conflict_with_an_unreadable_update_is_a_conflict_all_the_same() -> None:
    store = fresh_store()
    writer = Writer(log_on(store)).begin()
    store.create(update_name(1), b"what?")
    with pytest.raises(WriterConflict, match="a writer that left it unreadable"):
        writer.append()


def test_two_that_begin_one_log_are_told_apart() -> None:
    store = fresh_store()
    Writer(log_on(store), seed=1).begin()
    with pytest.raises(WriterConflict) as caught:
        Writer(log_on(store), seed=2).begin()
    assert caught.value.version == 0
    Writer(log_on(store), seed=1).begin()  # equal in every byte: a retry


def test_log_of_another_model_names_tensor_expected_and_found() -> None:
    store = fresh_store()
    Writer(log_on(store)).begin()
    other = Schema([TENSORS[0], ("b", "F32", (5,)), *TENSORS[2:]], {"w_tied": "w"})
    with pytest.raises(SchemaMismatch) as caught:
        log_on(store).begin(snapshot_of(new_state(other), 0))
    assert (caught.value.tensor, caught.value.expected, caught.value.found) == ("b", "F32 [4]", "F32 [5]")
    assert store.names("snapshots") == [snapshot_name(0)]


def test_place_that_is_not_there_is_told() -> None:
    with pytest.raises(LogNotFound, match="file:nowhere/at/all"):
        Replica("file:nowhere/at/all").sync()
    with pytest.raises(LogNotFound):
        open_log("file:nowhere/at/all").begin(Writer(log_on(fresh_store())).snapshot())


@pytest.mark.parametrize(
    ("root", "error"),
    [
        (b"", CorruptRecord),
        (b"{}", CorruptRecord),
        (b'{"format": 2}', UnsupportedFormat),
        (b'{"format":1,"log":"%016x","schema":"%032x","fold_base":2,"begins":-1}' % (1, 1), CorruptRecord),
        (b'{"format":1,"log":"%016x","schema":"%032x","fold_base":2,"begins":%d}' % (1, 1, 1 << 63), CorruptRecord),
    ],
    ids=["empty", "incomplete", "newer", "before 0", "beyond 2^63"],
)
def test_unreadable_root_is_told_to_reader_and_writer(root: bytes, error: type[Exception]) -> None:
    store = fresh_store()
    Writer(log_on(store)).begin()
    faulty = FaultyStore(store, instead={"evergrad.json": root})
    with pytest.raises(error, match=r"evergrad\.json"):
        Replica(log_on(faulty)).sync()
    with pytest.raises(error, match=r"evergrad\.json"):
        Writer(log_on(faulty)).begin()


def test_update_of_another_schema_under_a_true_checksum_is_refused() -> None:
    store = fresh_store()
    writer = Writer(log_on(store)).begin()
    forged = encode(replace(writer.next_update(), schema=1))
    assert decode(forged, small_schema()).schema == 1
    reader = Replica(log_on(FaultyStore(store, instead={update_name(1): forged})))
    with pytest.raises(BaseMismatch, match="schema 0000000000000001"):
        reader.sync()
    assert reader.version == 0
