"""Updates that somebody broke, each with a checksum that fits again, and what the Python library makes of them."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
import xxhash

from evergrad.codec import HEADER_BYTES, decode
from evergrad.errors import BaseMismatch, CorruptRecord, DigestMismatch, UnsupportedFormat
from evergrad.update import State


def sealed(data: bytes) -> bytes:
    """`data` with the checksum that belongs to it, so that only deeper rules can refuse it."""
    rest = data[:8] + bytes(8) + data[16:]
    return data[:8] + struct.pack("<Q", xxhash.xxh64_intdigest(rest)) + data[16:]


def mutants(data: bytes, rng: np.random.Generator, count: int) -> Iterator[bytes]:
    """Flips of every bit that says what something is, cuts, and `count` changes at random; the last two as they are."""
    for at in range(8 * (HEADER_BYTES + 8)):
        yield sealed(flipped(data, at))
    for _ in range(count):
        at = int(rng.integers(HEADER_BYTES, len(data) + 1))
        for changed in (
            flipped(data, int(rng.integers(8 * HEADER_BYTES, 8 * len(data) + 8))),
            data[:at],
            data[:at] + rng.bytes(1) + data[at + 1 :],
            data[:at] + rng.bytes(int(rng.integers(1, 4))) + data[at:],
            data[:at] + data[at + int(rng.integers(1, 4)) :],
            data[:HEADER_BYTES] + rng.bytes(int(rng.integers(1, 40))),
        ):
            yield sealed(changed)
    yield from (data[:at] for at in range(0, HEADER_BYTES + 1, 5))
    yield from (flipped(data, at) for at in range(0, 8 * len(data), 37))


def verdict(state: State, version: int, data: bytes) -> str:
    """What becomes of the update on `state`, which is not moved."""
    try:
        update = decode(data, state.schema)
        change = state.check(update, version)
    except (BaseMismatch, CorruptRecord, UnsupportedFormat) as error:
        return type(error).__name__
    except DigestMismatch as error:
        return f"DigestMismatch {error.found:016x}"
    told = "none said" if update.examples is None else f"{update.examples.start} {len(update.examples)}"
    return f"digest {change.digest:016x}, examples {told}"


def flipped(data: bytes, bit: int) -> bytes:
    """`data` with one bit turned, counted from the high end of the first byte."""
    at = bit // 8
    return data[:at] + bytes((data[at] ^ 0x80 >> bit % 8,)) + data[at + 1 :] if at < len(data) else data
