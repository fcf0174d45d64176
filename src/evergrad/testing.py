"""Public test doubles, and conformance checks that every implementation of a seam must pass.

Use them for your own stores, samplers and triggers:

>>> from evergrad.sampling import Uniform
>>> check_sampler(lambda: Uniform(seed=1))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from evergrad.errors import LogUnavailable
from evergrad.log.base import ObjectStore
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
        fail_create: names whose creation fails, nothing stored.
        fail_after_create: names whose creation is stored, and then reported as failed.
        replace: what reading a name gives instead; None: as if it were not there.
        fail_read: names whose reading fails.
    """

    inner: ObjectStore
    fail_create: set[str] = field(default_factory=set)
    fail_after_create: set[str] = field(default_factory=set)
    replace: dict[str, bytes | None] = field(default_factory=dict)
    fail_read: set[str] = field(default_factory=set)

    def create(self, name: str, data: bytes) -> bool:
        if name in self.fail_create:
            raise LogUnavailable("faulty:", f"no space for {name}")
        created = self.inner.create(name, data)
        if name in self.fail_after_create:
            self.fail_after_create.discard(name)
            raise LogUnavailable("faulty:", f"no answer about {name}")
        return created

    def read(self, name: str) -> bytes | None:
        if name in self.fail_read:
            raise LogUnavailable("faulty:", f"no answer about {name}")
        return self.replace[name] if name in self.replace else self.inner.read(name)

    def names(self, prefix: str) -> list[str]:
        return self.inner.names(prefix)


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
    found = store.names("updates")
    _require(found == sorted(found), "names are ascending")
    _require(found == ["updates/000000000000.eg", "updates/000000000001.eg"], "names lists one folder, whole names")


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
