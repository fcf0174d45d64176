"""A crash between any two writes of a log, and a write that is done and reported as failed, at each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from evergrad.codec import decode
from evergrad.errors import LogNotFound, LogUnavailable, NotSynced
from evergrad.log import ObjectStore, UpdateLog, Watch
from evergrad.replica import Replica
from evergrad.testing import FaultyStore
from tests.builders import (
    Unlisted,
    Writer,
    equal_states,
    fold_name,
    fresh_store,
    snapshot_name,
    update_name,
    wide_schema,
)

LAST, KEEP = 8, 2
SCHEMA_NAME = f"schema/{wide_schema().fingerprint}.json"
BEGINNING = [SCHEMA_NAME, "evergrad.json", snapshot_name(0), "latest.json"]
FIRST_HALF = [
    update_name(1),
    update_name(2),
    fold_name(0, 2),
    update_name(3),
    update_name(4),
    fold_name(2, 4),
    fold_name(0, 4),
    snapshot_name(4),
    "latest.json",
]
FIRST_DELETED = [snapshot_name(0), fold_name(0, 2), fold_name(0, 4), update_name(1), update_name(2)]
SECOND_HALF = [
    update_name(5),
    update_name(6),
    fold_name(4, 6),
    update_name(7),
    update_name(8),
    fold_name(6, 8),
    fold_name(4, 8),
    snapshot_name(8),
    "latest.json",
]
SECOND_DELETED = [
    snapshot_name(4),
    fold_name(2, 4),
    fold_name(4, 6),
    fold_name(4, 8),
    *(update_name(version) for version in (3, 4, 5, 6)),
]
WRITES = [*BEGINNING, *FIRST_HALF, *FIRST_DELETED, *SECOND_HALF, *SECOND_DELETED]
POINTS = [pytest.param(at, id=f"{at} {name}") for at, name in enumerate(WRITES)]


@dataclass
class Dying:
    """A store that writes down all writes, and after so many of them does no more."""

    inner: ObjectStore = field(default_factory=fresh_store)
    most: int = 1 << 30
    order: list[str] = field(default_factory=list)
    written: dict[str, bytes] = field(default_factory=dict)

    def _write(self, name: str, data: bytes = b"") -> None:
        if len(self.order) >= self.most:
            raise LogUnavailable("dying:", f"killed before {name}")
        self.order.append(name)
        self.written.setdefault(name, data)

    def create(self, name: str, data: bytes) -> bool:
        self._write(name, data)
        return self.inner.create(name, data)

    def replace(self, name: str, data: bytes) -> None:
        self._write(name, data)
        self.inner.replace(name, data)

    def delete(self, name: str) -> None:
        self._write(name)
        self.inner.delete(name)

    def read(self, name: str) -> bytes | None:
        return self.inner.read(name)

    def stream(self, name: str) -> Iterator[bytes] | None:
        return self.inner.stream(name)

    def names(self, prefix: str) -> list[str]:
        return self.inner.names(prefix)

    def watch(self, folder: str) -> Watch | None:
        return self.inner.watch(folder)


def log_on(store: ObjectStore) -> UpdateLog:
    return UpdateLog(store, "memory:test")


def new_writer(store: ObjectStore) -> Writer:
    return Writer(log_on(store), schema=wide_schema(), fold_base=2)


def finish_version(writer: Writer) -> None:
    if writer.version and writer.version % 4 == 0:
        writer.log.write_snapshot(writer.snapshot())
        writer.log.prune(KEEP)


def write_all(writer: Writer, after_each: Callable[[], object] = lambda: None) -> Writer:
    while writer.version < LAST:
        writer.append()
        finish_version(writer)
        after_each()
    return writer


def restarted(store: ObjectStore) -> Writer:
    """What a publisher does that starts on a log that may hold something."""
    writer = new_writer(store)
    if not writer.log.begun():
        return writer.begin()
    writer.log.point_at_newest()
    replica = Replica(writer.log)
    writer.version, writer.state = replica.sync(), replica.state
    finish_version(writer)
    return writer


def contents(store: ObjectStore) -> dict[str, bytes | None]:
    names = [name for folder in ("schema", "snapshots", "updates", "folds") for name in store.names(folder)]
    return {name: store.read(name) for name in [*names, "evergrad.json", "latest.json"]}


def without_folds(objects: dict[str, bytes | None]) -> dict[str, bytes | None]:
    return {name: data for name, data in objects.items() if not name.startswith("folds/")}


@pytest.fixture(scope="module")
def calm() -> Dying:
    store = Dying()
    write_all(new_writer(store).begin())
    return store


@pytest.fixture(scope="module")
def digests() -> list[int]:
    """The digest of each version, in order."""
    writer = new_writer(fresh_store()).begin()
    found = [writer.state.digest]
    while writer.version < LAST:
        found.append(writer.append().state.digest)
    return found


def test_the_points_below_are_all_writes_in_the_order_that_the_layout_tells(calm: Dying) -> None:
    assert calm.order == WRITES


@pytest.mark.parametrize("point", POINTS)
def test_crash_before_any_write_leaves_whole_versions_and_a_restart_completes_the_log(
    point: int, calm: Dying, digests: list[int]
) -> None:
    store = fresh_store()
    following = Replica(log_on(store))
    dying = new_writer(Dying(store, point))
    with pytest.raises(LogUnavailable, match=f"killed before {WRITES[point]}"):
        write_all(dying.begin(), following.sync)

    readers = [following, Replica(log_on(store)), Replica(log_on(Unlisted(store)))]
    for reader in readers:
        reaches_what_was_written(reader, point, digests)
    everything_that_is_there_is_whole(store, calm)

    writer = write_all(restarted(store))
    assert without_folds(contents(store)) == without_folds(contents(calm.inner))
    everything_that_is_there_is_whole(store, calm)
    for reader in [*readers, Replica(log_on(store)), Replica(log_on(Unlisted(store)))]:
        assert reader.sync() == LAST
        assert equal_states(reader.state, writer.state)
        assert reader.digest == digests[LAST]


def reaches_what_was_written(reader: Replica, point: int, digests: list[int]) -> None:
    if point < 2:
        with pytest.raises(LogNotFound):
            reader.sync()
    elif point == 2 or (point == 3 and isinstance(reader.log.store, Unlisted)):
        with pytest.raises(NotSynced):
            reader.sync()
    else:
        version = max((int(name[8:20]) for name in [*WRITES[:point]] if name.startswith("updates/")), default=0)
        assert (reader.sync(), reader.digest) == (version, digests[version])


def everything_that_is_there_is_whole(store: ObjectStore, calm: Dying) -> None:
    for name, data in contents(store).items():
        if name not in {"latest.json", "evergrad.json"}:
            assert data == calm.written[name], name


@pytest.mark.parametrize("point", sorted(set(WRITES)))
def test_write_that_is_done_and_reported_as_failed_is_retried_to_the_same_bytes(point: str, calm: Dying) -> None:
    store = fresh_store()
    faulty = FaultyStore(store, fail_after_create={point})
    writer = new_writer(faulty)
    again(writer.begin)
    while writer.version < LAST:
        before = writer.version
        try:
            writer.append()
        except LogUnavailable:
            if writer.version == before:  # else it was a fold, which nobody writes twice
                writer.append()
        again(lambda: finish_version(writer))
    assert not faulty.fail_after_create, "the fault happened"
    assert without_folds(contents(store)) == without_folds(contents(calm.inner))
    everything_that_is_there_is_whole(store, calm)
    reader = Replica(log_on(Unlisted(store)))
    assert reader.sync() == LAST
    assert equal_states(reader.state, writer.state)


def again(write: Callable[[], object]) -> None:
    """Writes, and once more the same where the store says that it failed."""
    try:
        write()
    except LogUnavailable:
        write()


def test_folds_lead_where_their_updates_do(digests: list[int]) -> None:
    writer = new_writer(fresh_store()).begin().append(LAST)
    log = writer.log
    assert log.folds() == [(0, 2), (0, 4), (0, 8), (2, 4), (4, 6), (4, 8), (6, 8)]
    for first, last in log.folds():
        found = decode(log.store.read(fold_name(first, last)) or b"", wide_schema())
        assert (found.base_version, found.version) == (first, last)
        assert (found.digest_before, found.digest_after) == (digests[first], digests[last])
