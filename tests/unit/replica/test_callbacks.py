"""Pins and callbacks: what readers see of a move, and that nothing they do stops it."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest

from evergrad.log import UpdateLog
from evergrad.replica import Applied, Replica
from tests.builders import Writer, copy_of, equal_states, fresh_log, update_name


def synced(count: int = 0) -> tuple[Writer, Replica]:
    writer = Writer(fresh_log()).begin().append(count)
    replica = Replica(writer.log)
    replica.sync()
    return writer, replica


def test_callbacks_are_told_of_each_version_in_order_with_what_was_written() -> None:
    writer, replica = synced()
    told: list[tuple[str, Applied]] = []
    before = copy_of(replica.state)
    replica.on_update(lambda applied: told.append(("first", applied)))
    replica.on_update(lambda applied: told.append(("second", applied)))
    writer.append(2)
    replica.sync()
    assert [(who, applied.version) for who, applied in told] == [
        ("first", 1),
        ("second", 1),
        ("first", 2),
        ("second", 2),
    ]
    assert told[-1][1].digest == writer.state.digest
    for _, applied in told:
        assert applied.touched is not None
        for group, positions in applied.touched:
            before.arrays[group][positions] = replica.state.arrays[group][positions]
    assert all(np.array_equal(a, b) for a, b in zip(before.arrays, replica.state.arrays, strict=True)), "all that moved"


def test_a_snapshot_is_told_as_everything() -> None:
    writer = Writer(fresh_log()).begin()
    replica, told = Replica(writer.log), []
    replica.on_update(told.append)
    replica.sync()
    assert [(each.version, each.digest, each.touched) for each in told] == [(0, writer.state.digest, None)]


def test_a_callback_sees_the_new_version_and_may_pin_it() -> None:
    writer, replica = synced()
    seen = []

    def look(applied: Applied) -> None:
        with replica.pin() as version, replica.pin():
            seen.append((version, replica.digest, applied.digest, replica.stats().version))

    replica.on_update(look)
    writer.append()
    replica.sync()
    digest = writer.state.digest
    assert seen == [(1, digest, digest, 1)]


def test_an_exception_in_a_callback_is_logged_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    writer, replica = synced()
    told = []

    def fails(applied: Applied) -> None:
        raise ZeroDivisionError(f"at {applied.version}")

    replica.on_update(fails)
    replica.on_update(told.append)
    writer.append(2)
    with caplog.at_level(logging.ERROR, "evergrad.replica"):
        assert replica.sync() == 2
    assert [each.version for each in told] == [1, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "a callback failed at version 1",
        "a callback failed at version 2",
    ]
    assert equal_states(replica.state, writer.state)
    assert replica.stats().error is None


def test_a_callback_ends_when_told_also_from_inside_itself() -> None:
    writer, replica = synced()
    told: list[tuple[str, int]] = []
    end = replica.on_update(lambda applied: told.append(("ended outside", applied.version)))

    def once(applied: Applied) -> None:
        told.append(("once", applied.version))
        end_once()

    end_once = replica.on_update(once)
    replica.on_update(lambda applied: told.append(("stays", applied.version)))
    writer.append()
    replica.sync()
    end()
    writer.append()
    replica.sync()
    assert told == [("ended outside", 1), ("once", 1), ("stays", 1), ("stays", 2)]


def test_to_move_the_version_from_inside_a_pin_or_a_callback_is_told_and_not_waited_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    writer, replica = synced(1)
    writer.append()
    with replica.pin():
        for move in (replica.sync, lambda: replica.rollback(0)):
            with pytest.raises(RuntimeError, match=r"end pin\(\)"):
                move()
    errors = []

    def moves(applied: Applied) -> None:
        try:
            replica.sync()
        except RuntimeError as error:
            errors.append(error)

    replica.on_update(moves)
    assert replica.sync() == 2
    assert len(errors) == 1


def test_two_threads_pin_at_once_while_an_update_waits_and_one_pins_again_inside() -> None:
    writer, replica = synced(1)
    writer.append()
    both, checked = threading.Barrier(3, timeout=60), threading.Barrier(3, timeout=60)
    seen = []

    def read() -> None:
        with replica.pin() as version:
            both.wait()
            checked.wait()  # by now an update waits for both
            with replica.pin() as inner:
                seen.append((version, inner, replica.version))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in readers:
        thread.start()
    both.wait()
    syncing = threading.Thread(target=replica.sync)
    syncing.start()
    pause = threading.Event()
    while not replica._lock._writers_waiting:
        pause.wait(0.001)
    assert replica.version == 1
    checked.wait()
    for thread in [*readers, syncing]:
        thread.join(60)
    assert seen == [(1, 1, 1)] * 2
    assert replica.version == 2
    assert equal_states(replica.state, writer.state)


def test_an_update_that_is_refused_is_told_to_nobody() -> None:
    writer, replica = synced()
    told = []
    replica.on_update(told.append)
    writer.append(2)
    writer.log.store.delete(update_name(1))
    assert replica.sync() == 0
    assert told == []
    assert UpdateLog(writer.log.store, "memory:test").updates() == [2]
