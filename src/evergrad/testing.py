"""Public test doubles, and conformance checks that every implementation of a seam must pass.

Use them for your own stores, samplers and triggers:

>>> from evergrad.sampling import Uniform
>>> check_sampler(lambda: Uniform(seed=1))
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evergrad.errors import ConfigError, LogUnavailable
from evergrad.log.base import CHUNK_BYTES, ObjectStore, StoreReader, Watch
from evergrad.sampling import Feedback, Sampler
from evergrad.sampling.base import Ids
from evergrad.trigger import News, Trigger


@dataclass
class FakeClock:
    """A clock that moves when it is told to; call it for the time in seconds."""

    now_s: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass
class FaultyStore:
    """An `ObjectStore` around another, with faults at named points.

    Attributes:
        fail_create: names whose creation, replacement or deletion fails, nothing changed.
        fail_after_create: names where that is done, and then reported as failed, once.
        instead: what reading a name gives instead; None: as if it were not there.
        fail_read: names whose reading fails.
    """

    inner: ObjectStore
    fail_create: set[str] = field(default_factory=set)
    fail_after_create: set[str] = field(default_factory=set)
    instead: dict[str, bytes | None] = field(default_factory=dict)
    fail_read: set[str] = field(default_factory=set)

    def create(self, name: str, data: bytes) -> bool:
        with self._faults(name):
            return self.inner.create(name, data)

    def replace(self, name: str, data: bytes) -> None:
        with self._faults(name):
            self.inner.replace(name, data)

    def delete(self, name: str) -> None:
        with self._faults(name):
            self.inner.delete(name)

    @contextmanager
    def _faults(self, name: str) -> Iterator[None]:
        if name in self.fail_create:
            raise LogUnavailable("faulty:", f"no space for {name}")
        yield
        if name in self.fail_after_create:
            self.fail_after_create.discard(name)
            raise LogUnavailable("faulty:", f"no answer about {name}")

    def read(self, name: str) -> bytes | None:
        if name in self.fail_read:
            raise LogUnavailable("faulty:", f"no answer about {name}")
        return self.instead[name] if name in self.instead else self.inner.read(name)

    def stream(self, name: str) -> Iterator[bytes] | None:
        if name in self.fail_read or name in self.instead:
            data = self.read(name)
            return None if data is None else iter([data])
        return self.inner.stream(name)

    def names(self, prefix: str) -> list[str]:
        return self.inner.names(prefix)

    def watch(self, folder: str) -> Watch | None:
        return self.inner.watch(folder)


_FOREVER_S = 3600.0


def _require(condition: bool, promise: str) -> None:
    if not condition:
        raise AssertionError(f"broken promise: {promise}")


def check_object_store(make_store: Callable[[], ObjectStore]) -> None:
    """Checks the promises of `evergrad.log.base` on a fresh, empty store; AssertionError at the first broken one."""
    store = make_store()
    _require(store.read("updates/000000000001.eg") is None, "read gives None where nothing is")
    _require(store.names("updates") == [], "names of an empty folder is an empty list")
    _require(store.create("updates/000000000001.eg", b"one"), "create gives True for a new name")
    _require(not store.create("updates/000000000001.eg", b"two"), "create gives False for a name that exists")
    _require(store.read("updates/000000000001.eg") == b"one", "what was stored first stays")
    _require(store.create("updates/000000000000.eg", b""), "an empty object is an object")
    _require(store.read("updates/000000000000.eg") == b"", "an empty object reads as empty, not as None")
    big = bytes(range(256)) * 8192
    _require(store.create("snapshots/1.safetensors", big), "create takes megabytes")
    _require(store.read("snapshots/1.safetensors") == big, "read gives all the bytes")
    _require(store.create("evergrad.json", b"{}"), "names need no folder")
    _require(store.create("updates/deeper/000000000002.eg", b"two"), "folders may lie in folders")
    found = store.names("updates")
    _require(found == sorted(found), "names are ascending")
    _require(found == ["updates/000000000000.eg", "updates/000000000001.eg"], "names lists one folder, whole names")
    _check_replace_and_delete(store)
    _check_race(store)
    _check_watch(store)
    objects = {"updates/000000000000.eg": b"", "updates/000000000001.eg": b"one", "snapshots/1.safetensors": big}
    check_store_reader(store, objects)


def check_store_reader(store: StoreReader, objects: Mapping[str, bytes]) -> None:
    """Checks what a replica needs of a place that holds `objects`, whole name to bytes; AssertionError as above."""
    for name, data in objects.items():
        _require(store.read(name) == data, "read gives all the bytes")
        chunks = store.stream(name)
        _require(chunks is not None, "stream gives what read gives")
        parts = list(chunks or ())
        _require(b"".join(parts) == data, "stream gives all the bytes in order")
        _require(all(len(part) < 2 * CHUNK_BYTES for part in parts), "stream gives about a mebibyte at a time")
    _require(store.read("updates/999999999999.eg") is None, "read gives None where nothing is")
    _require(store.stream("updates/999999999999.eg") is None, "stream gives None where nothing is")
    for name in ("../updates/1.eg", "/updates/1.eg", "updates//1.eg", "updates/../1.eg", "updates/", ".", ".tmp-1"):
        _require(_refuses(store, name), "a name with parts that are empty, . or .., or begin with .tmp-, is refused")


def _refuses(store: StoreReader, name: str) -> bool:
    try:
        store.read(name)
    except LogUnavailable:
        return True
    return False


def _check_replace_and_delete(store: ObjectStore) -> None:
    for data in (b"first", b"second, which is longer", b"3rd"):
        store.replace("latest.json", data)
        _require(store.read("latest.json") == data, "replace puts its bytes in place of what was there")
    _require(not store.create("latest.json", b"other"), "create gives False for a name that replace has made")
    store.create("folds/1-2.eg", b"once")
    store.delete("folds/1-2.eg")
    _require(store.read("folds/1-2.eg") is None and store.names("folds") == [], "what is deleted is not there")
    store.delete("folds/1-2.eg")
    _require(store.create("folds/1-2.eg", b"again"), "a name that was deleted can be created")


def _check_race(store: ObjectStore, writers: int = 4, rounds: int = 8) -> None:
    together = threading.Barrier(writers, timeout=60)
    won: list[tuple[str, bytes]] = []

    def race(data: bytes) -> None:
        for turn in range(rounds):
            together.wait()
            if store.create(f"raced/{turn}", data):
                won.append((f"raced/{turn}", data))

    threads = [threading.Thread(target=race, args=(b"%d" % number * 1000,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one_each = sorted(name for name, _ in won) == [f"raced/{turn}" for turn in range(rounds)]
    _require(one_each, "of many that create one name at once, exactly one succeeds")
    _require(all(store.read(name) == data for name, data in won), "who succeeded is who is read")


def _check_watch(store: ObjectStore) -> None:
    watch = store.watch("watched")
    if watch is None:
        return
    try:
        for number in range(3):
            store.create(f"watched/{number}", b"")
            watch.wait(_FOREVER_S)  # would fail by taking for ever
        watch.wake()
        watch.wait(_FOREVER_S)
        watch.wait(0.0)
    finally:
        watch.close()
    watch.wake()


@dataclass
class FakeExamples:
    """A history of any length, of which nothing is stored: see `evergrad.sampling.Examples`.

    Attributes:
        first: the oldest example held.
        gap_s: seconds between two arrivals; the first one arrived at second 0.
        classes: the label of example i is i % classes.
    """

    first: int = 0
    gap_s: float = 10.0
    classes: int = 3

    def gather(self, ids: Ids, columns: Sequence[str] | None = None) -> Mapping[str, Any]:
        whole = {"x": ids.astype(np.float32), "y": ids % self.classes}
        return {name: column for name, column in whole.items() if columns is None or name in columns}

    def since(self, arrived_us: int) -> int:
        return max(self.first, math.ceil(arrived_us / (self.gap_s * 1e6)))

    def arrived_us(self, ids: Ids) -> Ids:
        return np.round(ids * (self.gap_s * 1e6)).astype(np.int64)


# first, before, count: short and empty histories, more asked for than there is, great jumps, retention of nearly all.
_DRAWS = (
    (0, 0, 4), (0, 1, 4), (0, 5, 5), (0, 5, 0), (0, 37, 40), (0, 1000, 100), (0, 1000, 100), (10, 1008, 100),
    (900, 1016, 128), (1010, 1024, 32), (1024, 1024, 8), (2000, 100_000, 128), (2000, 100_008, 128),
    (99_000, 100_016, 64), (100_020, 100_050, 64), (100_020, 100_051, 16), (100_020, 100_060, 16),
)  # fmt: skip


def check_sampler(make_sampler: Callable[[], Sampler]) -> None:
    """Checks `evergrad.sampling.Sampler`: bounds, no repeats, retention, seeded repetition, and exact continuation.

    Samplers that learn are told of a batch after each draw. Which distribution is drawn is for tests of each sampler.
    """
    sampler, followers = make_sampler(), [make_sampler()]
    examples, saved = FakeExamples(), []
    for number, (first, before, count) in enumerate(_DRAWS):
        examples.first = first
        drawn = sampler.draw(examples, before, count)
        _require(drawn.dtype == np.int64 and drawn.ndim == 1, "ids are int64, one-dimensional")
        _require(len(drawn) <= count and len(np.unique(drawn)) == len(drawn), "at most `count` ids, each once")
        _require(bool(((drawn >= first) & (drawn < before)).all()), "ids lie in the history")
        _require(len(drawn) > 0 or count == 0 or before == first, "where there are examples, some are drawn")
        for follower in followers:
            agrees = np.array_equal(drawn, follower.draw(examples, before, count))
            _require(agrees, "equal samplers draw equal ids, and so does one that goes on from a saved state")
        for each in (sampler, *followers):
            if isinstance(each, Feedback):
                ids = np.concatenate((np.arange(before, before + 8), drawn))
                each.learned(ids, np.asarray(0.1 * (ids % 7) + 0.01 * number, dtype=np.float64))
        state = sampler.state_dict()
        saved.append((state, _plain(state)))
        resumed = make_sampler()
        resumed.load_state_dict(_plain(state))
        followers.append(resumed)
    _require(all(_same(state, copy) for state, copy in saved), "a saved state does not change with the sampler")
    _require(_refuses_state(make_sampler()), "the state of something else is refused")


def check_trigger(make_trigger: Callable[[], Trigger]) -> None:
    """Checks `evergrad.trigger.Trigger` on steady arrivals whose loss rises and falls: what is due stays due until it
    is taken, it comes again and again, equal triggers agree, and so does one that goes on from a saved state.
    """
    trigger, followers = make_trigger(), [make_trigger()]
    fired, saved, due_before = [], [], False
    for i in range(2000):
        news = News(
            examples=4, now_s=10.0 * i, loss=math.nan if i % 50 == 7 else 0.1 + 0.01 * (i % 3) + 4 * (i // 200 % 2)
        )
        due = trigger.inform(news)
        _require(due or not due_before, "what is due stays due until a step is taken")
        agree = all(follower.inform(news) == due for follower in followers)
        _require(agree, "equal triggers fire at equal moments, and so does one that goes on from a saved state")
        taken = due and i % 3 == 0
        for each in (trigger, *followers) if taken else ():
            each.taken(news.now_s)
        due_before = due and not taken
        fired.append(taken)
        if i % 167 == 0:
            state = trigger.state_dict()
            saved.append((state, _plain(state)))
            followers.append(make_trigger())
            followers[-1].load_state_dict(_plain(state))
    _require(any(fired[:1000]) and any(fired[1000:]), "such a stream makes it fire, and fire again")
    _require(all(_same(state, copy) for state, copy in saved), "a saved state does not change with the trigger")
    _require(_refuses_state(make_trigger()), "the state of something else is refused")


def _plain(state: Any) -> Any:
    """A copy by way of JSON, numpy arrays aside."""
    if isinstance(state, np.ndarray):
        _require(not state.dtype.hasobject, "arrays in a state hold plain numbers")
        return state.copy()
    if isinstance(state, dict):
        return {name: _plain(value) for name, value in state.items()}
    if isinstance(state, list):
        return [_plain(value) for value in state]
    try:
        return json.loads(json.dumps(state))
    except TypeError as error:
        raise AssertionError(f"broken promise: a state is plain values and numpy arrays ({error})") from error


def _same(state: Any, other: Any) -> bool:
    if isinstance(state, dict):
        return state.keys() == other.keys() and all(_same(state[name], other[name]) for name in state)
    if isinstance(state, list):
        return len(state) == len(other) and all(map(_same, state, other))
    return bool(np.array_equal(state, other)) if isinstance(state, np.ndarray) else bool(state == other)


def _refuses_state(stateful: Sampler | Trigger) -> bool:
    try:
        stateful.load_state_dict({"kind": "something else"})
    except ConfigError:
        return True
    return False
