"""A fold, in each of its forms, leads where its updates lead one by one, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergrad.codec import decode, encode
from evergrad.errors import CorruptRecord
from evergrad.log.folds import absolute, absolute_once, concatenate, smallest_fold
from evergrad.schema import Schema
from evergrad.update import Differences, Section, State, Steps, Update, Values
from tests.builders import copy_of, equal_states, new_state, steps, update_of, values
from tests.property.strategies import lineages

SCHEMA = Schema([("w", "F32", (600,)), ("n", "I64", (8,)), ("h", "BF16", (16,)), ("on", "BOOL", (3,))])
PARTS = {group.dtype: (group.start, group.stop) for group in SCHEMA.groups}


@st.composite
def moves(draw: st.DrawFn) -> Section:
    """Steps, with levels or without, values or differences, over few elements, so that many meet."""
    dtype = draw(st.sampled_from(["F32", "F32", "I64", "BF16", "BOOL"]))
    start, stop = PARTS[dtype]
    chosen = sorted(draw(st.sets(st.integers(start, min(stop, start + 12) - 1), min_size=1, max_size=6)))
    indices, count = np.array(chosen, dtype=np.int64), len(chosen)
    if dtype == "F32" and draw(st.booleans()):
        negative = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
        levels = np.array(draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)), dtype=np.uint8)
        return Steps(indices, negative, draw(st.sampled_from([0.5, 0.1, 3.0])), draw(st.sampled_from([None, levels])))
    if dtype in {"F32", "I64"} and draw(st.booleans()):
        moved = np.array(draw(st.lists(st.integers(-9, 9), min_size=count, max_size=count)), dtype=np.int64)
        return Differences(indices, moved, 0, dtype)
    new = draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))
    return values(chosen, new, dtype)


@st.composite
def chains(draw: st.DrawFn) -> tuple[State, list[Update]]:
    """The state before, and updates that follow each other."""
    start = new_state(SCHEMA, draw(st.integers(0, 9)))
    state, updates = copy_of(start), []
    for version in range(draw(st.integers(1, 6))):
        found = draw(st.lists(moves(), max_size=4))
        examples = draw(lineages())
        update = update_of(state, version, *found, newest_us=draw(st.integers(0, 9)), examples=examples)
        state.commit(state.check(update, version))
        updates.append(update)
    return start, updates


@given(chains())
def test_every_form_of_a_fold_leads_where_its_updates_do(chain: tuple[State, list[Update]]) -> None:
    start, updates = chain
    after = copy_of(start)
    for update in updates:
        after.commit(after.check(update, update.base_version))
    joined = concatenate([encode(update) for update in updates])
    fold = decode(joined, SCHEMA)
    assert (fold.base_version, fold.version) == (0, len(updates))
    assert fold.newest_us == next((u.newest_us for u in reversed(updates) if u.newest_us), 0)
    told = [update.examples for update in updates if update.examples is not None]
    assert (fold.examples is None) == (not told)
    for at in (-1, 0) if fold.examples else ():
        assert any(examples[at] == fold.examples[at] for examples in told)
        assert all(examples[at] in fold.examples for examples in told)
    forms = [fold, *(replace(fold, sections=tuple(f(fold.sections, after))) for f in (absolute, absolute_once))]
    for state in (after, None):
        smallest = smallest_fold(joined, SCHEMA, state)
        assert smallest is not None
        assert len(smallest) <= len(joined)
        forms.append(decode(smallest, SCHEMA))
        assert forms[-1].examples == fold.examples
    for form in forms:
        found = copy_of(start)
        found.commit(found.check(decode(encode(form), SCHEMA), 0))
        assert equal_states(found, after)


@given(chains(), chains())
def test_a_chain_with_a_gap_is_refused(one: tuple[State, list[Update]], other: tuple[State, list[Update]]) -> None:
    parts = [encode(update) for update in one[1]]
    strays = [encode(replace(u, version=u.version + 1, base_version=u.base_version + 1)) for u in other[1]]
    with pytest.raises(CorruptRecord, match="it does not continue"):
        concatenate([*parts, parts[0]])
    if len(strays) > 1:
        with pytest.raises(CorruptRecord, match="it does not continue"):
            concatenate([strays[0], parts[0]])


@pytest.mark.parametrize("wrong", ["digest_before", "schema"])
def test_an_update_that_starts_elsewhere_is_refused(wrong: str) -> None:
    state = new_state(SCHEMA)
    first = update_of(state, 0, steps([1]))
    state.commit(state.check(first, 0))
    second = update_of(state, 1, steps([2]))
    assert concatenate([encode(first), encode(second)])
    with pytest.raises(CorruptRecord, match="it does not continue update 1"):
        concatenate([encode(first), encode(replace(second, **{wrong: 1}))])


def test_values_that_were_told_again_and_again_are_told_once() -> None:
    start = new_state(SCHEMA)
    state, parts = copy_of(start), []
    for version in range(4):
        update = update_of(state, version, values(range(600, 608), [version] * 8, "I64"), steps([version]))
        state.commit(state.check(update, version))
        parts.append(encode(update))
    joined = concatenate(parts)
    smallest = smallest_fold(joined, SCHEMA, state)
    assert smallest is not None
    assert len(smallest) < len(joined) - 3 * 60
    assert [section.dtype for section in decode(smallest, SCHEMA).sections].count("I64") == 1
    once = absolute_once(decode(joined, SCHEMA).sections, state)
    assert [type(section) for section in once] == [Steps] * 4 + [Values], "steps stay steps"


def test_a_fold_larger_than_half_the_model_is_left_out() -> None:
    state = new_state(SCHEMA)
    before = copy_of(state)
    half = values(range(400), state.arrays[0][:400] * 2, "F32")
    update = update_of(state, 0, half)
    state.commit(state.check(update, 0))
    assert len(encode(update)) > SCHEMA.nbytes // 2
    assert smallest_fold(encode(update), SCHEMA, state) is None
    assert smallest_fold(encode(update), SCHEMA, None) is None
    assert smallest_fold(encode(update_of(before, 0, steps([1]))), SCHEMA, None) is not None
