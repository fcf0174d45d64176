"""Looking at an older version for a moment: bit for bit that version, alone, and the newest one afterwards."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from evergrad.errors import NotSynced, VersionNotHeld
from evergrad.replica import Applied, Replica
from evergrad.update import State, digest
from tests.builders import NEWEST_US, copy_of, equal_states, update_name
from tests.unit.replica.test_undo import followed, wide_writer


@pytest.mark.parametrize("version", range(7))
def test_each_held_version_is_there_bit_for_bit_and_the_head_again_after_it(version: int) -> None:
    writer = wide_writer()
    replica = Replica(writer.log)
    states = followed(writer, replica, 6)
    with replica.at(version) as found:
        assert (found, replica.version) == (version, version)
        assert equal_states(replica.state, states[version])
        assert replica.digest == digest(replica.schema, replica.state.arrays)
        assert replica.stats().newest_us == (NEWEST_US + (version - 1) * 1_000_000 if version else NEWEST_US)
    assert replica.version == 6
    assert equal_states(replica.state, states[6])
    assert replica.digest == digest(replica.schema, replica.state.arrays)
    assert replica.versions == list(range(7)), "nothing was forgotten"
    writer.append()
    assert replica.sync() == 7, "nothing is held"
    assert not replica.stats().rollbacks


def test_what_is_not_held_is_told_and_nothing_moves() -> None:
    writer = wide_writer()
    replica = Replica(writer.log, undo_bytes=1000)
    states = followed(writer, replica, 6)
    for version in (0, 7, -1):
        with pytest.raises(VersionNotHeld) as caught, replica.at(version):
            raise AssertionError("not reached")
        assert caught.value.held == replica.versions
    assert equal_states(replica.state, states[6])
    with pytest.raises(NotSynced), Replica(wide_writer().log).at(0):
        raise AssertionError("not reached")


def test_an_error_inside_leaves_the_head() -> None:
    writer = wide_writer()
    replica = Replica(writer.log)
    states = followed(writer, replica, 3)
    with pytest.raises(ZeroDivisionError), replica.at(1):
        raise ZeroDivisionError
    assert (replica.version, equal_states(replica.state, states[3])) == (3, True)


def _same(mirror: State, state: State) -> bool:
    return all(np.array_equal(mine, own) for mine, own in zip(mirror.arrays, state.arrays, strict=True))


def test_callbacks_follow_there_and_back() -> None:
    writer = wide_writer()
    replica = Replica(writer.log)
    states = followed(writer, replica, 3)
    mirror, told = copy_of(replica.state), []

    def follow(applied: Applied) -> None:
        told.append((applied.version, applied.digest))
        for group, positions in applied.touched or ():
            mirror.arrays[group][positions] = replica.state.arrays[group][positions]

    replica.on_update(follow)
    with replica.at(1):
        assert _same(mirror, states[1])
    assert _same(mirror, states[3])
    assert [version for version, _ in told] == [2, 1, 2, 3]
    assert told[-1] == (3, replica.digest)


def test_it_needs_a_thread_that_holds_nothing() -> None:
    writer = wide_writer()
    replica = Replica(writer.log)
    followed(writer, replica, 2)
    with replica.pin(), pytest.raises(RuntimeError), replica.at(1):
        raise AssertionError("not reached")


def test_others_wait_and_see_the_head_alone() -> None:
    writer = wide_writer()
    replica = Replica(writer.log)
    followed(writer, replica, 5)
    seen: list[int] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            with replica.pin() as version:
                seen.append(version)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(200):
            with replica.at(2):
                assert replica.version == 2
    finally:
        stop.set()
        thread.join()
    assert set(seen) == {5}


def test_an_update_refused_is_counted_and_those_applied_take_time() -> None:
    writer = wide_writer()
    replica = Replica(writer.log)
    followed(writer, replica, 2)
    assert (replica.stats().rejects, replica.stats().apply_s > 0) == (0, True)
    writer.append()
    name = update_name(3)
    data = bytearray(writer.log.store.read(name) or b"")
    data[-1] ^= 1
    writer.log.store.delete(name)
    writer.log.store.create(name, bytes(data))
    with pytest.raises(Exception, match="damaged"):
        replica.sync()
    assert replica.stats().rejects == 1


def test_following_goes_on_beside_it() -> None:
    writer = wide_writer()
    replica = Replica(writer.log)
    followed(writer, replica, 5)
    errors: list[Exception] = []
    pause = threading.Event()

    def append_and_sync() -> None:
        try:
            for _ in range(20):
                writer.append()
                replica.sync()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=append_and_sync)
    thread.start()
    while thread.is_alive():
        with replica.at(3) as version:
            assert (replica.version, replica.stats().version) == (version, 3)
        pause.wait(0.001)  # in a server, other work comes between
    thread.join()
    assert not errors
    assert (replica.version, replica.stats().rejects) == (25, 0)
    assert equal_states(replica.state, writer.state)
