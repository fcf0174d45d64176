"""Following by a watch, by asking, through every failure, and to an end."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from evergrad.errors import LogUnavailable, SchemaMismatch
from evergrad.log import ObjectStore, UpdateLog, Watch, open_log
from evergrad.replica import Applied, Replica
from evergrad.replica.follow import Follower
from evergrad.schema import Schema
from evergrad.testing import FaultyStore
from tests.builders import (
    TENSORS,
    WatchedStore,
    Writer,
    copy_of,
    equal_states,
    fresh_log,
    fresh_store,
    small_schema,
    update_name,
)

LONG_S = 60.0


class Patient:
    """A watch that waits as long as it takes: only what appears, or a wake, ends its wait."""

    def __init__(self, inner: Watch, waits: threading.Semaphore) -> None:
        self.inner, self.waits = inner, waits

    def wait(self, timeout_s: float) -> None:
        self.waits.release()
        self.inner.wait(3600.0)

    def wake(self) -> None:
        self.inner.wake()

    def close(self) -> None:
        self.inner.close()


@dataclass
class PatientStore(FaultyStore):
    """A store whose watches are patient; `waits` counts the waits that have begun."""

    waits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def watch(self, folder: str) -> Watch | None:
        inner = self.inner.watch(folder)
        return None if inner is None else Patient(inner, self.waits)


def reached(replica: Replica, version: int) -> threading.Event:
    event = threading.Event()

    def told(applied: Applied) -> None:
        if applied.version == version:
            event.set()

    replica.on_update(told)
    return event


def local(path: Path) -> tuple[Writer, PatientStore]:
    log = open_log(f"file:{path}", create=True)
    watch = log.store.watch("updates")
    if watch is None:
        pytest.skip("this machine cannot tell what appears in a folder")
    watch.close()
    return Writer(log).begin(), PatientStore(log.store)


def test_a_write_wakes_it_and_nothing_is_polled(tmp_path: Path) -> None:
    writer, store = local(tmp_path)
    with Replica(UpdateLog(store, "file:test")).follow() as replica:
        for version in (1, 2, 3):
            assert store.waits.acquire(timeout=LONG_S)
            event = reached(replica, version)
            writer.append()
            assert event.wait(LONG_S)
        with replica.pin():
            assert equal_states(replica.state, writer.state)


def test_close_ends_a_wait_that_has_no_end(tmp_path: Path) -> None:
    _, store = local(tmp_path)
    replica = Replica(UpdateLog(store, "file:test"))
    for _ in range(20):
        replica.follow()
        replica.close()
    replica.follow()
    assert store.waits.acquire(timeout=LONG_S)
    replica.close()
    assert replica.version == 0


def test_a_log_begun_anew_is_noticed_by_a_follower(tmp_path: Path) -> None:
    place = tmp_path / "log"
    Writer(open_log(f"file:{place}", create=True), run=1, seed=1).begin().append(5)
    begun, version_5 = threading.Event(), threading.Event()
    seen: list[int] = []

    def told(applied: Applied) -> None:
        seen.append(applied.version)
        if applied.version == 5:
            version_5.set()
        if applied.version == 2 and version_5.is_set():
            begun.set()

    replica = Replica(f"file:{place}")
    replica.on_update(told)
    with replica.follow(poll_s=0.001, max_poll_s=0.01):
        assert version_5.wait(LONG_S)
        shutil.rmtree(place)
        writer = Writer(open_log(f"file:{place}", create=True), run=2, seed=2).begin().append(2)
        assert begun.wait(LONG_S)
        with replica.pin():
            assert equal_states(replica.state, writer.state)
    assert replica.log.id == f"{2:016x}"


@pytest.mark.parametrize("count", [0, 3, 9])
def test_a_log_begun_anew_in_the_same_store_is_noticed_wherever_it_stands(count: int) -> None:
    store = fresh_store()
    Writer(UpdateLog(store, "memory:test"), run=1, seed=1).begin().append(5)
    replica = Replica(UpdateLog(store, "memory:test"))
    replica.sync()
    weights = replica.weights
    for name in [n for folder in ("schema", "snapshots", "updates") for n in store.names(folder)]:
        store.delete(name)
    for name in ("evergrad.json", "latest.json"):
        store.delete(name)
    assert replica.sync() == 5, "a log that is gone leaves the last good version"
    writer = Writer(UpdateLog(store, "memory:test"), run=2, seed=2).begin().append(count)
    assert replica.sync() == count
    assert equal_states(replica.state, writer.state)
    assert all((view == writer.state.tensors()[name]).all() for name, view in weights.items())


GROWN = Schema([*TENSORS, ("late", "F32", (5,))], {"w_tied": "w"})


@pytest.mark.parametrize("behind", [0, 3])
def test_a_replica_ends_with_the_last_version_of_its_model_and_says_what_to_do(behind: int) -> None:
    store = fresh_store()
    writer = Writer(UpdateLog(store, "memory:test")).begin().append(5 - behind)
    replica = Replica(UpdateLog(store, "memory:test"))
    replica.sync()
    writer.append(behind)
    last = copy_of(writer.state)
    writer.begin_anew(GROWN).append(2)
    for _ in range(2):
        with pytest.raises(SchemaMismatch) as caught:
            replica.sync()
        error = caught.value
        assert (error.tensor, error.expected, error.found) == ("late", "F32 [5]", "no such tensor")
        assert "build the new module, and make a new Replica" in str(error)
        assert (replica.version, replica.stats().error) == (5, error)
        assert equal_states(replica.state, last)
    fresh = Replica(replica.log)  # opened before the model changed
    assert fresh.sync() == 8
    assert equal_states(fresh.state, writer.state)


def test_a_follower_keeps_the_last_version_of_its_model_and_tells_why() -> None:
    store = WatchedStore(fresh_store())
    writer = Writer(UpdateLog(store, "memory:test")).begin().append(2)
    replica = Replica(UpdateLog(store, "memory:test"))
    replica.sync()
    last = copy_of(writer.state)
    writer.begin_anew(GROWN)
    with replica.follow(poll_s=0.001, max_poll_s=0.01):
        for _ in range(2):  # at its second look it has told the first
            store.wait_for_look(f"schema/{GROWN.fingerprint}.json")
        assert isinstance(replica.stats().error, SchemaMismatch)
        assert replica.version == 2
        assert equal_states(replica.state, last)


def test_a_replica_goes_over_to_a_generation_of_its_own_schema() -> None:
    store = fresh_store()
    writer = Writer(UpdateLog(store, "memory:test")).begin().append(2)
    replica = Replica(UpdateLog(store, "memory:test"))
    replica.sync()
    writer.begin_anew(GROWN, 1).append(2)
    with pytest.raises(SchemaMismatch):
        replica.sync()
    writer.begin_anew(small_schema(), 2).append(2)
    assert replica.sync() == 8
    assert equal_states(replica.state, writer.state)


def test_a_log_begun_anew_whose_snapshot_is_damaged_leaves_the_old_version_whole() -> None:
    store = fresh_store()
    Writer(UpdateLog(store, "memory:test"), run=1, seed=1).begin().append(5)
    faulty = FaultyStore(store)
    replica = Replica(UpdateLog(faulty, "memory:test"))
    replica.sync()
    before = copy_of(replica.state)
    for name in [n for folder in ("snapshots", "updates") for n in store.names(folder)]:
        store.delete(name)
    for name in ("evergrad.json", "latest.json"):
        store.delete(name)
    writer = Writer(UpdateLog(store, "memory:test"), run=2, seed=2).begin().append(2)
    name = "snapshots/000000000000.safetensors"
    faulty.instead[name] = (store.read(name) or b"")[:-1]
    for _ in range(2):
        with pytest.raises(Exception, match="is damaged"):
            replica.sync()
        assert replica.version == 5
        assert equal_states(replica.state, before)
    faulty.instead.clear()
    assert replica.sync() == 2
    assert equal_states(replica.state, writer.state)


def test_a_log_that_was_begun_anew_before_the_first_version_came_is_followed() -> None:
    store = fresh_store()
    fail = FaultyStore(store, fail_create={"snapshots/000000000000.safetensors"})
    with pytest.raises(LogUnavailable):
        Writer(UpdateLog(fail, "memory:test"), run=1).begin()

    class Unlistable(FaultyStore):
        def names(self, prefix: str) -> list[str]:
            return []

    replica = Replica(UpdateLog(Unlistable(store), "memory:test"))
    with pytest.raises(Exception, match="holds no version yet"):
        replica.sync()
    store.delete("evergrad.json")
    writer = Writer(UpdateLog(store, "memory:test"), run=2).begin().append(2)
    assert replica.sync() == 2
    assert equal_states(replica.state, writer.state)


class Strange(FaultyStore):
    """Raises what no store should, at the first reads and watches, and then works."""

    raised = 0

    def read(self, name: str) -> bytes | None:
        if name == update_name(2) and self.raised < 4:
            self.raised += 1
            raise [ZeroDivisionError, MemoryError, OSError, LogUnavailable][self.raised - 1]("strange", "strange")
        return super().read(name)

    def stream(self, name: str) -> Iterator[bytes] | None:
        return super().stream(name)

    def watch(self, folder: str) -> Watch | None:
        raise OSError("no watch left")


def test_it_survives_any_exception_of_store_and_watch() -> None:
    writer = Writer(fresh_log()).begin().append(3)
    replica = Replica(UpdateLog(Strange(writer.log.store), "memory:test"))
    event = reached(replica, 3)
    with replica.follow(poll_s=0.001, max_poll_s=0.002):
        assert event.wait(LONG_S)
        with replica.pin():
            assert equal_states(replica.state, writer.state)


def test_after_a_failure_the_next_look_is_a_whole_one() -> None:
    looks: list[bool] = []
    done = threading.Event()

    def sync(look: bool) -> None:
        looks.append(look)
        if len(looks) in {2, 3}:
            raise LogUnavailable("test:", "away")
        if len(looks) == 5:
            done.set()

    follower = Follower(sync, lambda: 0, lambda: None, poll_s=0.001, max_poll_s=0.001)
    assert done.wait(LONG_S)
    follower.close()
    assert looks[:5] == [True, False, True, True, False]


def test_close_wakes_the_watch_at_every_moment() -> None:
    """The watch is made late: whichever comes first, `close` or the wait, the thread ends."""

    class Silent:
        def __init__(self) -> None:
            self.woken, self.closed = threading.Event(), False

        def wait(self, timeout_s: float) -> None:
            assert self.woken.wait(LONG_S), "nobody woke it"
            self.woken.clear()

        def wake(self) -> None:
            self.woken.set()

        def close(self) -> None:
            self.closed = True

    for _ in range(50):
        watches: list[Silent] = []

        def make(made: list[Silent] = watches) -> Watch:
            made.append(Silent())
            return made[-1]

        follower = Follower(lambda look: None, lambda: 0, make, poll_s=0.0, max_poll_s=0.0)
        follower.close()
        assert all(watch.closed for watch in watches)


def test_without_a_watch_it_asks_again_and_again() -> None:
    store: ObjectStore = fresh_store()
    assert store.watch("updates") is None
    writer = Writer(UpdateLog(store, "memory:test")).begin()
    replica = Replica(UpdateLog(store, "memory:test"))
    with replica.follow(poll_s=0.001, max_poll_s=0.004):
        for version in (1, 2, 3):
            event = reached(replica, version)
            writer.append()
            assert event.wait(LONG_S)


class Impatient(threading.Event):
    """An event whose waits take no time and are noted; it comes to pass at the last of them."""

    most = 40

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        if len(self.waits) == self.most:
            self.set()
        return self.is_set()


class Unhurried(Follower):
    """A follower that waits by an `Impatient` event."""

    def _run(self) -> None:
        self._stopping = Impatient()
        super()._run()


@pytest.mark.parametrize("failing", [False, True])
def test_intervals_grow_to_the_longest_and_are_shortened_at_random(failing: bool) -> None:
    def sync(look: bool) -> None:
        if failing:
            raise LogUnavailable("memory:", "no answer")

    follower = Unhurried(sync, lambda: 3, lambda: None, poll_s=0.01, max_poll_s=0.5)
    follower._thread.join()
    waits = follower._stopping.waits  # type: ignore[attr-defined]
    first, longest = (0.01, 5.0) if failing else (0.02, 0.5)
    fractions = [wait / min(first * 2**turn, longest) for turn, wait in enumerate(waits)]
    assert len(fractions) == Impatient.most
    assert all(0.5 <= fraction <= 1.0 for fraction in fractions)
    assert max(fractions) - min(fractions) > 0.2
    assert len(set(fractions)) > Impatient.most // 2
