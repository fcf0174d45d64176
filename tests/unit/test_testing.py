"""The public doubles do what they say, and nothing beside."""

from __future__ import annotations

import numpy as np
import pytest

from evergrad.errors import LogUnavailable
from evergrad.sampling import Reservoir, Uniform
from evergrad.testing import FakeClock, FakeExamples, FaultyStore, check_sampler, check_trigger
from evergrad.trigger import AllOf, AnyOf, EveryN, EverySeconds, OnDrift, OnLoss, WhenIdle
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


class Repeating(Uniform):
    def draw(self, examples, before, count):
        return np.full(min(before - examples.first, count), examples.first, dtype=np.int64)


class OutOfBounds(Uniform):
    def draw(self, examples, before, count):
        return super().draw(examples, before, count) + 1


class Retired(Uniform):
    def draw(self, examples, before, count):
        return super().draw(FakeExamples(), before, count)


class Unseeded(Uniform):
    def __post_init__(self) -> None:
        self._rng = np.random.default_rng()


class Forgetful(Uniform):
    def load_state_dict(self, state) -> None:
        super().load_state_dict(Uniform(seed=self.seed).state_dict() | {"kind": state["kind"]})


class Careless(Uniform):
    def load_state_dict(self, state) -> None:
        self._rng.bit_generator.state = state.get("rng", self._rng.bit_generator.state)


class Shared(Reservoir):
    def state_dict(self):
        return super().state_dict() | {"ids": self._ids}


class Opaque(Uniform):
    def state_dict(self):
        return super().state_dict() | {"generator": self._rng}


class Lazy(Uniform):
    def draw(self, examples, before, count):
        return super().draw(examples, before, count if before < 1000 else 0)


@pytest.mark.parametrize(
    ("kind", "promise"),
    [
        (Repeating, "each once"), (OutOfBounds, "in the history"), (Retired, "in the history"),
        (Unseeded, "equal samplers"), (Forgetful, "goes on from a saved state"), (Careless, "is refused"),
        (lambda: Shared(20), "does not change"), (Opaque, "plain values"), (Lazy, "some are drawn"),
    ],
)  # fmt: skip
def test_check_finds_a_sampler_that_breaks_a_promise(kind, promise: str) -> None:
    with pytest.raises(AssertionError, match=f"broken promise: .*{promise}"):
        check_sampler(kind)


TRIGGERS = {
    "every n": lambda: EveryN(7),
    "every seconds": lambda: EverySeconds(33.0),
    "when idle": lambda: WhenIdle(load=lambda: 0.2, below=0.5, n=9),
    "when late": lambda: WhenIdle(load=lambda: 0.7, below=0.5, at_most_s=100),
    "on loss": lambda: OnLoss(above=1.0),
    "any of": lambda: AnyOf(EveryN(100), OnLoss(above=3.0)),
    "all of": lambda: AllOf(EveryN(20), EverySeconds(70.0), OnLoss(above=1.0)),
}


@pytest.mark.parametrize("name", TRIGGERS)
def test_trigger_keeps_the_public_promises(name: str) -> None:
    check_trigger(TRIGGERS[name])


@pytest.mark.parametrize("settings", [{}, {"steps": 3, "memory": 128}, {"detector": "page-hinkley"}])
def test_drift_keeps_the_public_promises(settings: dict[str, object]) -> None:
    pytest.importorskip("river")
    check_trigger(lambda: OnDrift(**settings))


class Impatient(EveryN):
    def inform(self, news):
        due = super().inform(news)
        self._waiting = 0 if due else self._waiting
        return due


class Amnesiac(EveryN):
    def load_state_dict(self, state) -> None:
        super().load_state_dict(state | {"waiting": 0})


class Credulous(EveryN):
    def load_state_dict(self, state) -> None:
        self._waiting = state.get("waiting", 0)


@pytest.mark.parametrize(
    ("make", "promise"),
    [
        (lambda: EveryN(6000), "fire again"), (lambda: Impatient(5), "stays due"),
        (lambda: Amnesiac(50), "goes on from a saved state"), (lambda: Credulous(5), "something else is refused"),
    ],
)  # fmt: skip
def test_check_finds_a_trigger_that_breaks_a_promise(make, promise: str) -> None:
    with pytest.raises(AssertionError, match=f"broken promise: .*{promise}"):
        check_trigger(make)


def test_fake_examples_are_a_history() -> None:
    examples = FakeExamples(first=3, gap_s=2.0, classes=4)
    ids = np.array([9, 4])
    assert {name: column.tolist() for name, column in examples.gather(ids).items()} == {"x": [9.0, 4.0], "y": [1, 0]}
    assert examples.gather(ids, columns=["y"]).keys() == {"y"}
    assert examples.arrived_us(ids).tolist() == [18_000_000, 8_000_000]
    assert [examples.since(us) for us in (18_000_000, 18_000_001, 0)] == [9, 10, 3]
