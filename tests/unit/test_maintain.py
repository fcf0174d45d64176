"""Looking after a log: every version's state, what is wrong, and going back."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import safe_open

from evergrad import maintain
from evergrad.errors import ConfigError, CorruptRecord, LogUnavailable, VersionNotInLog, WriterConflict
from evergrad.log import UpdateLog
from evergrad.replica import Replica
from evergrad.schema import Schema
from evergrad.testing import FakeClock, FaultyStore
from evergrad.update import State
from tests.builders import (
    NEWEST_US,
    Writer,
    copy_of,
    equal_states,
    fresh_log,
    new_state,
    roomy_schema,
    small_schema,
    snapshot_name,
    snapshot_of,
    update_name,
)

FOLD = "folds/000000000000-000000000016.eg"


def written(count: int = 40, *, folds: bool = True) -> tuple[UpdateLog, list[State], Writer]:
    """A log, the state of each of its versions, and its writer."""
    writer = Writer(fresh_log(), examples_each=8)
    writer.state = new_state(roomy_schema())
    writer.begin()
    states = [copy_of(writer.state)]
    for version in range(1, count + 1):
        writer.append()
        states.append(copy_of(writer.state))
        if version == 20:
            writer.log.write_snapshot(writer.snapshot())
    for first, last in [] if folds else writer.log.folds():
        writer.log.store.delete(f"folds/{first:012d}-{last:012d}.eg")
    return writer.log, states, writer


def damage(log: UpdateLog, name: str) -> None:
    data = log.store.read(name)
    assert data
    log.store.replace(name, data[:-1])


def named(log: UpdateLog) -> list[str]:
    return [name for name, _ in maintain.verify(log).problems]


def test_every_version_has_its_state() -> None:
    log, states, _ = written()
    for version, state in enumerate(states):
        found = maintain.state_at(log, version)
        assert found.version == version
        assert equal_states(found.state, state)


@pytest.mark.parametrize("version", [-1, 41])
def test_version_beyond_the_log_is_named(version: int) -> None:
    with pytest.raises(VersionNotInLog, match="0 to 40"):
        maintain.state_at(written()[0], version)


def test_version_that_was_pruned_is_named_and_a_dry_run_says_the_same() -> None:
    log, states, _ = written()
    expected = log.prunable(10)
    assert log.prune(10) == expected
    with pytest.raises(VersionNotInLog, match="20 to 40"):
        maintain.state_at(log, 19)
    assert equal_states(maintain.state_at(log, 25).state, states[25])
    assert named(log) == []


def test_whole_log_has_no_problem() -> None:
    found = maintain.verify(written()[0])
    assert (found.problems, found.head, found.updates, found.folds, found.snapshots) == ((), 40, 40, 2, 2)


@pytest.mark.parametrize("name", [update_name(7), FOLD, snapshot_name(20), snapshot_name(0)])
def test_damage_is_named(name: str) -> None:
    log, states, _ = written()
    damage(log, name)
    assert name in named(log)
    assert equal_states(maintain.state_at(log, 40).state, states[40])


def test_missing_middle_is_named_and_the_rest_is_read_on() -> None:
    log, states, _ = written(folds=False)
    log.store.delete(update_name(7))
    assert named(log) == [update_name(7)]
    with pytest.raises(CorruptRecord, match="missing"):
        maintain.state_at(log, 10)
    assert equal_states(maintain.state_at(log, 20).state, states[20])


def test_unreachable_head_and_wrong_latest_are_named() -> None:
    log, _, _ = written()
    log.store.delete(update_name(30))
    log.store.replace("latest.json", b"{")
    assert named(log) == ["latest.json", update_name(30), "version 40"]


def test_missing_folds_are_written_once() -> None:
    log, _, _ = written(folds=False)
    assert maintain.fold(log) == [(0, 16), (16, 32)]
    assert maintain.fold(log) == []
    assert named(log) == []


def test_rollback_takes_replicas_along_bit_for_bit_and_tells_the_true_staleness() -> None:
    log, states, _ = written()
    clock = FakeClock(NEWEST_US / 1e6 + 100)
    follower = Replica(log, clock=clock)
    follower.sync()
    assert maintain.rollback(log, 12).examples is None, "it adds nothing that was learned"
    late = Replica(log, clock=clock)
    for replica in (follower, late):
        assert replica.sync() == 41
        assert equal_states(replica.state, states[12])
        assert replica.staleness_s() == 100 - 11
    maintain.rollback(log, 40)
    assert follower.sync() == 42
    assert equal_states(follower.state, states[40])
    assert named(log) == []


def test_rollback_fences_a_live_writer() -> None:
    log, _, writer = written(5)
    maintain.rollback(log, 2)
    with pytest.raises(WriterConflict):
        writer.append()


def test_rollback_to_the_head_or_beyond_is_refused() -> None:
    log, _, _ = written(5)
    with pytest.raises(ConfigError):
        maintain.rollback(log, 5)
    with pytest.raises(VersionNotInLog):
        maintain.rollback(log, 6)
    assert log.updates()[-1] == 5


def test_differences_count_what_moved() -> None:
    log, _, _ = written(3)
    found = {row.name: row for row in maintain.differences(log, 1, 3)}
    assert (found["count"].differing, found["count"].largest) == (1, 2.0)
    assert found["h"].differing == found["on"].differing == 0
    assert found["w"].relative_l2 > 0


def test_export_is_read_by_safetensors(tmp_path: Path) -> None:
    log, states, _ = written(5)
    maintain.export(log, tmp_path / "out.safetensors", 3)
    with safe_open(tmp_path / "out.safetensors", "numpy") as file:
        told = file.metadata()
        assert (told["evergrad.version"], told["evergrad.digest"]) == ("3", f"{states[3].digest:016x}")
        assert told["evergrad.schema"] == log.schema.fingerprint
        assert file.get_tensor("w").tobytes() == states[3].tensors()["w"].tobytes()


def grown(count: int = 20) -> tuple[UpdateLog, list[State], Writer]:
    """A log whose model changed after `count` versions, and the states of the newer generation, from `count` + 1 on."""
    log, _, writer = written(count)
    writer.begin_anew(Schema([*((t.name, t.dtype, t.shape) for t in roomy_schema().tensors), ("late", "F32", (5,))]))
    states = [copy_of(writer.state)]
    for _ in range(20):
        writer.append()
        states.append(copy_of(writer.state))
    return log, states, writer


def test_versions_of_an_older_generation_are_not_held() -> None:
    log, states, _ = grown()
    for version, state in enumerate(states, 21):
        assert equal_states(maintain.state_at(log, version).state, state)
    for version in (0, 20):
        with pytest.raises(VersionNotInLog, match="holds 21 to 41"):
            maintain.state_at(log, version)
        with pytest.raises(VersionNotInLog, match="holds 21 to 41"):
            maintain.rollback(log, version)
    assert log.head() == 41


def test_verify_and_fold_leave_older_generations_alone() -> None:
    log, _, _ = grown()
    damage(log, update_name(7))
    damage(log, snapshot_name(20))
    found = maintain.verify(log)
    assert found.problems == ()
    assert (found.head, found.updates, found.folds, found.snapshots) == (41, 20, 0, 1)
    log.store.delete(FOLD)
    assert maintain.fold(log) == []


def test_rollback_within_a_generation_is_followed() -> None:
    log, states, _ = grown()
    replica = Replica(log)
    replica.sync()
    maintain.rollback(log, 21)
    assert replica.sync() == 42
    assert equal_states(replica.state, states[0])


def test_a_generation_that_never_began_is_told_by_verify() -> None:
    log, _, writer = written(20)
    faulty = UpdateLog(FaultyStore(log.store, fail_create={"evergrad.json"}), "memory:test")
    with pytest.raises(LogUnavailable):
        faulty.begin_anew(snapshot_of(new_state(small_schema()), 21), 77)
    assert named(log) == [snapshot_name(21), "version 21"]
    assert equal_states(maintain.state_at(log, 20).state, writer.state)
