"""One malformed table of tensors per rejection rule of `Schema.from_json`, and arbitrary ones."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergrad.errors import CorruptRecord
from evergrad.schema import MAX_ELEMENTS, MAX_RANK, Schema
from tests.builders import small_schema


def table(*rows: tuple[str, str, list[int]], aliases: dict[str, str] | None = None, **more: object) -> bytes:
    tensors = [{"name": name, "dtype": dtype, "shape": shape} for name, dtype, shape in rows]
    return json.dumps({"tensors": tensors, "aliases": aliases or {}, **more}).encode()


W = ("w", "F32", [2])
REJECTED = {
    "empty": (b"", "truncated"),
    "no json": (b"{", "truncated"),
    "a list": (b"[]", "Expected `object`"),
    "no tensors": (b'{"aliases": {}}', "missing required field `tensors`"),
    "unknown field": (table(W, pickled="x"), "unknown field `pickled`"),
    "no utf-8": (table(W).replace(b'"w"', b'"\xff"'), "utf-8"),
    "nested without end": (b'{"tensors": ' + b"[" * 100_000, "Expected `object`"),
    "unknown dtype": (table(("w", "F8_E4M3", [2])), "F8_E4M3"),
    "side below zero": (table(("w", "F32", [-1])), "sides of zero or more"),
    "fractional side": (table(W).replace(b"[2]", b"[2.5]"), "Expected `int`"),
    "side true": (table(W).replace(b"[2]", b"[true]"), "Expected `int`"),
    "too many elements": (table(("w", "F32", [MAX_ELEMENTS + 1])), "at most"),
    "too many elements together": (table(("v", "F32", [MAX_ELEMENTS]), W), "at most"),
    "sides that overflow beside an empty one": (table(("w", "F32", [0, 1 << 62, 1 << 62])), "empty sides aside"),
    "a side of a thousand digits": (table(("w", "F32", [0, 10**1000])), "empty sides aside"),
    "too many sides": (table(("w", "F32", [1] * (MAX_RANK + 1))), "at most 32 sides"),
    "name that safetensors keeps": (table(("__metadata__", "F32", [1])), "does not keep for itself"),
    "name twice": (table(W, W), "each name once"),
    "alias of a name in the table": (table(W, ("v", "F32", [1]), aliases={"v": "w"}), "each name once"),
    "alias of nothing": (table(W, aliases={"tied": "v"}), "an alias of a tensor in the table"),
    "dtypes not side by side": (table(W, ("n", "I64", []), ("v", "F32", [1])), "side by side"),
}


@pytest.mark.parametrize(("data", "reason"), REJECTED.values(), ids=REJECTED.keys())
def test_malformed_table_is_refused_by_name_and_reason(data: bytes, reason: str) -> None:
    with pytest.raises(CorruptRecord) as caught:
        Schema.from_json(data, "schema/abc.json")
    assert caught.value.name == "schema/abc.json"
    assert reason in caught.value.reason


def test_what_the_rejected_tables_were_made_from_is_accepted() -> None:
    assert Schema.from_json(table(W, aliases={"tied": "w"})).aliases == {"tied": "w"}


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptRecord):
        Schema.from_json(data)


@given(st.data())
def test_altered_table_is_read_or_refused(data: st.DataObject) -> None:
    raw = bytearray(small_schema().to_json())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(len(raw) - 2, len(raw)))]
    try:
        found = Schema.from_json(bytes(raw))
    except CorruptRecord:
        return
    assert Schema.from_json(found.to_json()) == found
