"""Whatever is sent: the kept digest is the true one, bytes change nothing, and a fold is the run of its updates."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from evergrad.codec import compact, decode, decode_header, decode_snapshot, encode, encode_snapshot
from evergrad.schema import Schema
from evergrad.update import Change, Section, State, Steps, Values, compose, digest, values_of
from tests.builders import copy_of, equal_states, new_state, snapshot_of, update_of
from tests.property.strategies import lineages, moves, schemas

Moves = tuple[State, list[list[Section]]]


@given(moves())
def test_kept_digest_is_the_full_one_after_every_update(case: Moves) -> None:
    state, bundles = case
    for bundle in bundles:
        state.commit(state.resolve(bundle))
        assert state.digest == digest(state.schema, state.arrays)


@given(moves(), lineages())
def test_replica_that_reads_bytes_holds_what_the_publisher_holds(case: Moves, examples: range | None) -> None:
    publisher, bundles = case
    replica = decode_snapshot(encode_snapshot(snapshot_of(publisher, 0)), publisher.schema).state
    for version, bundle in enumerate(bundles):
        update = update_of(publisher, version, *bundle, examples=examples)
        publisher.commit(publisher.check(update, version))
        data = encode(update)
        read = decode(data, replica.schema)
        assert encode(read) == data
        assert read.examples == decode_header(data).examples == examples
        replica.commit(replica.check(read, version))
        assert equal_states(replica, publisher)


@given(moves())
def test_fold_told_in_bytes_equals_its_updates_one_by_one(case: Moves) -> None:
    state, bundles = case
    start, changes = copy_of(state), [state.resolve([])]
    for bundle in bundles:
        changes.append(state.resolve(bundle))
        state.commit(changes[-1])
    whole = compose(changes)
    told = update_of(start, 0, *(compact(section, old) for section, old in values_of(whole, state.schema)))
    read = decode(encode(told), state.schema)
    start.commit(start.check(read, 0))
    assert equal_states(start, state)


def same_change(mine: Change, other: Change) -> bool:
    return (mine.digest_before, mine.digest) == (other.digest_before, other.digest) and all(
        (a.group, a.positions.tolist(), a.old.tobytes(), a.new.tobytes())
        == (b.group, b.positions.tolist(), b.old.tobytes(), b.new.tobytes())
        for a, b in zip(mine.parts, other.parts, strict=True)
    )


@given(moves(), st.integers(0, 4))
def test_composition_is_associative_and_its_inverse_undoes(case: Moves, cut: int) -> None:
    state, bundles = case
    start, changes = copy_of(state), [state.resolve([])]
    for bundle in bundles:
        changes.append(state.resolve(bundle))
        state.commit(changes[-1])
    whole = compose(changes)
    halves = [compose(part) for part in (changes[:cut], changes[cut:]) if part]
    assert same_change(compose(halves), whole)
    end = copy_of(start)
    end.commit(whole)
    assert equal_states(end, state)
    end.commit(whole.inverse())
    assert equal_states(end, start)
    assert same_change(whole.inverse().inverse(), whole)


def by_hand(state: State, bundle: list[Section]) -> State:
    """The sections applied element by element, as the module's text says it."""
    moved = copy_of(state)
    for section in bundle:
        dtype = section.dtype
        group = next(i for i, g in enumerate(moved.schema.groups) if g.dtype == dtype)
        for at, index in enumerate(section.indices.tolist()):
            position = index - moved.schema.groups[group].start
            if isinstance(section, Steps):
                level = 0 if section.levels is None else int(section.levels[at])
                scale = np.float32(section.scale) * np.float32(2.0**level)
                moved.arrays[group][position] += -scale if section.negative[at] else scale
            elif isinstance(section, Values):
                moved.arrays[group][position] = section.values[at]
            else:  # of integers only
                bits = moved.arrays[group].view(f"u{moved.arrays[group].itemsize}")
                told = ((int(bits[position]) >> section.shift) + int(section.differences[at])) << section.shift
                bits[position] = told % (1 << 8 * bits.itemsize)
    return State(moved.schema, moved.arrays)


@given(moves())
def test_bundle_equals_its_elements_one_by_one(case: Moves) -> None:
    state, bundles = case
    for bundle in bundles:
        expected = by_hand(state, bundle)
        state.commit(state.resolve(bundle))
        assert equal_states(state, expected)


@given(schemas())
def test_schema_survives_json_and_covers_its_index_space_without_gaps(schema: Schema) -> None:
    assert Schema.from_json(schema.to_json()) == schema
    ends = [0, *(t.offset + t.size for t in schema.tensors)]
    assert ends == [*(t.offset for t in schema.tensors), schema.elements]
    assert [g.start for g in schema.groups] == [0, *(g.stop for g in schema.groups)][:-1]


@given(schemas(), st.integers(0, 2**63 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_snapshot_survives_its_bytes(schema: Schema, version: int, run: int, newest_us: int) -> None:
    state = new_state(schema)
    data = encode_snapshot(snapshot_of(state, version, run=run, newest_us=newest_us))
    found = decode_snapshot(data, schema)
    assert (found.version, found.run, found.newest_us) == (version, run, newest_us)
    assert equal_states(found.state, state)
    assert encode_snapshot(found) == data
