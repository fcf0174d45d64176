"""What sections do to a state, what an update is checked for, and the digest that proves it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evergrad.errors import BaseMismatch, CorruptRecord, DigestMismatch, SchemaMismatch
from evergrad.schema import STORAGE, Schema
from evergrad.update import Section, State, Steps, digest, finite, fold, mix
from tests.builders import copy_of, equal_states, new_state, small_schema, steps, update_of, values


def zeros(schema: Schema) -> State:
    return State(schema, [np.zeros(group.size, group.storage) for group in schema.groups])


def applied(state: State, *sections: Section) -> State:
    moved = copy_of(state)
    moved.commit(moved.resolve(sections))
    assert moved.digest == digest(moved.schema, moved.arrays)
    return moved


def test_steps_move_elements_up_and_down_by_one_float32_addition() -> None:
    state = zeros(small_schema())
    state.arrays[0][:] = np.float32(1 / 3)
    moved = applied(state, steps([0, 12, 15], 0.1, [False, True, False]))
    expected = np.full(16, np.float32(1 / 3))
    expected[[0, 15]] += np.float32(0.1)
    expected[12] -= np.float32(0.1)
    assert moved.arrays[0].tobytes() == expected.tobytes()


@pytest.mark.parametrize(("dtype", "at"), [("F32", 15), ("I64", 16), ("BF16", 20), ("BOOL", 21)])
def test_values_reach_each_dtype_where_the_schema_says(dtype: str, at: int) -> None:
    moved = applied(zeros(small_schema()), values([at], [1], dtype))
    after = [array.tolist() for array in moved.arrays]
    group = next(g for g in moved.schema.groups if g.dtype == dtype)
    assert after[moved.schema.groups.index(group)].pop(at - group.start) == 1
    assert not any(value for array in after for value in array)


def test_sections_on_the_same_elements_apply_in_order() -> None:
    state = zeros(small_schema())
    up, down, put = steps([1, 2], 1.0, [False, False]), steps([2, 3], 4.0, [True, True]), values([2, 5], [10, 20])
    orders = [((up, down, put), [0, 1, 10, -4, 0, 20]), ((put, up, down), [0, 1, 7, -4, 0, 20])]
    orders += [((up, put, down), [0, 1, 6, -4, 0, 20]), ((up, up, up), [0, 3, 3, 0, 0, 0])]
    for sections, expected in orders:
        moved = applied(state, *sections)
        assert moved.arrays[0][:6].tolist() == expected
        one_by_one = copy_of(state)
        for section in sections:
            one_by_one = applied(one_by_one, section)
        assert equal_states(moved, one_by_one)


def test_sections_of_several_dtypes_interleave() -> None:
    parts = values([17], [0x3F80], "BF16"), steps([0]), values([16], [3], "I64"), values([17, 18], [1, 2], "BF16")
    moved = applied(zeros(small_schema()), *parts, steps([0]))
    assert (moved.arrays[0][0], moved.arrays[1].tolist(), moved.arrays[2].tolist()) == (1.0, [3], [1, 2, 0, 0])


def test_empty_sections_change_nothing() -> None:
    state = new_state(small_schema())
    assert equal_states(applied(state, steps([]), values([], [], "I8"), values([], [])), state)
    assert equal_states(applied(state), state)


def test_resolve_writes_nothing() -> None:
    state = new_state(small_schema())
    before = copy_of(state)
    state.resolve([steps([0, 5]), values([16], [9], "I64")])
    assert equal_states(state, before)


@pytest.mark.parametrize(
    "section",
    [steps([-1]), steps([15, 16]), steps([24]), values([16, 17], [1, 2], "I64"), values([0], [1], "I64"),
     values([0], [1], "F64"), steps([0, 16], 1.0)],
)  # fmt: skip
def test_index_outside_its_dtype_is_refused(section: Section) -> None:
    with pytest.raises(CorruptRecord, match="outside the schema's"):
        new_state(small_schema()).resolve([section])


@pytest.mark.parametrize(
    "sections",
    [
        [values([3], [np.nan])],
        [values([3], [np.inf])],
        [values([3], [3e38]), steps([3], 3e38, [False])],
        [values([18], [0x7F80], "BF16")],
        [values([18], [0xFFC1], "BF16")],
    ],
    ids=["nan", "infinity", "overflow", "bf16 infinity", "bf16 nan"],
)
def test_values_that_are_not_finite_are_refused(sections: list[Section]) -> None:
    state = new_state(small_schema())
    with pytest.raises(CorruptRecord, match="NaN or infinite"):
        state.resolve(sections)


def test_finite_knows_every_dtype() -> None:
    for dtype, storage in STORAGE.items():
        assert finite(np.ones(3, storage), dtype).all()
    assert finite(np.array([np.inf, 1, np.nan], "f2"), "F16").tolist() == [False, True, False]
    assert finite(np.array([0x7F7F, 0x7F80, 0xFF80, 0x7FFF], "u2"), "BF16").tolist() == [True, False, False, False]
    assert finite(np.array([0x7F80], "u2"), "U16").all()


def test_check_accepts_the_next_update_and_commit_reaches_its_digest() -> None:
    state = new_state(small_schema())
    update = update_of(state, 4, steps([1, 2]), values([22], [1], "BOOL"))
    state.commit(state.check(update, 4))
    assert state.digest == update.digest_after == digest(state.schema, state.arrays)
    assert update.elements == 3


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("base_version", 3, BaseMismatch),
        ("base_version", 5, BaseMismatch),
        ("version", 4, BaseMismatch),
        ("schema", 0, BaseMismatch),
        ("digest_before", 0, DigestMismatch),
        ("digest_after", 0, DigestMismatch),
        ("sections", (), DigestMismatch),
        ("sections", (steps([1], 0.25),), DigestMismatch),
    ],
)
def test_update_of_another_state_is_refused_and_nothing_moves(field: str, value: object, error: type) -> None:
    state = new_state(small_schema())
    before = copy_of(state)
    update = replace(update_of(state, 4, steps([1])), **{field: value})
    with pytest.raises(error):
        state.check(update, 4)
    assert equal_states(state, before)


def test_digest_mismatch_tells_version_expected_and_found() -> None:
    state = new_state(small_schema())
    with pytest.raises(DigestMismatch) as caught:
        state.check(replace(update_of(state, 4, steps([1])), digest_before=7), 4)
    assert (caught.value.version, caught.value.expected, caught.value.found) == (4, 7, state.digest)


def slow_digest(state: State) -> int:
    """The definition of DESIGN, element by element in Python's own integers."""
    mask, total, index = (1 << 64) - 1, 0, 0
    for array in state.arrays:
        for bits in array.view(f"u{array.dtype.itemsize}").tolist():
            x = (index * 0x9E3779B97F4A7C15 + bits) & mask
            x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & mask
            x = ((x ^ x >> 27) * 0x94D049BB133111EB) & mask
            total, index = total + (x ^ x >> 31), index + 1
    return total & mask


@pytest.mark.parametrize("dtype", STORAGE)
def test_digest_is_the_sum_of_the_mix_of_index_and_bits(dtype: str) -> None:
    state = new_state(Schema([("a", "F32", (5,)), ("b", dtype, (2, 3))]), seed=3)
    assert state.digest == slow_digest(state)


@pytest.mark.parametrize("elements", [(1 << 20) - 1, 1 << 20, (1 << 20) + 1, (2 << 20) + 7])
def test_digest_does_not_depend_on_how_a_large_state_is_cut(elements: int) -> None:
    schema = Schema([("n", "I8", (3,)), ("w", "U8", (elements,))])
    state = new_state(schema)
    bits = np.concatenate([array.view(np.uint8) for array in state.arrays]).astype(np.uint64)
    whole = mix(np.arange(elements + 3, dtype=np.uint64), bits).sum(dtype=np.uint64)
    assert state.digest == int(whole)
    moved = applied(state, values([elements + 2], [5], "U8"), values([3 + min(elements - 1, 1 << 20)], [7], "U8"))
    assert moved.digest != state.digest


def test_digest_tells_zero_from_minus_zero_and_one_place_from_another() -> None:
    schema = Schema([("w", "F32", (2,))])
    digests = {State(schema, [np.array(pair, "f4")]).digest for pair in ([0, 0], [-0.0, 0], [0, -0.0], [1, 0], [0, 1])}
    assert len(digests) == 5


def test_states_of_nothing_scalars_and_empty_tensors_have_digests() -> None:
    assert zeros(Schema([])).digest == 0
    assert zeros(Schema([("none", "F32", (0, 3))])).digest == 0
    state = new_state(Schema([("none", "F32", (0, 3)), ("one", "F32", ()), ("empty", "I8", (0,)), ("two", "I8", ())]))
    assert state.digest == slow_digest(state)
    assert {name: view.shape for name, view in state.tensors().items()} == {
        "none": (0, 3), "one": (), "empty": (0,), "two": (),
    }  # fmt: skip
    moved = applied(state, steps([0], 1.0, [False]), values([1], [5], "I8"))
    assert (moved.tensors()["one"], moved.tensors()["two"]) == (state.arrays[0][0] + np.float32(1), 5)


def test_tensors_are_read_only_views_that_follow_and_share_tied_names() -> None:
    state = new_state(small_schema())
    views = state.tensors()
    assert views["w"] is views["w_tied"]
    for view in views.values():
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 0
    state.commit(state.resolve([values([0, 12], [7, 8])]))
    assert (views["w"][0, 0], views["b"][0]) == (7, 8)
    assert state.arrays[0].flags.writeable


def test_from_tensors_copies() -> None:
    state = new_state(small_schema())
    given = {name: view.copy() for name, view in state.tensors().items()}
    made = State.from_tensors(state.schema, given)
    given["w"][:] = 0
    assert equal_states(made, state)


@pytest.mark.parametrize(
    ("name", "tensor", "found"),
    [
        ("b", None, "no such tensor"),
        ("b", np.zeros(4, "f8"), "float64 [4]"),
        ("b", np.zeros((4, 1), "f4"), "float32 [4, 1]"),
        ("count", np.zeros(1, "i8"), "int64 [1]"),
    ],
)
def test_from_tensors_refuses_by_name(name: str, tensor: np.ndarray | None, found: str) -> None:
    given = dict(new_state(small_schema()).tensors())
    del given[name]
    with pytest.raises(SchemaMismatch) as caught:
        State.from_tensors(small_schema(), given if tensor is None else given | {name: tensor})
    assert (caught.value.tensor, caught.value.found) == (name, found)


def test_arrays_that_do_not_fit_the_groups_are_refused() -> None:
    schema = Schema([("w", "F32", (3,))])
    for array in (np.zeros(3, "f8"), np.zeros(4, "f4"), np.zeros((3, 1), "f4")):
        with pytest.raises(SchemaMismatch, match="group F32"):
            State(schema, [array])


def test_fold_gives_the_values_now_and_leaves_out_untouched_groups() -> None:
    state = new_state(small_schema())
    start = copy_of(state)
    state.commit(state.resolve([steps([0, 3]), values([19], [7], "BF16")]))
    folded = fold(state, {2: np.array([2]), 0: np.array([0, 3]), 1: np.array([], dtype=np.int64)})
    assert [(part.dtype, part.indices.tolist()) for part in folded] == [("F32", [0, 3]), ("BF16", [19])]
    assert equal_states(applied(start, *folded), state)


def test_scale_is_rounded_to_float32_where_it_is_applied() -> None:
    moved = applied(zeros(small_schema()), Steps(np.array([0]), np.array([False]), 0.1))
    assert moved.arrays[0][0] == np.float32(0.1)
