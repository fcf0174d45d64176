"""One malformed update per rejection rule of `codec.decode`, and arbitrary ones: nothing else ever escapes."""

from __future__ import annotations

import math
import struct
import tracemalloc

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from evergrad.codec import decode, encode
from evergrad.errors import CorruptRecord, UnsupportedFormat
from evergrad.schema import STORAGE, Schema
from tests.builders import new_state, small_schema, steps, update_of, values

SCHEMA = Schema([("w", "F32", (20,)), ("on", "BOOL", (4,))])
F32 = list(STORAGE).index("F32")


def sealed(data: bytes) -> bytes:
    """`data` with the checksum that belongs to it, so that only deeper rules can refuse it."""
    rest = data[:8] + bytes(8) + data[16:]
    return data[:8] + struct.pack("<Q", xxhash.xxh3_64_intdigest(rest)) + data[16:]


def header(sections: int = 1, format_: int = 1, reserved: int = 0) -> bytes:
    return struct.pack("<4sBBHQQQQQQQQ", b"EGup", format_, sections, reserved, 0, 0, 1, 2, 3, 4, 5, 6)


def section(
    *, kind: int = 0, dtype: int = F32, rice: int = 2, zero: int = 0, scale: float = 0.5, count: int = 2,
    unary: bytes = b"\x60", remainders: bytes = b"\x70", payload: bytes = b"\x40", unary_bytes: int | None = None,
) -> bytes:  # fmt: skip
    """Steps at 5 and 9 unless told otherwise: gaps 5 and 3, in the unary stream 01 1, remainders 01 11, signs 01."""
    size = len(unary) if unary_bytes is None else unary_bytes
    return struct.pack("<BBBBfII", kind, dtype, rice, zero, scale, count, size) + unary + remainders + payload


GOOD = sealed(header() + section())
VALUES = {"kind": 1, "scale": 0.0, "payload": bytes(8)}
REJECTED = {
    "empty": (b"", "do not begin"),
    "shorter than a header": (GOOD[:71], "do not begin"),
    "another magic": (b"EGuq" + GOOD[4:], "do not begin"),
    "checksum": (GOOD[:-1] + b"\xc0", "checksum"),
    "checksum of a cut header": (GOOD[:72], "checksum"),
    "format zero": (sealed(header(format_=0) + section()), "reserved"),
    "reserved bytes": (sealed(header(reserved=1) + section()), "reserved"),
    "bytes left over": (sealed(GOOD + b"\0"), "1 bytes are left over"),
    "no such section": (sealed(header(2) + section()), "ends 16 bytes early"),
    "section header cut": (sealed(header() + section()[:15]), "ends 1 bytes early"),
    "kind": (sealed(header() + section(kind=2)), "no writer writes"),
    "dtype": (sealed(header() + section(dtype=len(STORAGE))), "no writer writes"),
    "rice parameter": (sealed(header() + section(rice=41)), "no writer writes"),
    "reserved byte in a section": (sealed(header() + section(zero=1)), "no writer writes"),
    "unary stream cut": (sealed(header() + section(unary_bytes=1 << 31)), "bytes early"),
    "boolean of two": (
        sealed(header() + section(**VALUES | {"dtype": list(STORAGE).index("BOOL"), "payload": b"\1\2"})),
        "neither 0 nor 1",
    ),
    "count beyond the unary stream": (sealed(header() + section(count=9)), "9 indices cannot stand in 1 bytes"),
    "count of billions": (sealed(header() + section(count=(1 << 32) - 1)), "cannot stand in"),
    "more ones than indices": (sealed(header() + section(unary=b"\x68")), "holds 3 indices, the header says 2"),
    "fewer ones than indices": (sealed(header() + section(unary=b"\x40")), "holds 1 indices, the header says 2"),
    "no ones": (sealed(header() + section(unary=b"\x00")), "holds 0 indices"),
    "empty byte behind the unary stream": (sealed(header() + section(unary=b"\x60\x00")), "unary stream"),
    "indices in an empty section": (
        sealed(header() + section(count=0, remainders=b"", payload=b"")),
        "holds 2 indices, the header says 0",
    ),
    "remainders cut": (sealed(header() + section(rice=40, remainders=b"", payload=b"")), "bytes early"),
    "payload cut": (sealed(header() + section(payload=b"")), "ends 1 bytes early"),
    "values cut": (sealed(header() + section(kind=1, scale=0.0, payload=bytes(7))), "ends 1 bytes early"),
    "padding of the remainders": (sealed(header() + section(remainders=b"\x71")), "padding"),
    "padding of the signs": (sealed(header() + section(payload=b"\x41")), "padding"),
    "index far outside": (sealed(header() + section(count=1, unary=b"\0\x80", remainders=b"\0")), "outside the model"),
    "index one outside": (
        sealed(header() + section(count=1, unary=b"\x02", remainders=b"\0", payload=b"\0")),  # gap 6 * 4 = 24
        "outside the model",
    ),
    "second index outside": (
        sealed(header() + section(unary=b"\x06", remainders=b"\xc0")),  # gaps 23 and 0: indices 23 and 24
        "outside the model",
    ),
    "gaps far outside in sum": (
        sealed(header() + section(rice=40, count=8, unary=b"\xff", remainders=b"\xff" * 40, payload=b"\0")),
        "outside the model",
    ),
    "a place that wraps around 64 bits to below zero": (
        sealed(
            header() + section(count=1, rice=40, unary=bytes(1 << 20) + b"\x80", remainders=bytes(5), payload=b"\0")
        ),
        "outside the model",
    ),
    "a place that wraps around 64 bits to zero": (
        sealed(
            header() + section(count=1, rice=40, unary=bytes(1 << 21) + b"\x80", remainders=bytes(5), payload=b"\0")
        ),
        "outside the model",
    ),
    "scale zero": (sealed(header() + section(scale=0.0)), "scale 0.0"),
    "scale below zero": (sealed(header() + section(scale=-1.0)), "scale -1.0"),
    "scale infinite": (sealed(header() + section(scale=math.inf)), "scale inf"),
    "scale not a number": (sealed(header() + section(scale=math.nan)), "scale nan"),
    "steps of another dtype": (sealed(header() + section(dtype=0)), "in F64"),
    "values with a scale": (sealed(header() + section(**VALUES | {"scale": 0.5})), "values with a scale"),
}


def test_what_the_rejected_updates_were_made_from_is_accepted() -> None:
    update = decode(GOOD, SCHEMA)
    assert [s.indices.tolist() for s in update.sections] == [[5, 9]]
    assert (update.base_version, update.version, update.run, update.schema) == (0, 1, 2, 6)
    assert decode(sealed(header() + section(**VALUES)), SCHEMA).sections[0].indices.tolist() == [5, 9]
    last = section(count=1, unary=b"\x04", remainders=b"\xc0", payload=b"\0")
    assert decode(sealed(header() + last), SCHEMA).sections[0].indices.tolist() == [23]


@pytest.mark.parametrize(("data", "reason"), REJECTED.values(), ids=REJECTED.keys())
def test_malformed_update_is_refused_by_name_and_reason(data: bytes, reason: str) -> None:
    with pytest.raises(CorruptRecord) as caught:
        decode(data, SCHEMA, "updates/1.eg")
    assert caught.value.name == "updates/1.eg"
    assert reason in caught.value.reason


def test_newer_format_is_told_with_both_numbers_before_anything_else_is_read() -> None:
    with pytest.raises(UnsupportedFormat) as caught:
        decode(header(format_=2) + b"whatever it may hold", SCHEMA, "updates/1.eg")
    assert (caught.value.name, caught.value.found, caught.value.supported) == ("updates/1.eg", 2, 1)


def real_update() -> bytes:
    state = new_state(small_schema())
    sections = steps([0, 3, 15]), values([16], [7], "I64"), values([17, 20], [1, 2], "BF16"), values([21], [1], "BOOL")
    return encode(update_of(state, 0, *sections))


REAL = real_update()


def decode_or_refuse(data: bytes) -> None:
    try:
        found = decode(data, small_schema())
    except (CorruptRecord, UnsupportedFormat):
        return
    state = new_state(small_schema())
    for part in found.sections:
        assert part.indices.tolist() == sorted(set(part.indices.tolist()) & set(range(state.schema.elements)))
    try:
        state.commit(state.resolve(found.sections))
    except CorruptRecord:
        return
    assert state.digest == type(state)(state.schema, state.arrays).digest


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    decode_or_refuse(data)


@given(st.binary(max_size=120), st.integers(0, 4))
def test_arbitrary_body_behind_a_true_header_is_read_or_refused(body: bytes, sections: int) -> None:
    decode_or_refuse(sealed(header(sections) + body))


@pytest.mark.parametrize("at", range(len(REAL)))
def test_any_single_altered_byte_is_refused_and_with_a_true_checksum_read_or_refused(at: int) -> None:
    for flip in (0x01, 0x10, 0x80, 0xFF):
        altered = REAL[:at] + bytes([REAL[at] ^ flip]) + REAL[at + 1 :]
        with pytest.raises((CorruptRecord, UnsupportedFormat)):
            decode(altered, small_schema())
        decode_or_refuse(sealed(altered))


@pytest.mark.parametrize("length", range(len(REAL)))
def test_any_truncation_is_refused_even_with_a_true_checksum(length: int) -> None:
    for data in (REAL[:length], sealed(REAL[:length]) if length >= 72 else b""):
        with pytest.raises(CorruptRecord):
            decode(data, small_schema())


@given(st.data())
def test_several_altered_bytes_with_a_true_checksum_are_read_or_refused(data: st.DataObject) -> None:
    raw = bytearray(REAL)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(72, len(raw) - 1))] = data.draw(st.integers(0, 255))
    decode_or_refuse(sealed(bytes(raw)))


@pytest.mark.parametrize(
    "body",
    [
        section(count=(1 << 32) - 1),
        section(unary=b"\xff" * 25_000, count=200_000, rice=40, remainders=b"\xff" * 1_000_000, payload=bytes(25_000)),
        section(unary=b"\xff" * 25_000, count=200_000, rice=0, remainders=b"", payload=bytes(25_000)),
        section(unary=bytes(100_000) + b"\x01", count=1, rice=0, remainders=b"", payload=b"\0"),
    ],
    ids=["count", "remainders", "ones", "zeros"],
)
def test_memory_follows_the_bytes_given_whatever_they_claim(body: bytes) -> None:
    schema = Schema([("w", "F32", (1 << 40,))])
    data = sealed(header() + body)
    tracemalloc.start()
    try:
        decode(data, schema)
    except CorruptRecord:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 200 * len(data) + 100_000
