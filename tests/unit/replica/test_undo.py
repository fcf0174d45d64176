"""Going back: to every version that is held, bit for bit, in bounded memory, and forwards again."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from evergrad.errors import NotSynced, VersionNotHeld
from evergrad.log import UpdateLog
from evergrad.replica import Applied, Replica
from evergrad.update import State, digest
from tests.builders import (
    NEWEST_US,
    WatchedStore,
    Writer,
    copy_of,
    equal_states,
    fresh_log,
    fresh_store,
    steps,
    update_name,
    update_of,
    wide_schema,
)


def wide_writer(**settings: int) -> Writer:
    return Writer(fresh_log(), schema=wide_schema(), **settings).begin()


def followed(writer: Writer, replica: Replica, count: int) -> list[State]:
    """Appends, one version at a time; gives a copy of the state at each version from the one before on."""
    replica.sync()
    states = [copy_of(writer.state)]
    for _ in range(count):
        writer.append()
        replica.sync()
        states.append(copy_of(writer.state))
    return states


@pytest.mark.parametrize("to", range(7))
def test_rollback_to_each_held_version_is_bit_exact_and_its_digest_true(to: int) -> None:
    writer = wide_writer()
    replica = Replica(writer.log)
    states = followed(writer, replica, 6)
    assert replica.rollback(to) == replica.version == to
    assert equal_states(replica.state, states[to])
    assert replica.digest == digest(replica.schema, replica.state.arrays)
    assert replica.stats().newest_us == (NEWEST_US + (to - 1) * 1_000_000 if to else NEWEST_US)
    assert (replica.stats().held, replica.stats().rollbacks) == (True, 1)


def test_rollback_twice_and_catching_up_again() -> None:
    writer = wide_writer()
    replica = Replica(writer.log)
    states = followed(writer, replica, 6)
    replica.rollback(4)
    replica.rollback(1)
    assert equal_states(replica.state, states[1])
    with pytest.raises(VersionNotHeld) as caught:
        replica.rollback(4)
    assert (caught.value.version, caught.value.held) == (4, [0, 1])
    writer.append()
    assert replica.sync() == 1, "held"
    assert equal_states(replica.state, states[1])
    replica.resume()
    assert replica.sync() == 7
    assert equal_states(replica.state, writer.state)
    replica.rollback(3)
    assert equal_states(replica.state, states[3])
    assert replica.stats().rollbacks == 3


def test_rollback_to_its_own_version_holds_it() -> None:
    writer = wide_writer()
    replica = Replica(writer.log)
    followed(writer, replica, 2)
    assert replica.rollback(2) == 2
    writer.append()
    assert replica.sync() == 2
    replica.resume()
    assert replica.sync() == 3


@pytest.mark.parametrize("to", [-1, 7, 100])
def test_a_version_that_is_not_held_is_refused_and_nothing_moves(to: int) -> None:
    writer = wide_writer()
    replica = Replica(writer.log)
    with pytest.raises(NotSynced):
        replica.rollback(0)
    followed(writer, replica, 6)
    with pytest.raises(VersionNotHeld) as caught:
        replica.rollback(to)
    assert (caught.value.version, caught.value.held) == (to, [0, 1, 2, 3, 4, 5, 6])
    assert (replica.version, replica.stats().held, replica.stats().rollbacks) == (6, False, 0)
    assert equal_states(replica.state, writer.state)


@pytest.mark.parametrize("most", [0, 1, 199, 250, 500, 1000, 2000, 1 << 20])
def test_the_ring_never_holds_more_bytes_than_told(most: int) -> None:
    writer = wide_writer()
    replica = Replica(writer.log, undo_bytes=most)
    replica.sync()
    states, rng = [copy_of(writer.state)], np.random.default_rng(1)
    for version in range(20):
        at = np.sort(rng.choice(8000, size=int(rng.integers(1, 60)), replace=False))
        update = update_of(writer.state, version, steps(at.tolist()))
        writer.log.append(update)
        writer.state.commit(writer.state.check(update, version))
        states.append(copy_of(writer.state))
        replica.sync()
        assert replica.stats().undo_bytes <= most
    with pytest.raises(VersionNotHeld) as caught:
        replica.rollback(-1)
    held = caught.value.held
    assert held == list(range(held[0], 21))
    assert len(held) == 1 if most < 200 else len(held) <= 1 + most // 200
    if most == 1 << 20:
        assert held[0] == 0
    assert replica.rollback(held[0]) == held[0]
    assert equal_states(replica.state, states[held[0]])
    assert replica.stats().undo_bytes == 0


def test_after_a_fold_the_version_before_it_is_held() -> None:
    writer = wide_writer(fold_base=4)
    replica = Replica(writer.log)
    replica.sync()
    states = [copy_of(writer.append().state) for _ in range(9)]
    assert replica.sync() == 9
    with pytest.raises(VersionNotHeld) as caught:
        replica.rollback(6)
    assert caught.value.held == [0, 1, 2, 3, 4, 8, 9]
    replica.rollback(4)
    assert equal_states(replica.state, states[3])


def test_a_snapshot_that_is_loaded_clears_the_ring() -> None:
    writer = wide_writer()
    replica = Replica(writer.log)
    followed(writer, replica, 3)
    writer.append()
    writer.log.store.delete(update_name(4))
    writer.log.write_snapshot(writer.snapshot())
    assert replica.sync() == 4
    assert (replica.stats().snapshots, replica.stats().undo_bytes) == (2, 0)
    with pytest.raises(VersionNotHeld) as caught:
        replica.rollback(3)
    assert caught.value.held == [4]


def test_weights_and_callbacks_follow_a_rollback() -> None:
    writer = wide_writer()
    replica = Replica(writer.log)
    states = followed(writer, replica, 3)
    weights, told = replica.weights, []
    replica.on_update(told.append)
    replica.rollback(1)
    assert np.array_equal(weights["w"], states[1].tensors()["w"])
    assert [(each.version, each.digest) for each in told] == [(2, states[2].digest), (1, states[1].digest)]
    assert all(each.touched for each in told)


def test_held_while_it_follows_until_resume() -> None:
    inner = fresh_store()
    writer = Writer(UpdateLog(inner, "memory:test"), schema=wide_schema()).begin().append(3)
    store = WatchedStore(inner)
    moved = threading.Event()

    def told(applied: Applied) -> None:
        if applied.version == 5:
            moved.set()

    with Replica(UpdateLog(store, "memory:test")).follow(poll_s=0.001, max_poll_s=0.001) as replica:
        replica.on_update(told)
        store.wait_for_look(update_name(4))
        assert replica.rollback(1) == 1
        writer.append(2)
        store.looked[update_name(4)] = looked = threading.Event()
        assert not looked.wait(0.05), "it looked on although it is held"
        assert replica.version == 1
        replica.resume()
        assert moved.wait(60)
        with replica.pin() as version:
            assert version == 5
            assert equal_states(replica.state, writer.state)
