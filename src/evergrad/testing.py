"""Public test doubles, and conformance checks that every implementation of a seam must pass.

Use them for your own stores, samplers and triggers:

>>> from evergrad.sampling import Uniform
>>> check_sampler(lambda: Uniform(seed=1))
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from evergrad.errors import LogUnavailable
from evergrad.log.base import CHUNK_BYTES, ObjectStore, StoreReader, Watch
from evergrad.sampling import Sampler
from evergrad.trigger import Trigger


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


def check_sampler(make_sampler: Callable[[], Sampler]) -> None:
    """Checks `evergrad.sampling.Sampler`: bounds, no repeats, short and empty histories, and seeded repetition."""
    sampler, twin = make_sampler(), make_sampler()
    _require(len(sampler.draw(0, 4)) == 0 == len(twin.draw(0, 4)), "an empty history gives no rows")
    for rows, count in ((1, 4), (5, 5), (1000, 0), (1000, 100), (100_000, 128)):
        drawn = sampler.draw(rows, count)
        _require(drawn.dtype == np.int64 and drawn.ndim == 1, "rows are int64, one-dimensional")
        _require(len(drawn) <= count and len(np.unique(drawn)) == len(drawn), "at most `count` rows, each once")
        _require(bool(((drawn >= 0) & (drawn < rows)).all()), "rows lie in the history")
        _require(np.array_equal(drawn, twin.draw(rows, count)), "equal samplers draw equal rows")


def check_trigger(make_trigger: Callable[[], Trigger]) -> None:
    """Checks `evergrad.trigger.Trigger`: it fires again and again on a steady stream, and equal ones agree."""
    trigger, twin = make_trigger(), make_trigger()
    fired = [trigger.inform(4, 10.0 * i) for i in range(1000)]
    _require(fired == [twin.inform(4, 10.0 * i) for i in range(1000)], "equal triggers fire at equal moments")
    _require(any(fired[:500]) and any(fired[500:]), "a steady stream makes it fire, and fire again")
