"""What a log writes and lists; its faults are in tests/faults."""

from __future__ import annotations

import json

import pytest

from evergrad.errors import CorruptRecord
from evergrad.log import UpdateLog
from evergrad.log.root import Latest
from evergrad.replica import Replica
from evergrad.schema import Schema
from evergrad.update import short_fingerprint
from tests.builders import (
    RUN,
    TENSORS,
    Writer,
    equal_states,
    fold_name,
    fresh_log,
    new_state,
    small_schema,
    snapshot_name,
    snapshot_of,
    update_name,
    wide_schema,
)

WIDE = [("w", "F32", (8000,)), *TENSORS[1:]]


def test_begin_and_append_tell_the_bytes_of_what_they_wrote() -> None:
    log = fresh_log()
    writer = Writer(log)
    assert not log.begun()
    written = log.begin(writer.snapshot(), "package.module:build")
    assert written == len(log.store.read(snapshot_name(0)) or b"")
    assert log.begun()
    assert log.append(writer.next_update()) == len(log.store.read(update_name(1)) or b"")
    assert json.loads(log.store.read("evergrad.json") or b"") == {
        "format": 1,
        "log": f"{RUN:016x}",
        "schema": small_schema().fingerprint,
        "fold_base": 16,
        "model": "package.module:build",
    }
    assert log.store.read("latest.json") == b'{"log":"%016x","snapshot":0}' % RUN


def test_model_is_optional() -> None:
    log = fresh_log()
    log.begin(Writer(log).snapshot())
    assert UpdateLog(log.store, "memory:test").model is None
    assert b"model" not in (log.store.read("evergrad.json") or b"")


def test_read_gives_the_update_and_its_size_or_none() -> None:
    writer = Writer(fresh_log()).begin()
    update = writer.next_update()
    size = writer.log.append(update)
    found = writer.log.read(1)
    assert found is not None
    assert (found[0].version, found[0].digest_after, found[1]) == (1, update.digest_after, size)
    assert writer.log.read(2) is None


def test_versions_are_listed_as_numbers_ascending_beyond_twelve_digits() -> None:
    writer = Writer(fresh_log()).begin()
    for version in (10**12, 10**11, 9):
        writer.log.write_snapshot(snapshot_of(writer.state, version))
    assert writer.log.snapshots() == [0, 9, 10**11, 10**12]
    assert writer.log.read_snapshot(10**12).version == 10**12


def test_foreign_names_are_not_versions() -> None:
    writer = Writer(fresh_log()).begin().append()
    for name in ("updates/notes.txt", "updates/x.eg", "updates/-1.eg", "updates/1.5.eg", "updates/.eg"):
        writer.log.store.create(name, b"")
    assert writer.log.updates() == [1]


def test_snapshot_is_read_as_it_was_written_and_never_written_over() -> None:
    writer = Writer(fresh_log()).begin()
    first = writer.log.store.read(snapshot_name(0))
    other = snapshot_of(new_state(small_schema(), seed=9), 0)
    writer.log.write_snapshot(other)
    assert writer.log.store.read(snapshot_name(0)) == first
    assert equal_states(writer.log.read_snapshot(0).state, writer.state)


def test_snapshot_that_is_missing_or_under_another_name_is_refused() -> None:
    writer = Writer(fresh_log()).begin()
    writer.log.store.create(snapshot_name(5), writer.log.store.read(snapshot_name(0)) or b"")
    with pytest.raises(CorruptRecord, match="it holds version 0"):
        writer.log.read_snapshot(5)
    with pytest.raises(CorruptRecord) as caught:
        writer.log.read_snapshot(6)
    assert caught.value.name == snapshot_name(6)


def test_new_generation_takes_the_next_version_and_lists_nothing_older() -> None:
    writer = Writer(fresh_log(), schema=wide_schema(), fold_base=2).begin().append(8)
    writer.log.write_snapshot(writer.snapshot())
    schema = small_schema()
    written = writer.log.begin_anew(snapshot_of(new_state(schema), 9), 77, "package.module:other")
    assert written == (9, len(writer.log.store.read(snapshot_name(9)) or b""))
    for log in (writer.log, UpdateLog(writer.log.store, "memory:test")):
        assert (log.begins, log.schema, log.model) == (9, schema, "package.module:other")
        assert (log.id, log.fold_base) == (f"{77:016x}", 2)
        assert (log.snapshots(), log.updates(), log.folds()) == ([9], [], [])
        assert log.latest() == Latest(log.id, 9)
        assert (log.read(8), log.read(9), log.read_fold(6, 8), log.read_header(7, 8)) == (None,) * 4
        assert [*log.begin_versions(-1)] == [9]
        assert log.has_had(wide_schema())
    assert not log.has_had(Schema([("other", "F32", (1,))]))


def test_folds_of_a_new_generation_span_none_of_the_old_one() -> None:
    writer = Writer(fresh_log(), schema=wide_schema(), fold_base=2).begin().append(4)
    assert writer.log.folds() == [(0, 2), (0, 4), (2, 4)]
    writer.begin_anew(Schema([*WIDE, ("late", "F32", (5,))])).append(3)
    assert writer.version == 8
    assert writer.log.folds() == [(6, 8)]
    found = writer.log.read_fold(6, 8)
    assert found is not None
    assert found[0].schema == short_fingerprint(writer.schema)


def test_old_generations_are_pruned_with_the_window() -> None:
    writer = Writer(fresh_log(), schema=wide_schema(), fold_base=2).begin().append(4)
    writer.begin_anew(Schema([*WIDE, ("late", "F32", (5,))])).append(3)
    store = writer.log.store
    assert writer.log.prune(5) == [
        snapshot_name(0),
        *(fold_name(*span) for span in [(0, 2), (0, 4), (2, 4)]),
        *map(update_name, (1, 2, 3)),
    ]
    assert store.names("updates") == [update_name(version) for version in range(4, 9)]
    assert writer.log.prune(3) == [update_name(version) for version in (4, 5)]
    assert Replica(writer.log).sync() == 8
