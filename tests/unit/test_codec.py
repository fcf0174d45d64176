"""Updates and snapshots survive their bytes, and cost what the design says."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy

from evergrad.codec import (
    HEADER_BYTES,
    compact,
    decode,
    decode_header,
    decode_snapshot,
    encode,
    encode_snapshot,
    encoded_bytes,
    split,
    with_header,
)
from evergrad.codec.rice import Reader, read_rice, varint, write_rice
from evergrad.codec.streams import read_differences, write_differences
from evergrad.schema import STORAGE, Schema
from evergrad.update import Differences, Section, Steps, Update, Values, differences
from tests.builders import RUN, equal_states, new_state, small_schema, snapshot_of, steps, update_of, values


def same_array(mine: np.ndarray, other: np.ndarray) -> bool:
    return mine.dtype == other.dtype and mine.tobytes() == other.tobytes()


def same_section(mine: Section, other: Section) -> bool:
    if not (same_array(mine.indices, other.indices) and mine.dtype == other.dtype):
        return False
    match mine, other:
        case Steps(), Steps():
            levels = (mine.levels is None) == (other.levels is None) and (
                mine.levels is None or other.levels is None or same_array(mine.levels, other.levels)
            )
            return levels and same_array(mine.negative, other.negative) and np.float32(mine.scale) == other.scale
        case Values(), Values():
            return same_array(mine.values, other.values)
        case Differences(), Differences():
            return mine.shift == other.shift and same_array(mine.differences, other.differences)
    return False


def same_update(mine: Update, other: Update) -> bool:
    fields = ("base_version", "version", "run", "schema", "digest_before", "digest_after", "newest_us", "examples")
    sections = [section for section in mine.sections if len(section.indices)]
    return all(getattr(mine, f) == getattr(other, f) for f in fields) and all(
        same_section(a, b) for a, b in zip(sections, other.sections, strict=True)
    )


def header_of(*sections: Section) -> Update:
    return Update(
        base_version=0, version=1, run=RUN, schema=3, digest_before=4, digest_after=5, newest_us=6, sections=sections
    )


def section_of(kind: str, dtype: str, at: np.ndarray) -> Section:
    rng, count = np.random.default_rng(len(at)), len(at)
    if kind in ("steps", "levels"):
        levels = rng.integers(0, 64, count).astype("u1") if kind == "levels" else None
        return Steps(at, rng.random(count) < 0.5, 0.25, levels)
    bits = 8 * STORAGE[dtype].itemsize
    if kind == "values":
        return Values(at, rng.integers(0, 256, count * bits // 8).astype("u1").view(STORAGE[dtype]), dtype)
    wide = rng.integers(-(2**63), 2**63 - 1, count) >> rng.integers(64 - bits, 64, count)
    wide[0] = -(1 << (bits - 1))
    return Differences(at, wide, bits - 1 if kind == "shifted" else 0, dtype)


KINDS = [(kind, dtype) for kind in ("values", "differences", "shifted") for dtype in STORAGE]
KINDS += [("steps", "F32"), ("levels", "F32")]


@pytest.mark.parametrize(("kind", "dtype"), KINDS, ids=[f"{kind} {dtype}" for kind, dtype in KINDS])
@pytest.mark.parametrize("runs", [False, True], ids=["gaps", "runs"])
@pytest.mark.parametrize("count", [1, 127, 128, 129, 1000])
def test_every_kind_dtype_and_telling_of_indices_survives(kind: str, dtype: str, runs: bool, count: int) -> None:
    at = np.arange(count) + (900 if runs else 0)
    if runs:
        at[count // 2 :] += 5
    else:
        at = at * 7 + 3
    section = section_of(kind, dtype, at)
    data = encode(header_of(section))
    assert data[HEADER_BYTES] >> 7 == (runs and count > 8)
    assert same_update(header_of(section), decode(data, Schema([("w", dtype, (10_000,))])))
    assert encoded_bytes([section, section]) == 2 * (len(data) - HEADER_BYTES)


def test_header_is_read_without_the_body_and_written_around_one() -> None:
    update = header_of(steps([1, 2]), values([16], [3], "I64"))
    data = encode(update)
    assert same_update(decode_header(data), header_of())
    assert with_header(update, data[HEADER_BYTES:]) == data
    moved = with_header(replace(update, version=9, base_version=2), data[HEADER_BYTES:])
    assert same_update(decode(moved, small_schema()), replace(update, version=9, base_version=2))


def test_lineage_costs_few_bytes_and_is_no_part_of_the_body() -> None:
    update = header_of(steps([1, 2]))
    plain, told = encode(update), encode(replace(update, examples=range(1_000_000, 1_000_128)))
    assert len(told) == len(plain) + 3 + 2
    assert split(told)[1] == split(plain)[1] == plain[HEADER_BYTES:]
    assert same_update(split(told)[0], replace(header_of(), examples=range(1_000_000, 1_000_128)))
    assert encode(replace(update, examples=range(7, 7))) == plain


def test_compact_takes_whichever_is_shorter() -> None:
    at, old = np.arange(500), np.random.default_rng(0).standard_normal(500).astype("f4")
    near, far = Values(at, np.nextafter(old, np.float32(9)), "F32"), Values(at, -old[::-1].copy(), "F32")
    told = compact(near, old)
    assert isinstance(told, Differences)
    assert told.moved(old).tobytes() == near.values.tobytes()
    for section in (near, far):
        chosen = encoded_bytes([compact(section, old)])
        assert chosen <= min(encoded_bytes([section]), encoded_bytes([differences(section, old)]))
    assert encoded_bytes([compact(near, old)]) < encoded_bytes([near]) / 5
    assert compact(Values(at, np.zeros(500, "f4"), "F32"), old, 8).dtype == "F32"


def test_compact_of_nothing_is_nothing() -> None:
    nothing = values([], [])
    assert compact(nothing, np.array([], "f4")) is nothing
    assert encoded_bytes([nothing]) == 0


WORDS = [
    [0],
    [2**64 - 1 >> 8],
    [1] * 128,
    [5] * 129,
    [0] * 200 + [2**40] * 3,
    list(range(0, 3000, 7)),
    [2**k for k in range(50)],
]


@pytest.mark.parametrize("words", WORDS, ids=[f"{len(words)} to {max(words)}" for words in WORDS])
@pytest.mark.parametrize("rest", [b"", b"\xff\xff"], ids=["alone", "followed"])
def test_rice_stream_survives_and_stops_at_its_end(words: list[int], rest: bytes) -> None:
    numbers = np.array(words, dtype=np.uint64)
    data = write_rice(numbers)
    reader = Reader(b"xyz" + data + rest, 3, "here")
    assert read_rice(reader, len(words)).tolist() == words
    assert reader.offset == 3 + len(data)


@pytest.mark.parametrize("number", [0, 1, 127, 128, 2**14 - 1, 2**14, 2**63 - 1])
def test_varint_survives(number: int) -> None:
    data = varint(number)
    reader = Reader(data + b"\x80", 0, "here")
    assert (reader.varint(), reader.offset) == (number, max(1, -(-number.bit_length() // 7)))


def test_signed_numbers_of_any_size_survive() -> None:
    numbers = np.array([0, -1, 1, 2**63 - 1, -(2**63)] + [(-2) ** k for k in range(63)] * 5, dtype=np.int64)
    data = write_differences(numbers)
    reader = Reader(data, 0, "here")
    assert read_differences(reader, len(numbers)).tolist() == numbers.tolist()
    assert reader.offset == len(data)


@pytest.mark.parametrize(
    "sections",
    [
        (),
        (steps([]),),
        (values([], [], "BOOL"),),
        (steps([0], 1e-45),),
        (steps([15], 3.4e38),),
        (steps(range(16)),),
        (steps([0, 1, 14, 15]), values([16], [-(2**63)], "I64"), values([17, 20], [0, 65535], "BF16")),
        (values([21, 22, 23], [1, 0, 1], "BOOL"), steps([3]), steps([3])),
        (steps([2]),) * 255,
    ],
    ids=["none", "no steps", "no values", "smallest", "largest", "all", "mixed", "repeated", "255"],
)
def test_update_survives_its_bytes(sections: tuple[Section, ...]) -> None:
    state = new_state(small_schema())
    update = Update(
        base_version=2**63 - 2**32, version=2**63 - 1, run=RUN, schema=2**64 - 1, digest_before=0,
        digest_after=2**64 - 1, newest_us=2**64 - 1, sections=sections,
    )  # fmt: skip
    data = encode(update)
    assert same_update(update, decode(data, state.schema))
    assert encode(decode(data, state.schema)) == data


def test_indices_at_both_ends_of_the_largest_model_survive() -> None:
    schema = Schema([("w", "F32", (1 << 40,))])
    for at in ([0], [(1 << 40) - 1], [0, (1 << 40) - 1], [7, 8, 1 << 39]):
        update = Update(
            base_version=0, version=1, run=0, schema=0, digest_before=0, digest_after=0, newest_us=0,
            sections=(steps(at),),
        )  # fmt: skip
        data = encode(update)
        assert same_update(update, decode(data, schema))
        assert len(data) < 120


def test_steps_cost_about_the_entropy_of_their_places_and_one_bit_a_sign() -> None:
    elements, count = 1 << 20, 1 << 12
    schema = Schema([("w", "F32", (elements,))])
    at = np.sort(np.random.default_rng(0).choice(elements, count, replace=False))
    update = update_of(new_state(schema), 0, steps(at.tolist(), 1e-3))
    log2_choices = (math.lgamma(elements + 1) - math.lgamma(count + 1) - math.lgamma(elements - count + 1)) / math.log(
        2
    )
    assert 8 * (len(encode(update)) - HEADER_BYTES - 8) < 1.03 * log2_choices + count


@pytest.mark.parametrize("dtype", STORAGE)
def test_snapshot_of_each_dtype_survives_its_bytes(dtype: str) -> None:
    schema = Schema([("a", dtype, (2, 3)), ("s", dtype, ()), ("none", dtype, (0, 2)), ("f", "F32", (1,))], {"t": "a"})
    state = new_state(schema, seed=5)
    found = decode_snapshot(encode_snapshot(snapshot_of(state, 12, newest_us=0)), schema)
    assert (found.version, found.run, found.newest_us) == (12, RUN, 0)
    assert equal_states(found.state, state)
    assert all(array.flags.writeable and array.flags.owndata for array in found.state.arrays)


@pytest.mark.parametrize(("version", "newest_us"), [(0, 0), (2**63 - 1, 2**64 - 1)])
def test_snapshot_of_any_version_and_time_survives(version: int, newest_us: int) -> None:
    state = new_state(small_schema())
    found = decode_snapshot(encode_snapshot(snapshot_of(state, version, newest_us=newest_us)), state.schema)
    assert (found.version, found.newest_us) == (version, newest_us)


def test_snapshot_of_a_model_without_tensors_survives() -> None:
    state = new_state(Schema([]))
    assert decode_snapshot(encode_snapshot(snapshot_of(state, 0)), state.schema).version == 0


def test_snapshot_is_a_plain_safetensors_file() -> None:
    schema = Schema([("w", "F32", (2, 3)), ("n", "I64", ()), ("none", "F16", (0,))])
    state = new_state(schema)
    tensors = safetensors.numpy.load(encode_snapshot(snapshot_of(state, 1)))
    assert {name: (t.dtype, t.shape) for name, t in tensors.items()} == {
        "w": (np.dtype("f4"), (2, 3)), "n": (np.dtype("i8"), ()), "none": (np.dtype("f2"), (0,)),
    }  # fmt: skip
    assert all(np.array_equal(tensors[name], view) for name, view in state.tensors().items())


def test_tensors_of_a_snapshot_are_aligned_to_their_elements() -> None:
    schema = Schema([("on", "BOOL", (3,)), ("n", "I64", (2,)), ("h", "F16", (1,)), ("w", "F32", (3,))])
    data = encode_snapshot(snapshot_of(new_state(schema), 1))
    for name, view in new_state(schema).tensors().items():
        assert data.index(view.tobytes()) % view.itemsize == 0, name
