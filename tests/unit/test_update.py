"""What sections do to a state, what an update is checked for, and the digest that proves it."""

from __future__ import annotations

from dataclasses import replace

import numba
import numpy as np
import pytest

from evergrad.errors import BaseMismatch, CorruptRecord, DigestMismatch, SchemaMismatch
from evergrad.schema import STORAGE, Schema
from evergrad.update import (
    Differences,
    Section,
    State,
    Steps,
    Values,
    compose,
    differences,
    digest,
    from_ordered,
    hull,
    mix,
    to_ordered,
    values_of,
)
from evergrad.update.digest import sum_mix, valid
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
        [values([21], [2], "BOOL")],
        [Steps(np.array([3]), np.array([True]), 3e38, np.array([63], "u1"))],
    ],
    ids=["nan", "infinity", "overflow", "bf16 infinity", "bf16 nan", "boolean", "level"],
)
def test_values_that_are_not_finite_are_refused(sections: list[Section]) -> None:
    state = new_state(small_schema())
    with pytest.raises(CorruptRecord, match="NaN, infinite or no boolean"):
        state.resolve(sections)


def test_valid_knows_every_dtype() -> None:
    for dtype, storage in STORAGE.items():
        assert valid(np.ones(3, storage), dtype)
    for dtype, bad in (("F16", 0x7C00), ("BF16", 0x7F80), ("BF16", 0xFF80), ("BF16", 0x7FFF)):
        assert not valid(np.array([0, bad], "u2").view(STORAGE[dtype]), dtype)
    assert valid(np.array([0x7F7F], "u2"), "BF16")
    assert valid(np.array([0x7F80], "u2"), "U16")
    assert not valid(np.array([1, 2], "u1"), "BOOL")
    assert valid(np.array([], "u1"), "BOOL")


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


def test_composed_changes_hold_first_old_and_last_new_values() -> None:
    state = new_state(small_schema())
    start, changes = copy_of(state), []
    for sections in ([steps([0, 3])], [values([3, 5], [7, 8]), values([19], [7], "BF16")], [steps([0])], []):
        changes.append(state.resolve(sections))
        state.commit(changes[-1])
    whole = compose(changes)
    assert [(part.group, part.positions.tolist()) for part in whole.parts] == [(0, [0, 3, 5]), (2, [2])]
    for part in whole.parts:
        assert part.old.tobytes() == start.arrays[part.group][part.positions].tobytes()
        assert part.new.tobytes() == state.arrays[part.group][part.positions].tobytes()
    told = [section for section, _ in values_of(whole, state.schema)]
    assert [(part.dtype, part.indices.tolist()) for part in told] == [("F32", [0, 3, 5]), ("BF16", [19])]
    assert equal_states(applied(start, *told), state)
    state.commit(whole.inverse())
    assert equal_states(state, start)


def test_changes_that_do_not_follow_each_other_are_refused() -> None:
    state = new_state(small_schema())
    with pytest.raises(BaseMismatch, match=f"{state.digest:016x}"):
        compose([state.resolve([steps([1])]), state.resolve([steps([2])])])


def extremes(dtype: str) -> np.ndarray:
    """Zeros of both signs, subnormals, and the ends of the range."""
    storage = STORAGE[dtype]
    if dtype == "BF16":
        return np.array([0xFF7F, 0xBF80, 0x8001, 0x8000, 0, 1, 0x3F80, 0x7F7F], "u2")
    if storage.kind == "f":
        info = np.finfo(storage)
        tiny = info.smallest_subnormal
        return np.array([info.min, -1, -tiny, -0.0, 0.0, tiny, 1, info.max], storage)
    low, high = (0, 1) if dtype == "BOOL" else (int(np.iinfo(storage).min), int(np.iinfo(storage).max))
    return np.array([low, min(low + 1, high), high // 2, high], storage)


@pytest.mark.parametrize("dtype", STORAGE)
def test_ordered_bits_ascend_with_floating_values_and_come_back(dtype: str) -> None:
    found = to_ordered(extremes(dtype), dtype)
    assert from_ordered(found, dtype).tobytes() == extremes(dtype).tobytes()
    assert from_ordered(found, dtype).dtype == STORAGE[dtype]
    if dtype in ("F64", "F32", "F16", "BF16"):
        assert (found[1:] > found[:-1]).all()
    else:
        assert found.tobytes() == extremes(dtype).tobytes()


@pytest.mark.parametrize("dtype", STORAGE)
def test_differences_lead_between_any_two_extremes(dtype: str) -> None:
    new = np.repeat(extremes(dtype), len(extremes(dtype)))
    old = np.tile(extremes(dtype), len(extremes(dtype)))
    told = differences(Values(np.arange(len(new)), new, dtype), old)
    assert told.moved(old).tobytes() == new.tobytes()
    assert (told.shift, told.dtype, told.differences.dtype) == (0, dtype, np.int64)
    for shift in range(1, 8 * new.itemsize):
        ordered = to_ordered(new, dtype)
        cut = from_ordered(ordered >> ordered.dtype.type(shift) << ordered.dtype.type(shift), dtype)
        assert differences(Values(np.arange(len(new)), cut, dtype), old, shift).moved(old).tobytes() == cut.tobytes()


def test_difference_is_the_nearer_one_modulo_two_to_the_bits() -> None:
    told = differences(Values(np.arange(2), np.array([255, 0], "u1"), "U8"), np.array([0, 255], "u1"))
    assert told.differences.tolist() == [-1, 1]
    top = differences(Values(np.arange(1), np.array([2**63 - 1]), "I64"), np.array([-(2**63)]))
    assert top.differences.tolist() == [-1]
    assert Differences(np.arange(1), np.array([3]), 2, "U8").moved(np.array([255], "u1")).tolist() == [
        (63 + 3) % 64 * 4
    ]


def test_steps_with_levels_move_by_powers_of_two() -> None:
    state = zeros(small_schema())
    moved = applied(state, Steps(np.array([0, 1, 2]), np.array([False, True, False]), 0.1, np.array([0, 3, 63], "u1")))
    scale = np.float32(0.1)
    assert moved.arrays[0][:3].tolist() == [scale, -scale * 8, scale * np.float32(2.0**63)]


@numba.njit
def twin(first: int, bits: np.ndarray) -> np.uint64:
    total, index = np.uint64(0), np.uint64(first)
    for value in bits:
        x = index * np.uint64(0x9E3779B97F4A7C15) + value
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        total += x ^ (x >> np.uint64(31))
        index += np.uint64(1)
    return total


def test_digest_is_that_of_a_scalar_compiled_twin_in_either_byte_order() -> None:
    bits = np.random.default_rng(0).integers(0, 2**64, 200_000, dtype=np.uint64, endpoint=False)
    first = (1 << 40) - len(bits)
    expected = int(twin(first, bits))
    assert sum_mix(first, bits) % 2**64 == expected
    assert sum_mix(first, bits.astype(">u8")) % 2**64 == expected
    assert sum_mix(first, bits.view("f8").astype(">f8")) % 2**64 == int(twin(first, bits.view("f8").view("u8")))


def test_scale_is_rounded_to_float32_where_it_is_applied() -> None:
    moved = applied(zeros(small_schema()), Steps(np.array([0]), np.array([False]), 0.1))
    assert moved.arrays[0][0] == np.float32(0.1)


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ([], None),
        ([None, None], None),
        ([None, range(5, 5)], None),
        ([range(5, 8), None], range(5, 8)),
        ([range(7, 9), range(2, 3)], range(2, 9)),
        ([range(2, 9), range(3, 4)], range(2, 9)),
    ],
)
def test_hull_is_the_shortest_range_that_holds_all(ranges: list[range | None], expected: range | None) -> None:
    assert hull(ranges) == expected
