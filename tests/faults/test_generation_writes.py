"""A crash between any two writes that begin a new generation, and a write that is done and reported as failed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from evergrad import maintain
from evergrad.errors import EvergradError, LogUnavailable, SchemaMismatch, WriterConflict
from evergrad.log import ObjectStore, UpdateLog
from evergrad.replica import Replica
from evergrad.schema import Schema
from evergrad.testing import FaultyStore
from tests.builders import (
    TENSORS,
    Unlisted,
    Writer,
    copy_of,
    equal_states,
    fresh_store,
    new_state,
    small_schema,
    snapshot_name,
    snapshot_of,
    update_name,
)
from tests.faults.test_log_writes import Dying, again

GROWN = Schema([*TENSORS, ("late", "F32", (5,))], {"w_tied": "w"})
WRITES = [f"schema/{GROWN.fingerprint}.json", update_name(4), snapshot_name(4), "evergrad.json", "latest.json"]
POINTS = [pytest.param(at, id=f"{at} {name}") for at, name in enumerate([*WRITES, "nothing"])]
LISTED = [pytest.param(lambda store: store, id="listed"), pytest.param(Unlisted, id="unlisted")]
View = Callable[[ObjectStore], ObjectStore]


def log_on(store: ObjectStore) -> UpdateLog:
    return UpdateLog(store, "memory:test")


def three_versions(store: ObjectStore) -> Writer:
    return Writer(log_on(store)).begin().append(3)


def begun_until(point: int, store: ObjectStore) -> Writer:
    """A writer that ended before a write of a new generation; nothing: it did not."""
    three_versions(store)
    dying = Dying(store, point)
    writer = Writer(log_on(dying), version=3)
    if point == len(WRITES):
        return writer.begin_anew(GROWN)
    with pytest.raises(LogUnavailable, match=f"killed before {WRITES[point]}"):
        writer.begin_anew(GROWN)
    return writer


def test_the_points_below_are_all_writes_in_the_order_that_the_layout_tells() -> None:
    store = fresh_store()
    three_versions(store)
    dying = Dying(store)
    Writer(log_on(dying), version=3).begin_anew(GROWN)
    assert dying.order == WRITES


@pytest.mark.parametrize("view", LISTED)
@pytest.mark.parametrize("point", POINTS)
def test_a_reader_of_the_old_model_keeps_its_last_version(point: int, view: View) -> None:
    store = fresh_store()
    writer = three_versions(store)
    reader = Replica(log_on(view(store)))
    reader.sync()
    dying = Writer(log_on(Dying(store, point)), version=3)
    if point < len(WRITES):
        with pytest.raises(LogUnavailable):
            dying.begin_anew(GROWN)
    else:
        dying.begin_anew(GROWN)
    for _ in range(2):
        if point < 2:
            assert reader.sync() == 3
        else:
            expected = SchemaMismatch if point == len(WRITES) else EvergradError
            with pytest.raises(expected) as caught:
                reader.sync()
            assert reader.stats().error is caught.value
        assert reader.version == 3
        assert equal_states(reader.state, writer.state)


@pytest.mark.parametrize("view", LISTED)
@pytest.mark.parametrize("point", POINTS)
def test_a_new_reader_begins_with_what_has_begun(point: int, view: View) -> None:
    store = fresh_store()
    begun_until(point, store)
    reader = Replica(log_on(view(store)))
    if point == 4 and view is Unlisted:
        with pytest.raises(EvergradError, match="no version yet"):
            reader.sync()
    elif point in (2, 3):
        with pytest.raises(EvergradError, match="schema"):
            reader.sync()
        assert (reader.version, reader.schema) == (3, small_schema())
    else:
        version = 4 if point >= 4 else 3
        assert reader.sync() == version
        assert reader.schema == (GROWN if version == 4 else small_schema())


@pytest.mark.parametrize("point", POINTS[:-1])
def test_the_generation_is_begun_again_by_the_same_run_and_by_another(point: int) -> None:
    for run in (1, 2):
        store = fresh_store()
        begun_until(point, store)
        taken = point >= 2
        writer = Writer(log_on(store), version=3, run=run)
        if taken:
            with pytest.raises(WriterConflict, match="run 0123456789abcdef"):
                writer.begin_anew(GROWN)
            writer.version = 4
        writer.begin_anew(GROWN).append(2)
        assert writer.version == (7 if taken else 6)
        reader = Replica(log_on(Unlisted(store)))
        assert reader.sync() == writer.version
        assert equal_states(reader.state, writer.state)
        assert maintain.verify(log_on(store)).problems == ()


@pytest.mark.parametrize("changed", [False, True], ids=["same state", "other state"])
@pytest.mark.parametrize("name", WRITES)
def test_a_write_that_is_done_and_reported_as_failed_is_retried(name: str, changed: bool) -> None:
    store = fresh_store()
    faulty = FaultyStore(store)
    writer = Writer(log_on(faulty)).begin().append(3)
    faulty.fail_after_create = {name}
    if changed:
        with pytest.raises(LogUnavailable):
            writer.begin_anew(GROWN)
        writer.seed += 1
        writer.begin_anew(GROWN)
    else:
        again(lambda: writer.begin_anew(GROWN))
    assert not faulty.fail_after_create, "the fault happened"
    assert writer.version == (5 if changed and name != WRITES[0] else 4)
    writer.append(2)
    reader = Replica(log_on(Unlisted(store)))
    assert reader.sync() == writer.version
    assert equal_states(reader.state, writer.state)
    assert maintain.verify(log_on(store)).problems == ()


@pytest.mark.parametrize("point", [2, 3])
def test_the_old_model_goes_on_after_a_generation_that_never_began(point: int) -> None:
    store = fresh_store()
    begun_until(point, store)
    reader = Replica(log_on(Unlisted(store)))
    with pytest.raises(EvergradError, match="schema"):
        reader.sync()
    log = log_on(store)
    log.point_at_newest()
    latest = log.latest()
    assert latest is not None
    assert latest.snapshot == 0, "the snapshot of the other schema is nobody's beginning"
    writer = Writer(log, version=4)
    writer.state = copy_of(reader.state)
    writer.append()
    log.write_snapshot(writer.snapshot())
    for found in (reader, Replica(log_on(store)), Replica(log_on(Unlisted(store)))):
        assert found.sync() == 5
        assert equal_states(found.state, writer.state)


def test_of_two_publishers_one_of_which_begins_a_generation_the_other_is_told() -> None:
    store = fresh_store()
    three_versions(store)
    other = Writer(log_on(store), version=3, run=7)
    Writer(log_on(store), version=3).begin_anew(GROWN)
    with pytest.raises(WriterConflict, match="version 4"):
        other.append()
    with pytest.raises(WriterConflict, match="version 4"):
        other.log.begin_anew(snapshot_of(new_state(GROWN), 4, run=7), 7)
