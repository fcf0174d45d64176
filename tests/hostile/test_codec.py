"""One malformed update per rejection rule of `codec.decode`, and arbitrary ones: nothing else ever escapes."""

from __future__ import annotations

import math
import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from evergrad.codec import decode, decode_header, encode
from evergrad.codec.rice import varint, write_rice
from evergrad.errors import CorruptRecord, UnsupportedFormat
from evergrad.schema import STORAGE, Schema
from evergrad.update import Differences, Steps
from tests.builders import copy_of, equal_states, new_state, small_schema, steps, update_of, values

SCHEMA = Schema([("w", "F32", (20,)), ("on", "BOOL", (4,))])
F32, BOOL = list(STORAGE).index("F32"), list(STORAGE).index("BOOL")


def sealed(data: bytes) -> bytes:
    """`data` with the checksum that belongs to it, so that only deeper rules can refuse it."""
    rest = data[:8] + bytes(8) + data[16:]
    return data[:8] + struct.pack("<Q", xxhash.xxh64_intdigest(rest)) + data[16:]


def update(
    body: bytes, *, magic: bytes = b"EG", format_: int = 1, flags: int = 0, span: int = 1, version: int = 1
) -> bytes:
    return sealed(struct.pack("<2sBBIQQQQQQQ", magic, format_, flags, span, 0, version, 2, 3, 4, 5, 6) + body)


def rice(*numbers: int) -> bytes:
    return write_rice(np.array(numbers, dtype=np.uint64))


def section(kind: int, *parts: bytes, dtype: int = F32, count: int = 2) -> bytes:
    return bytes((kind << 4 | dtype,)) + varint(count) + b"".join(parts)


HALF, AT, SIGNS = struct.pack("<f", 0.5), rice(5, 3), b"\x40"
GOOD_STEPS = section(0, HALF, AT, SIGNS)
GOOD_LEVELS = section(1, HALF, AT, SIGNS, b"\0", rice(126, 0))
GOOD_VALUES = section(2, AT, bytes(8))
GOOD_RUNS = section(10, varint(1), rice(5), rice(1), bytes(8))
# The stream of +1 and +2: both have two or three bits as 2 and 4, typically 2; off by 0 and 1; then 0 and 00.
GOOD_DIFFERENCES = section(3, b"\0", AT, b"\2", rice(0, 2), b"\0")
GOOD = update(GOOD_STEPS)


def body(kind: int, *parts: bytes, dtype: int = F32, count: int = 2) -> bytes:
    return update(section(kind, *parts, dtype=dtype, count=count))


def lineage(told: bytes, rest: bytes = GOOD_STEPS, flags: int = 1) -> bytes:
    return update(told + rest, flags=flags)


def scale(value: float) -> bytes:
    return body(0, struct.pack("<f", value), AT, SIGNS)


REJECTED = {
    "empty": (b"", "do not begin"),
    "shorter than a header": (GOOD[:63], "do not begin"),
    "another magic": (update(GOOD_STEPS, magic=b"EH"), "do not begin"),
    "checksum": (GOOD[:-1] + b"\xc0", "checksum"),
    "checksum of a cut body": (GOOD[:64], "checksum"),
    "format zero": (update(GOOD_STEPS, format_=0), "no writer writes"),
    "flags": (update(GOOD_STEPS, flags=2), "format 1 with flags 2, as no writer writes"),
    "flags beside the one of lineage": (lineage(b"\5\1", flags=0x81), "flags 129, as no writer writes"),
    "lineage without a first example": (lineage(b"", b""), "it ends 1 bytes early"),
    "first example cut": (lineage(b"\x85", b""), "it ends 1 bytes early"),
    "lineage without a count": (lineage(b"\5", b""), "it ends 1 bytes early"),
    "count of examples cut": (lineage(b"\5\x81", b""), "it ends 1 bytes early"),
    "first example longer than it needs to be": (lineage(b"\x85\0\1"), "longer than it needs"),
    "count of examples longer than it needs to be": (lineage(b"\5\x81\0"), "longer than it needs"),
    "first example of 64 bits": (lineage(b"\xff" * 9 + b"\1\1"), "more than 63 bits"),
    "count of examples of 64 bits": (lineage(b"\0" + b"\xff" * 9 + b"\1"), "more than 63 bits"),
    "count of no examples": (lineage(b"\5\0"), "0 examples from 5 on"),
    "examples up to 2^63": (lineage(varint((1 << 63) - 1) + b"\1"), "1 examples from 9223372036854775807 on"),
    "examples far beyond 2^63": (lineage(varint((1 << 63) - 1) * 2), "examples from"),
    "lineage that is not announced": (update(b"\5\1" + GOOD_STEPS), "a section of kind 0 and dtype 5"),
    "span of none": (update(GOOD_STEPS, span=0), "from 0 versions before"),
    "span beyond the version": (update(GOOD_STEPS, span=2), "from 2 versions before"),
    "version of 64 bits": (update(GOOD_STEPS, version=1 << 63), "versions before"),
    "bytes left over": (update(GOOD_STEPS + b"\1"), "early"),
    "kind": (body(4, AT), "a section of kind 4"),
    "kind with runs": (body(12, AT), "a section of kind 4"),
    "dtype": (body(2, AT, bytes(8), dtype=len(STORAGE)), "dtype 13"),
    "steps of another dtype": (body(0, HALF, AT, SIGNS, dtype=0), "a section of kind 0 and dtype 0"),
    "levels of another dtype": (body(1, HALF, AT, SIGNS, b"\0", rice(2, 2), dtype=2), "of kind 1 and dtype 2"),
    "no count": (update(b"\1"), "ends 1 bytes early"),
    "count cut": (update(b"\1\x80"), "ends 1 bytes early"),
    "count of none": (body(0, HALF, AT, SIGNS, count=0), "0 elements"),
    "count longer than it needs to be": (update(b"\1\x82\0" + GOOD_STEPS[2:]), "longer than it needs"),
    "count of 64 bits": (update(b"\1" + b"\xff" * 9 + GOOD_STEPS[2:]), "more than 63 bits"),
    "count beyond the bits": (body(0, HALF, AT, SIGNS, count=8 * 7 + 9), "cannot stand in"),
    "count of billions": (body(2, AT, bytes(8), count=1 << 62), "cannot stand in"),
    "scale cut": (update(b"\1\1" + HALF[:3]), "ends 1 bytes early"),
    "scale zero": (scale(0.0), "scale 0.0"),
    "scale minus zero": (scale(-0.0), "scale -0.0"),
    "scale below zero": (scale(-1.0), "scale -1.0"),
    "scale infinite": (scale(math.inf), "scale inf"),
    "scale not a number": (scale(math.nan), "scale nan"),
    "indices cut": (update(b"\1\1" + HALF), "parameters of 1 blocks end early"),
    "parameter too large": (body(0, HALF, b"\xe4" + bytes(20), SIGNS), "Rice parameter of 57"),
    "parameter of a block too large": (
        body(0, HALF, b"\xc3\xc0" + bytes(900), SIGNS, count=129),
        "Rice parameter of 63",
    ),
    "parameters cut": (body(2, b"\0" * 50, count=400 - 1), "it should hold 399"),
    "low bits cut": (body(0, HALF, b"\xe0\0", SIGNS), "low bits of 2 values end early"),
    "fewer ones than indices": (body(0, HALF, b"\0\x80\0\0"), "1 values, it should hold 2"),
    "no ones": (body(0, HALF, b"\0\0\0\0"), "0 values, it should hold 2"),
    "padding of the indices": (body(0, HALF, AT[:-1] + bytes((AT[-1] | 1,)), SIGNS), "padding"),
    "value of 65 bits": (body(0, HALF, b"\xe0" + bytes(7 + 32) + b"\x80", SIGNS, count=1), "more than 64 bits"),
    "signs cut": (body(0, HALF, AT), "ends 1 bytes early"),
    "padding of the signs": (body(0, HALF, AT, b"\x41"), "padding"),
    "usual level cut": (body(1, HALF, AT, SIGNS), "ends 1 bytes early"),
    "levels cut": (body(1, HALF, AT, SIGNS, b"\0"), "parameters of 1 blocks end early"),
    "usual level too high": (body(1, HALF, AT, SIGNS, b"\x40", rice(1, 1)), "level above 63"),
    "level far too high": (body(1, HALF, AT, SIGNS, b"\0", rice(1 << 40, 0)), "level above 63"),
    "level too high": (body(1, HALF, AT, SIGNS, b"\x3e", rice(4, 0)), "level 62 or 64"),
    "level below 0": (body(1, HALF, AT, SIGNS, b"\0", rice(0, 1)), "level -1 or 0"),
    "values cut": (body(2, AT, bytes(7)), "ends 1 bytes early"),
    "index one outside": (body(0, HALF, rice(24), b"\0", count=1), "outside the model"),
    "index far outside": (body(0, HALF, rice(1 << 60), b"\0", count=1), "outside the model"),
    "second index outside": (body(0, HALF, rice(23, 0), b"\0"), "outside the model"),
    "gaps that wrap around 64 bits": (body(0, HALF, rice((1 << 63) - 1, (1 << 63) - 1), b"\0"), "outside the model"),
    "number of runs cut": (body(8, HALF), "early"),
    "no runs": (body(10, varint(0), rice(5), rice(1), bytes(8)), "0 elements"),
    "runs beyond the bits": (body(10, varint(1 << 40), rice(5), rice(1), bytes(8)), "cannot stand in"),
    "more runs than indices": (body(10, varint(3), rice(1, 1, 1), rice(0, 0, 0), bytes(8)), "do not hold 2 indices"),
    "runs too short": (body(10, varint(1), rice(5), rice(0), bytes(8)), "do not hold 2 indices"),
    "runs too long": (body(10, varint(2), rice(5, 1), rice(1, 0), bytes(8)), "do not hold 2 indices"),
    "run of 64 bits": (body(10, varint(2), rice(5, 1), rice((1 << 63) - 1, 1), bytes(8)), "do not hold 2 indices"),
    "run's last index outside": (body(10, varint(1), rice(23), rice(1), bytes(8)), "outside the model"),
    "shift cut": (update(b"\x31\1"), "cannot stand in 0 bits"),
    "shift of all bits": (body(3, b"\x20", AT, b"\2", rice(0, 2), b"\0"), "leave out 32 bits"),
    "shift of a boolean": (body(3, b"\x08", rice(20, 0), b"\2", rice(0, 2), b"\0", dtype=BOOL), "leave out 8 bits"),
    "typical bits cut": (body(3, b"\0", AT), "ends 1 bytes early"),
    "difference of 65 bits": (body(3, b"\0", AT, b"\x41", rice(0, 0), bytes(20)), "more than 64 bits"),
    "difference of fewer than no bits": (body(3, b"\0", AT, b"\0", rice(1, 0), bytes(20)), "more than 64 bits"),
    "difference far off": (body(3, b"\0", AT, b"\x40", rice(129, 0), bytes(20)), "more than 64 bits"),
    "bits of the differences cut": (body(3, b"\0", AT, b"\2", rice(0, 2)), "ends 1 bytes early"),
    "padding of the differences": (body(3, b"\0", AT, b"\2", rice(0, 2), b"\x01"), "padding"),
}  # fmt: skip


def test_what_the_rejected_updates_were_made_from_is_accepted() -> None:
    for good in (GOOD_STEPS, GOOD_LEVELS, GOOD_VALUES, GOOD_DIFFERENCES):
        (found,) = decode(update(good), SCHEMA).sections
        assert found.indices.tolist() == [5, 9]
        assert encode(decode(update(good), SCHEMA)) == update(good)
    (told,) = decode(update(GOOD_DIFFERENCES), SCHEMA).sections
    assert isinstance(told, Differences)
    assert told.differences.tolist() == [1, 2]
    assert decode(update(GOOD_RUNS), SCHEMA).sections[0].indices.tolist() == [5, 6]
    (last,) = decode(body(0, HALF, rice(23), b"\0", count=1), SCHEMA).sections
    assert last.indices.tolist() == [23]
    for first, count in ((5, 1), (0, (1 << 63) - 1), ((1 << 63) - 2, 1)):
        data = lineage(varint(first) + varint(count))
        assert decode_header(data).examples == decode(data, SCHEMA).examples == range(first, first + count)
        assert encode(decode(data, SCHEMA)) == data
    assert decode(lineage(b"\5\1", b""), SCHEMA).sections == ()
    whole = decode(update(GOOD_STEPS, span=7, version=(1 << 63) - 1), SCHEMA)
    assert (whole.base_version, whole.version, whole.run, whole.schema) == ((1 << 63) - 8, (1 << 63) - 1, 2, 3)


@pytest.mark.parametrize(("data", "reason"), REJECTED.values(), ids=REJECTED.keys())
def test_malformed_update_is_refused_by_name_and_reason(data: bytes, reason: str) -> None:
    with pytest.raises(CorruptRecord) as caught:
        decode(data, SCHEMA, "updates/1.eg")
    assert caught.value.name == "updates/1.eg"
    assert reason in caught.value.reason


@pytest.mark.parametrize("format_", [2, 255])
def test_newer_format_is_told_with_both_numbers_before_anything_else_is_read(format_: int) -> None:
    data = update(b"whatever it may hold", format_=format_)[:-1]
    for read in (lambda: decode(data, SCHEMA, "updates/1.eg"), lambda: decode_header(data, "updates/1.eg")):
        with pytest.raises(UnsupportedFormat) as caught:
            read()
        assert (caught.value.name, caught.value.found, caught.value.supported) == ("updates/1.eg", format_, 1)


def test_step_that_reaches_infinity_and_boolean_of_two_are_refused_by_the_state() -> None:
    for sections in ([steps([0], 3e38), steps([0], 3e38)], [values([21], [2], "BOOL")], [values([0], [np.nan])]):
        state = new_state(small_schema())
        state.arrays[0][:] = 3e38
        before = copy_of(state)
        with pytest.raises(CorruptRecord, match="NaN, infinite or no boolean"):
            before.resolve(
                decode(encode(replace(update_of(before, 0), sections=tuple(sections))), state.schema).sections
            )
        assert before.arrays[0].tobytes() == state.arrays[0].tobytes()


def real_update() -> bytes:
    state = new_state(small_schema())
    levels = Steps(np.arange(3, 13), np.arange(10) % 2 == 0, 0.25, np.arange(10, dtype="u1"))
    told = Differences(np.array([17, 19]), np.array([-3, 2]), 2, "BF16")
    sections = steps([0, 3, 15]), levels, values([16], [7], "I64"), told, values([21], [1], "BOOL")
    return encode(update_of(state, 0, *sections, examples=range(960, 968)))


REAL = real_update()


def decode_or_refuse(data: bytes) -> None:
    try:
        found = decode(data, small_schema())
    except (CorruptRecord, UnsupportedFormat):
        return
    state = new_state(small_schema())
    before = copy_of(state)
    for part in found.sections:
        assert part.indices.tolist() == sorted(set(part.indices.tolist()) & set(range(state.schema.elements)))
    try:
        change = state.resolve(found.sections)
    except CorruptRecord:
        assert equal_states(state, before)
        return
    assert equal_states(state, before)
    state.commit(change)
    assert state.digest == copy_of(state).digest


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    decode_or_refuse(data)


@given(st.binary(max_size=120))
def test_arbitrary_body_behind_a_true_header_is_read_or_refused(tail: bytes) -> None:
    decode_or_refuse(update(tail))
    decode_or_refuse(update(tail, flags=1))


@pytest.mark.parametrize("at", range(len(REAL)))
def test_any_single_altered_byte_is_refused_and_with_a_true_checksum_read_or_refused(at: int) -> None:
    for flip in (0x01, 0x10, 0x80, 0xFF):
        altered = REAL[:at] + bytes([REAL[at] ^ flip]) + REAL[at + 1 :]
        with pytest.raises((CorruptRecord, UnsupportedFormat)):
            decode(altered, small_schema())
        decode_or_refuse(sealed(altered))


@pytest.mark.parametrize("length", range(len(REAL)))
def test_any_truncation_is_refused_or_ends_between_sections(length: int) -> None:
    with pytest.raises(CorruptRecord):
        decode(REAL[:length], small_schema())
    if length >= 64:
        decode_or_refuse(sealed(REAL[:length]))


@given(st.data())
def test_several_altered_bytes_with_a_true_checksum_are_read_or_refused(data: st.DataObject) -> None:
    raw = bytearray(REAL)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    decode_or_refuse(sealed(bytes(raw)))


def peak_of(data: bytes) -> int:
    schema = Schema([("w", "F32", (1 << 39,)), ("n", "I64", (1 << 20,))])
    tracemalloc.start()
    try:
        decode(data, schema)
    except CorruptRecord:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


@pytest.mark.parametrize("tail", [b"\0", b"\xff"], ids=["zeros", "ones"])
@pytest.mark.parametrize("kind", [0, 1, 2, 3, 8, 9, 10, 11])
def test_a_few_bytes_take_little_memory_whatever_they_claim(kind: int, tail: bytes) -> None:
    for count in (8, 160, 200, 1 << 62):
        assert peak_of(body(kind, HALF[: 4 * (kind & 7 < 2)], tail * 30, count=count)) < 100_000


SIZE = 200_000
BLOCKS = -(-SIZE // 128)


def ones(count: int) -> bytes:
    """A Rice stream of zeros, each one bit."""
    blocks = -(-count // 128)
    head = 6 + (4 * blocks if blocks > 1 else 0)
    return np.packbits(np.repeat(np.uint8([0, 1]), [head, count])).tobytes()


def one_run(count: int) -> bytes:
    return varint(1) + rice(0) + rice(count - 1)


def equal_differences(count: int) -> bytes:
    return b"\1" * -(-count // 128) + ones(count)


WORST = {
    "claims": body(0, HALF, b"\xff" * SIZE, count=8 * SIZE),
    "ones": body(0, HALF, ones(4 * SIZE), bytes(SIZE // 2), count=4 * SIZE),
    "ones without signs": body(0, HALF, ones(7 * SIZE), count=7 * SIZE),
    "low bits": body(0, HALF, b"\xe0" + bytes(BLOCKS // 16) + b"\xff" * SIZE, count=SIZE // 8),
    "zeros": body(0, HALF, b"\0" + bytes(SIZE), b"\0", count=1),
    "one run of steps": body(8, HALF, one_run(7 * SIZE), bytes(7 * SIZE // 8), count=7 * SIZE),
    "one run with levels": body(
        9, HALF, one_run(4 * SIZE), bytes(SIZE // 2), b"\0", ones(4 * SIZE), count=4 * SIZE
    ),
    "many runs": body(8, HALF, varint(2 * SIZE) + ones(2 * SIZE) * 2, bytes(SIZE // 4),
                      count=2 * SIZE),
    "one run of differences": body(11, b"\0", one_run(7 * SIZE), equal_differences(7 * SIZE),
                                   count=7 * SIZE),
    "differences": body(3, b"\0", ones(4 * SIZE), equal_differences(4 * SIZE), count=4 * SIZE),
    "small sections": update(section(2, rice(0), b"\0", dtype=11, count=1) * (SIZE // 40)),
}  # fmt: skip


@pytest.mark.parametrize("data", WORST.values(), ids=WORST.keys())
def test_memory_is_at_most_512_bytes_for_a_byte(data: bytes) -> None:
    assert peak_of(data) <= 512 * len(data)
