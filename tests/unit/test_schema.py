"""The flat index space, and how two models are told apart."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evergrad.errors import SchemaMismatch
from evergrad.schema import MAX_ELEMENTS, MAX_RANK, STORAGE, Schema, widen_bf16
from tests.builders import TENSORS, small_schema


def test_equal_dtypes_lie_side_by_side_in_the_order_of_first_appearance() -> None:
    schema = Schema([("a", "I64", (2,)), ("b", "F32", (3,)), ("c", "I64", (1,)), ("d", "F32", ())])
    assert [(t.name, t.offset, t.size) for t in schema.tensors] == [("a", 0, 2), ("c", 2, 1), ("b", 3, 3), ("d", 6, 1)]
    assert [(g.dtype, g.start, g.stop) for g in schema.groups] == [("I64", 0, 3), ("F32", 3, 7)]
    assert (schema.elements, schema.nbytes) == (7, 3 * 8 + 4 * 4)


def test_scalars_hold_one_element_and_empty_tensors_none() -> None:
    schema = Schema([("none", "F32", (0, 5)), ("one", "F32", ()), ("empty", "I8", (0,))])
    assert [(t.offset, t.size) for t in schema.tensors] == [(0, 0), (0, 1), (1, 0)]
    assert [(g.dtype, g.size) for g in schema.groups] == [("F32", 1), ("I8", 0)]


def test_model_without_tensors_has_a_schema() -> None:
    schema = Schema([])
    assert (schema.elements, schema.groups, schema.nbytes) == (0, (), 0)
    assert Schema.from_json(schema.to_json()) == schema


@pytest.mark.parametrize("dtype", STORAGE)
def test_each_dtype_survives_json(dtype: str) -> None:
    schema = Schema([("t", dtype, (2, 0, 3)), ("s", dtype, ())], {"tied": "s"})
    again = Schema.from_json(schema.to_json())
    assert again == schema
    assert hash(again) == hash(schema)
    assert (again.tensors, again.aliases, again.groups) == (schema.tensors, schema.aliases, schema.groups)


def test_order_of_aliases_does_not_matter_and_their_presence_does() -> None:
    one, two = (
        Schema([("w", "F32", (1,))], dict(pairs)) for pairs in ([("a", "w"), ("b", "w")], [("b", "w"), ("a", "w")])
    )
    assert one == two
    assert one != Schema([("w", "F32", (1,))])


@pytest.mark.parametrize(
    ("tensors", "aliases", "tensor"),
    [
        ([("w", "F7", (1,))], {}, "w"),
        ([("w", "F32", (1,)), ("w", "I64", (1,))], {}, "w"),
        ([("w", "F32", (-1,))], {}, "w"),
        ([("v", "F32", (1,)), ("w", "F32", (MAX_ELEMENTS,))], {}, "w"),
        ([("w", "F32", (1,) * (MAX_RANK + 1))], {}, "w"),
        ([("w", "F32", (1,))], {"w": "w"}, "w"),
        ([("w", "F32", (1,))], {"tied": "v"}, "tied"),
    ],
    ids=["dtype", "twice", "negative", "too large", "rank", "alias hides", "alias of nothing"],
)
def test_impossible_table_is_refused_by_tensor(
    tensors: list[tuple[str, str, tuple[int, ...]]], aliases: dict[str, str], tensor: str
) -> None:
    with pytest.raises(SchemaMismatch) as caught:
        Schema(tensors, aliases)
    assert caught.value.tensor == tensor


def test_largest_model_is_accepted() -> None:
    assert Schema([("w", "F32", (MAX_ELEMENTS,))]).elements == MAX_ELEMENTS


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Schema([("w", "F32", (4, 3)), *TENSORS[1:]], {"w_tied": "w"}), ("w", "F32 [3, 4]", "F32 [4, 3]")),
        (Schema([TENSORS[0], ("b", "F16", (4,)), *TENSORS[2:]], {"w_tied": "w"}), ("b", "F32 [4]", "F16 [4]")),
        (Schema(TENSORS[:-1], {"w_tied": "w"}), ("on", "BOOL [3]", "no such tensor")),
        (Schema([*TENSORS, ("new", "I8", (1,))], {"w_tied": "w"}), ("new", "no such tensor", "I8 [1]")),
        (Schema(TENSORS), ("w_tied", "tied to w", "not tied")),
        (Schema(TENSORS, {"w_tied": "b"}), ("w_tied", "tied to w", "tied to b")),
        (
            Schema([TENSORS[1], TENSORS[0], *TENSORS[2:]], {"w_tied": "w"}),
            ("w", "tensors in the order w, b, count, h, on", "another order"),
        ),
    ],
    ids=["shape", "dtype", "missing", "new", "untied", "tied otherwise", "order"],
)
def test_require_names_the_first_tensor_that_differs(found: Schema, expected: tuple[str, str, str]) -> None:
    with pytest.raises(SchemaMismatch) as caught:
        small_schema().require(found)
    assert (caught.value.tensor, caught.value.expected, caught.value.found) == expected


def test_require_accepts_an_equal_schema() -> None:
    small_schema().require(small_schema())


def test_schema_is_not_equal_to_other_things() -> None:
    assert small_schema() != small_schema().fingerprint


def test_widened_bfloat16_is_exact() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    wide = widen_bf16(bits)
    assert wide.shape == bits.shape
    assert np.array_equal(wide.view(np.uint32) >> 16, bits)
    assert wide[0, 1] == 2.0 ** (-126 - 7)
    assert math.isinf(wide[0x7F, 0x80])
