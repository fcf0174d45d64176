"""Random runs of a writer that deletes: who is within the window needs no snapshot, who is outside begins with one."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from evergrad.log import UpdateLog
from evergrad.replica import Replica
from tests.builders import Unlisted, Writer, equal_states, fresh_store, wide_schema

RUNS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 9)),
        st.tuples(st.just("snapshot"), st.just(0)),
        st.tuples(st.just("prune"), st.integers(0, 12)),
    ),
    min_size=3,
    max_size=10,
)


@settings(max_examples=40)
@given(RUNS, st.integers(2, 4))
def test_every_reader_reaches_the_end_bit_for_bit(run: list[tuple[str, int]], fold_base: int) -> None:
    store = fresh_store()
    writer = Writer(UpdateLog(store, "memory:test"), schema=wide_schema(), fold_base=fold_base).begin()
    readers, floor = [reader(Unlisted(store))], 0
    deleted: list[str] = []
    for kind, number in run:
        if kind == "append":
            for _ in range(number):
                writer.append()
                readers.append(reader(Unlisted(store)))
        elif kind == "snapshot":
            writer.log.write_snapshot(writer.snapshot())
        else:
            deleted += writer.log.prune(number)
            floor = max(floor, writer.version - number)
    assert [each.version for each in readers] == list(range(writer.version + 1)), "one at each version"
    for name in deleted:
        assert store.read(name) is None
    for version, each in enumerate(readers):
        assert each.sync() == writer.version
        assert equal_states(each.state, writer.state)
        if version >= floor:
            assert each.stats().snapshots == 1, f"the reader at {version} is in the window from {floor} on"
    assert equal_states(reader(store).state, writer.state)
    assert equal_states(reader(Unlisted(store)).state, writer.state)


def reader(store: Unlisted) -> Replica:
    replica = Replica(UpdateLog(store, "memory:test"))
    replica.sync()
    return replica


def test_what_nobody_within_the_window_needs_is_deleted_and_nothing_else() -> None:
    store = fresh_store()
    log = UpdateLog(store, "memory:test")
    writer = Writer(log, schema=wide_schema(), fold_base=2).begin().append(6)
    assert log.prune(0) == [], "the snapshot that readers begin with needs all"
    log.write_snapshot(writer.snapshot())
    writer.append(2)
    log.prune(4)
    assert (log.snapshots(), log.updates()) == ([6], [5, 6, 7, 8])
    assert log.folds() == [(4, 6), (4, 8), (6, 8)]
    log.prune(0)
    assert (log.snapshots(), log.updates(), log.folds()) == ([6], [7, 8], [(6, 8)])


def test_the_latest_json_of_another_log_deletes_nothing() -> None:
    log = UpdateLog(fresh_store(), "memory:test")
    Writer(log).begin().append(3)
    log.store.replace("latest.json", b'{"log":"fedcba9876543210","snapshot":3}')
    assert log.prune(0) == []
    assert log.updates() == [1, 2, 3]
