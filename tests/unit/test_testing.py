"""The public doubles do what they say, and nothing beside."""

from __future__ import annotations

import pytest

from evergrad.errors import LogUnavailable
from evergrad.testing import FakeClock, FaultyStore
from tests.builders import fresh_store


def test_clock_moves_only_when_told() -> None:
    clock = FakeClock(5.0)
    assert [clock(), clock()] == [5.0, 5.0]
    clock.advance(2.5)
    assert clock() == 7.5
    assert FakeClock()() == FakeClock()()


def test_store_without_faults_is_the_store_inside() -> None:
    inner = fresh_store()
    store = FaultyStore(inner)
    assert store.create("updates/1.eg", b"one")
    assert not store.create("updates/1.eg", b"two")
    assert store.read("updates/1.eg") == inner.read("updates/1.eg") == b"one"
    assert store.names("updates") == ["updates/1.eg"]


def test_failed_creation_stores_nothing_and_fails_again() -> None:
    store = FaultyStore(fresh_store(), fail_create={"a"})
    for _ in range(2):
        with pytest.raises(LogUnavailable, match="no space for a"):
            store.create("a", b"")
    assert store.read("a") is None
    assert store.create("b", b"")


def test_creation_reported_as_failed_is_stored_and_reported_once() -> None:
    store = FaultyStore(fresh_store(), fail_after_create={"a"})
    with pytest.raises(LogUnavailable, match="no answer about a"):
        store.create("a", b"one")
    assert store.read("a") == b"one"
    assert not store.create("a", b"one")


def test_replacing_and_deleting_fail_like_creating() -> None:
    store = FaultyStore(fresh_store(), fail_create={"a"}, fail_after_create={"b", "c"})
    for change in (lambda: store.replace("a", b"new"), lambda: store.delete("a")):
        with pytest.raises(LogUnavailable, match="no space for a"):
            change()
    store.create("d", b"")
    with pytest.raises(LogUnavailable, match="no answer about b"):
        store.replace("b", b"new")
    store.inner.create("c", b"")
    with pytest.raises(LogUnavailable, match="no answer about c"):
        store.delete("c")
    assert [store.read(name) for name in "abcd"] == [None, b"new", None, b""]


def test_reading_can_be_replaced_lost_and_failed_by_name() -> None:
    store = FaultyStore(fresh_store(), instead={"a": b"other", "b": None}, fail_read={"c"})
    for name in "abcd":
        store.create(name, b"true")
    assert [store.read(name) for name in "abd"] == [b"other", None, b"true"]
    assert [list(store.stream(name) or [b"nothing"]) for name in "abd"] == [[b"other"], [b"nothing"], [b"true"]]
    for read in (store.read, store.stream):
        with pytest.raises(LogUnavailable, match="no answer about c"):
            read("c")
    store.fail_read.clear()
    assert store.read("c") == b"true"
