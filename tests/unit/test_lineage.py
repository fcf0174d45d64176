"""Which examples led to which version, also where a log is damaged, pruned, old, or was rolled back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evergrad import lineage, maintain
from evergrad.errors import CorruptRecord, ReadOnlyLog, VersionNotInLog
from evergrad.log import UpdateLog
from evergrad.schema import Schema
from tests.builders import (
    NEWEST_US,
    RUN,
    TENSORS,
    Unlisted,
    Writer,
    fold_name,
    fresh_log,
    fresh_store,
    new_state,
    snapshot_of,
    steps,
    update_name,
    update_of,
    values,
    wide_schema,
)


def written(count: int = 40, **settings: int) -> Writer:
    """Version v of it learned from 8 examples, the first of them 8 * (v - 1)."""
    return Writer(fresh_log(), schema=wide_schema(), **{"examples_each": 8, **settings}).begin().append(count)


def test_blame_tells_examples_writer_time_and_what_moved() -> None:
    found = lineage.blame(written(5).log, 3)
    assert (found.version, found.run, found.newest_us) == (3, RUN, NEWEST_US + 2_000_000)
    assert found.examples == range(16, 24)
    assert found.moved == (("w", 2), ("count", 1))
    assert found.elements == 3
    assert found.update_bytes < 100


def test_blame_without_lineage_says_none() -> None:
    writer = written(3, examples_each=0)
    assert lineage.blame(writer.log, 3).examples is None
    maintain.rollback(writer.log, 1)
    assert lineage.blame(writer.log, 4).examples is None


def test_an_element_that_several_sections_write_counts_once_and_in_its_own_tensor() -> None:
    tensors = [("none", "F32", (0, 3)), ("a", "F32", (5,)), ("empty", "F32", (0,)), ("b", "F32", (5,))]
    schema = Schema([*tensors, ("last", "F32", (0,)), ("n", "I64", (4,)), ("end", "I64", (0,))])
    log, state = fresh_log(), new_state(schema)
    log.begin(snapshot_of(state, 0))
    log.append(update_of(state, 0, steps([0, 4, 5, 9]), steps([4, 5, 6]), values([10, 13], [1, 2], "I64")))
    assert lineage.blame(log, 1).moved == (("b", 3), ("a", 2), ("n", 2))
    log.append(update_of(state, 1))
    assert lineage.blame(log, 2).moved == ()


@pytest.mark.parametrize("version", [-1, 0, 6])
def test_a_version_that_no_update_leads_to_is_named(version: int) -> None:
    log = written(5).log
    with pytest.raises(VersionNotInLog, match=f"version {version} .* the updates that lead to 1 to 5"):
        lineage.blame(log, version)
    with pytest.raises(VersionNotInLog, match="can only be asked for by name"):
        lineage.blame(UpdateLog(Unlisted(log.store), log.url), version)
    with pytest.raises(VersionNotInLog, match="which holds no update"):
        lineage.blame(Writer(fresh_log()).begin().log, version)


def test_a_damaged_version_is_named() -> None:
    log = written(5).log
    log.store.replace(update_name(3), b"EG")
    with pytest.raises(CorruptRecord, match=update_name(3)):
        lineage.blame(log, 3)


@pytest.mark.parametrize("fold_base", [2, 16])
def test_every_example_is_found_in_the_version_that_learned_from_it(fold_base: int) -> None:
    log = written(40, fold_base=fold_base).log
    for example in range(0, 320, 5):
        found = lineage.first_to_name(log, example)
        assert (found.version, found.searched, found.unread) == (1 + example // 8, range(1, 41), ())
    assert [lineage.first_to_name(log, example).version for example in (-1, 320, 1 << 70)] == [None] * 3


def test_folds_are_passed_over_where_they_do_not_name_the_example() -> None:
    inner = fresh_store()
    Writer(UpdateLog(inner, "memory:test"), schema=wide_schema(), examples_each=8).begin().append(600)
    asked: list[str] = []

    class Recorded(Unlisted):
        def names(self, prefix: str) -> list[str]:
            return inner.names(prefix)

    store = Recorded(inner, asked=asked)
    seen: list[tuple[int, int]] = []
    found = lineage.first_to_name(
        UpdateLog(store, "memory:test"), 8 * 530, lambda done, total: seen.append((done, total))
    )
    assert found.version == 531
    read = [name for name in asked if name.endswith(".eg")]
    assert read[:2] == [fold_name(0, 256), fold_name(256, 512)]
    assert len(read) == 2 + 2 + 3, "two folds of 256, two of 16, and the updates from 529 on"
    assert seen[0] == (0, 600)
    assert seen == sorted(seen)


def test_the_first_of_several_is_found_also_behind_one_that_names_later_examples() -> None:
    log = fresh_log()
    writer = Writer(log, schema=wide_schema(), fold_base=2).begin()
    for examples in (range(50, 60), None, range(10, 20), range(15, 25), None, range(10, 20)):
        update = replace(writer.next_update(), examples=examples)
        log.append(update)
        writer.state.commit(writer.state.check(update, writer.version))
        writer.version = update.version
        log.write_folds(writer.version)
    assert {example: lineage.first_to_name(log, example).version for example in (9, 10, 15, 24, 55, 30)} == {
        9: None, 10: 3, 15: 3, 24: 4, 55: 1, 30: None,
    }  # fmt: skip


def test_versions_that_cannot_be_read_are_passed_over_and_told() -> None:
    log = written(40).log
    for name in (update_name(3), fold_name(0, 16), fold_name(16, 32)):
        log.store.replace(name, b"EG")
    log.store.delete(update_name(5))
    found = lineage.first_to_name(log, 8 * 30)
    assert (found.version, found.unread) == (31, (3, 5))
    assert lineage.first_to_name(log, 2 * 8).version is None


def test_a_pruned_log_is_searched_as_far_as_it_reaches() -> None:
    writer = written(40)
    writer.log.write_snapshot(writer.snapshot())
    writer.log.prune(10)
    assert lineage.first_to_name(writer.log, 8 * 35).version == 36
    gone = lineage.first_to_name(writer.log, 8 * 20)
    assert (gone.version, gone.searched) == (None, range(31, 41))


def test_a_log_without_updates_or_listings() -> None:
    found = lineage.first_to_name(Writer(fresh_log()).begin().log, 3)
    assert (found.version, found.searched) == (None, range(0))
    with pytest.raises(ReadOnlyLog):
        lineage.first_to_name(UpdateLog(Unlisted(written(3).log.store), "unlisted:"), 3)


def test_an_older_generation_is_neither_blamed_nor_searched() -> None:
    writer = written(20).begin_anew(Schema([*TENSORS, ("late", "F32", (5,))])).append(3)
    with pytest.raises(VersionNotInLog, match="the updates that lead to 22 to 24"):
        lineage.blame(writer.log, 20)
    with pytest.raises(VersionNotInLog, match="the updates that lead to 22 to 24"):
        lineage.blame(writer.log, 21)
    assert lineage.blame(writer.log, 22).moved == (("w", 2), ("count", 1))
    found = lineage.first_to_name(writer.log, 8 * 22)
    assert (found.version, found.searched) == (23, range(22, 25))
    assert lineage.first_to_name(writer.log, 8).version is None
