"""What a restarted replica continues from, and that damage, other logs and crashes cost a download and nothing else."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from evergrad.errors import LogUnavailable, NotSynced, SchemaMismatch
from evergrad.log import ObjectStore, UpdateLog
from evergrad.replica import Replica
from evergrad.replica.cache import Cache
from evergrad.testing import FakeClock, FaultyStore
from tests.builders import (
    Unlisted,
    Writer,
    copy_of,
    equal_states,
    fresh_store,
    snapshot_name,
    snapshot_of,
    update_name,
    wide_schema,
)

STATE = "state.safetensors"


def log_on(store: ObjectStore) -> UpdateLog:
    return UpdateLog(store, "memory:test")


def wide_writer(store: ObjectStore, **settings: int) -> Writer:
    return Writer(log_on(store), schema=wide_schema(), **settings).begin()


def cached(store: ObjectStore, cache: Path) -> Replica:
    """A replica that was up to date, and has ended."""
    with Replica(log_on(store), cache=cache) as replica:
        replica.sync()
    return replica


def test_a_restart_continues_without_reading_a_snapshot(tmp_path: Path) -> None:
    inner = fresh_store()
    writer = wide_writer(inner).append(3)
    cached(inner, tmp_path / "deep" / "cache")
    writer.append(2)
    store = Unlisted(inner)
    replica = Replica(log_on(store), cache=tmp_path / "deep" / "cache")
    assert (replica.version, replica.stats().snapshots) == (3, 0)
    assert replica.sync() == 5
    assert equal_states(replica.state, writer.state)
    assert (replica.stats().updates, replica.stats().snapshots) == (2, 0)
    assert not [name for name in store.asked if name.startswith("snapshots/")]


def test_a_restart_where_the_log_cannot_be_reached_serves_what_it_kept(tmp_path: Path) -> None:
    inner = fresh_store()
    writer = wide_writer(inner).append(3)
    cached(inner, tmp_path)
    offline = FaultyStore(inner, fail_read={"latest.json", "evergrad.json", update_name(3), update_name(4)})
    replica = Replica(log_on(offline), cache=tmp_path)
    for _ in range(2):
        with pytest.raises(LogUnavailable):
            replica.sync()
        assert equal_states(replica.state, writer.state)
        assert replica.weights.keys() == writer.state.tensors().keys()
        assert (replica.version, replica.schema) == (3, wide_schema())
    assert replica.staleness_s() < float("inf")
    offline.fail_read.clear()
    writer.append()
    assert replica.sync() == 4


def test_it_is_kept_at_intervals_and_at_the_end(tmp_path: Path) -> None:
    clock, writer = FakeClock(), wide_writer(fresh_store()).append()
    replica = Replica(writer.log, cache=tmp_path, cache_every_s=60, clock=clock)
    replica.sync()
    assert not (tmp_path / STATE).exists()
    kept = []
    for seconds in (59, 2, 58, 3):
        clock.advance(seconds)
        writer.append()
        replica.sync()
        found = Cache(tmp_path).load()
        kept.append(found and found[1].version)
    assert kept == [None, 3, 3, 5]
    writer.append()
    replica.sync()
    replica.close()
    found = Cache(tmp_path).load()
    assert found is not None
    assert (found[0], found[1].version) == (writer.log.id, 6)
    assert equal_states(found[1].state, writer.state)


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "garbage", "no state", "no schema", "bad schema"])
def test_a_damaged_cache_is_ignored_and_written_anew(damage: str, tmp_path: Path) -> None:
    inner = fresh_store()
    writer = wide_writer(inner).append(2)
    cached(inner, tmp_path)
    state, schema = tmp_path / STATE, tmp_path / "schema.json"
    whole = state.read_bytes()
    damaged = {"cut": whole[:-1], "empty": b"", "garbage": b"what?", "flipped": whole[:-9] + b"\x01" + whole[-8:]}
    if damage in damaged:
        state.write_bytes(damaged[damage])
    elif damage == "bad schema":
        schema.write_bytes(b"{}")
    else:
        (state if damage == "no state" else schema).unlink()
    replica = Replica(log_on(inner), cache=tmp_path)
    with pytest.raises(NotSynced):
        _ = replica.version
    assert replica.sync() == 2
    assert equal_states(replica.state, writer.state)
    assert replica.stats().snapshots == 1
    replica.close()
    assert Replica(log_on(inner), cache=tmp_path).version == 2


def test_the_cache_of_another_log_of_the_same_model_is_given_up(tmp_path: Path) -> None:
    one, other = fresh_store(), fresh_store()
    wide_writer(one, run=1, seed=1).append(5)
    writer = wide_writer(other, run=2, seed=2).append(7)
    cached(one, tmp_path)
    replica = Replica(log_on(other), cache=tmp_path)
    assert replica.version == 5
    assert replica.sync() == 7
    assert equal_states(replica.state, writer.state)
    replica.close()
    found = Cache(tmp_path).load()
    assert found is not None
    assert found[0] == writer.log.id == f"{2:016x}"


def test_the_cache_of_another_model_is_told_and_overwritten_by_nobody(tmp_path: Path) -> None:
    one, other = fresh_store(), fresh_store()
    wide_writer(one, run=1)
    Writer(log_on(other), run=2).begin()
    cached(one, tmp_path)
    before = (tmp_path / STATE).read_bytes()
    with Replica(log_on(other), cache=tmp_path) as replica, pytest.raises(SchemaMismatch):
        replica.sync()
    assert (tmp_path / STATE).read_bytes() == before


@pytest.mark.parametrize("lists", [True, False])
def test_a_log_taken_back_to_an_older_copy_is_noticed(lists: bool, tmp_path: Path) -> None:
    inner = fresh_store()
    writer = wide_writer(inner).append(2)
    older = copy_of(writer.state)
    writer.append(3)
    cached(inner, tmp_path)
    for version in (3, 4, 5):
        inner.delete(update_name(version))
    replica = Replica(log_on(inner if lists else Unlisted(inner)), cache=tmp_path)
    assert replica.version == 5
    assert replica.sync() == 2
    assert equal_states(replica.state, older)


def test_a_log_that_went_another_way_from_an_older_copy_is_noticed(tmp_path: Path) -> None:
    inner = fresh_store()
    writer = wide_writer(inner).append(2)
    other = Writer(log_on(inner), schema=wide_schema(), seed=0)
    other.version, other.state = 2, copy_of(writer.state)
    writer.append(3)
    cached(inner, tmp_path)
    for version in (3, 4, 5):
        inner.delete(update_name(version))
    other.log.append(replace(other.next_update(), sections=(), digest_after=other.state.digest))
    other.version = 3
    other.append(4)
    replica = Replica(log_on(inner), cache=tmp_path)
    assert replica.sync() == 7
    assert equal_states(replica.state, other.state)


def test_a_damaged_update_at_the_cached_version_stops_nobody(tmp_path: Path) -> None:
    inner = fresh_store()
    writer = wide_writer(inner).append(3)
    cached(inner, tmp_path)
    writer.append(2)
    store = Unlisted(inner, instead={update_name(3): b"damaged"})
    replica = Replica(log_on(store), cache=tmp_path)
    assert replica.sync() == 5
    assert equal_states(replica.state, writer.state)
    assert replica.stats().snapshots == 0


def test_an_update_at_the_cached_version_that_was_deleted_by_retention_is_no_other_log(tmp_path: Path) -> None:
    inner = fresh_store()
    writer = wide_writer(inner).append(3)
    writer.log.write_snapshot(writer.snapshot())
    cached(inner, tmp_path)
    writer.append(2)
    writer.log.prune(0)
    store = Unlisted(inner)
    assert inner.read(update_name(3)) is None
    assert Replica(log_on(store), cache=tmp_path).sync() == 5
    assert snapshot_name(3) not in store.asked


def test_a_cache_that_cannot_be_written_is_told_and_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = wide_writer(fresh_store()).append(2)
    replica = Replica(writer.log, cache=tmp_path / "cache", cache_every_s=0)
    (tmp_path / "cache").rmdir()
    with caplog.at_level(logging.WARNING, "evergrad.replica"):
        assert replica.sync() == 2
    assert "version 2 was not cached" in caplog.text
    (tmp_path / "cache").mkdir()
    replica.sync()
    assert Cache(tmp_path / "cache").load() is not None


def test_the_cache_of_another_schema_is_replaced_whole(tmp_path: Path) -> None:
    cache, small, wide = Cache(tmp_path), Writer(log_on(fresh_store())), wide_writer(fresh_store())
    cache.save("a", snapshot_of(small.state, 1))
    cache.save("b", snapshot_of(wide.state, 2))
    found = cache.load()
    assert found is not None
    assert (found[0], found[1].version) == ("b", 2)
    assert equal_states(found[1].state, wide.state)


KILLED = """
import sys
from dataclasses import replace
from pathlib import Path
from evergrad.replica.cache import Cache, write_file
path = Path(sys.argv[1]) / "state.safetensors"
whole = path.read_bytes()
def pieces():
    yield whole[: len(whole) // 2]
    print("half", flush=True)
    sys.stdin.read()
write_file(path, pieces())
"""


def test_a_process_that_is_killed_while_it_saves_leaves_a_cache_that_loads(tmp_path: Path) -> None:
    inner = fresh_store()
    writer = wide_writer(inner).append(3)
    cached(inner, tmp_path)
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 3, "what it had begun to write lies there"
    replica = Replica(log_on(inner), cache=tmp_path)
    assert (replica.version, replica.sync()) == (3, 3)
    assert equal_states(replica.state, writer.state)
    assert {path.name for path in tmp_path.iterdir()} == {"schema.json", STATE}


def test_a_follower_that_starts_where_the_log_is_away_goes_on_from_its_cache_when_it_returns(tmp_path: Path) -> None:
    inner = fresh_store()
    writer = wide_writer(inner).append(3)
    writer.log.write_snapshot(writer.snapshot())
    cached(inner, tmp_path)
    writer.append(2)
    writer.log.prune(0)
    away = Unlisted(inner, fail_read={"latest.json"})
    replica = Replica(log_on(away), cache=tmp_path)
    with pytest.raises(LogUnavailable):
        replica._sync(look=False)  # as a follower asks between two looks
    away.fail_read.clear()
    assert replica._sync(look=False) == 5
    assert equal_states(replica.state, writer.state)
    assert replica.stats().snapshots == 0
