"""Arbitrary models, states and sections."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from evergrad.schema import STORAGE, Schema
from evergrad.update import Differences, Section, State, Steps, Values
from tests.builders import new_state

SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@st.composite
def lineages(draw: st.DrawFn) -> range | None:
    """What an update may say of the examples that it learned from."""
    if draw(st.booleans()):
        return None
    most = (1 << 63) - 1
    first = draw(st.integers(0, 300) | st.integers(0, most - 1))
    return range(first, first + draw(st.integers(1, min(300, most - first)) | st.integers(1, most - first)))


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    kinds = draw(st.lists(st.tuples(st.sampled_from(list(STORAGE)), SHAPES), max_size=6))
    tensors = [(f"t{i}", dtype, shape) for i, (dtype, shape) in enumerate(kinds)]
    return Schema([*tensors, ("w", "F32", (draw(st.integers(1, 300)),))], {"tied": "w"})


@st.composite
def sections(draw: st.DrawFn, schema: Schema) -> Section:
    """A section within one dtype of `schema`, of finite values."""
    group = draw(st.sampled_from([g for g in schema.groups if g.size]))
    chosen = draw(st.sets(st.integers(group.start, group.stop - 1), max_size=20))
    indices = np.array(sorted(chosen), dtype=np.int64)
    if group.dtype == "F32" and draw(st.booleans()):
        signs = draw(st.lists(st.booleans(), min_size=len(indices), max_size=len(indices)))
        scale = draw(st.floats(2.0**-100, 2.0**100, width=32))
        levels = draw(st.none() | st.lists(st.integers(0, 20), min_size=len(indices), max_size=len(indices)))
        told = None if levels is None else np.array(levels, dtype=np.uint8)
        return Steps(indices, np.array(signs, dtype=np.bool_), scale, told)
    if group.dtype != "BOOL" and not group.dtype.startswith(("F", "BF")) and draw(st.booleans()):
        size = st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-3, 3)
        moved = draw(st.lists(size, min_size=len(indices), max_size=len(indices)))
        shift = draw(st.integers(0, 8 * group.storage.itemsize - 1))
        return Differences(indices, np.array(moved, dtype=np.int64), shift, group.dtype)
    raw = new_state(schema, draw(st.integers(0, 99))).arrays[schema.groups.index(group)]
    return Values(indices, raw[indices - group.start], group.dtype)


@st.composite
def moves(draw: st.DrawFn) -> tuple[State, list[list[Section]]]:
    """A state, and a run of updates' sections for it."""
    schema = draw(schemas())
    state = new_state(schema, draw(st.integers(0, 99)))
    bundle = st.lists(sections(schema), max_size=3)
    return state, draw(st.lists(bundle, max_size=4))
