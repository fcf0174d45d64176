"""The digest: equal digests at every version prove that trainer and replicas hold the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from evergrad.schema import FLOATING, Group, Schema, widen_bf16

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]

GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1
_CHUNK = 1 << 16


def mix(indices: npt.NDArray[np.uint64], bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The digest's 64-bit mix of (index, value bits), elementwise, modulo 2^64.

    `index * golden + bits` goes through the finalizer of SplitMix64 (Steele, Lea, Flood 2014, variant 13 of Stafford).
    Multiples of the golden ratio stay so far apart that no two (index, bits) of up to 32 bits a value meet below 2^30
    elements.
    """
    return _finalize(indices * np.uint64(GOLDEN) + bits)


def _finalize(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def _bits(values: Array) -> npt.NDArray[np.uint64]:
    return values.view(_unsigned(values.dtype)).astype(np.uint64)


@cache
def _unsigned(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"u{dtype.itemsize}").newbyteorder(dtype.byteorder)


def union(parts: Sequence[Indices]) -> Indices:
    """All indices of `parts`, each part ascending, once and ascending."""
    found: Indices = np.concatenate(parts)
    found.sort(kind="stable")  # merges runs that are sorted already
    once: Indices = found[np.diff(found, prepend=-1) != 0]
    return once


def shift_of(group: Group, positions: npt.NDArray[Any], old: Array, new: Array) -> int:
    """How far the digest moves, modulo 2^64, when the elements at `positions` of `group` go from `old` to `new`."""
    total = 0
    for start in range(0, len(positions), _CHUNK):  # bounded memory, and small enough for the cache
        part = slice(start, start + _CHUNK)
        base = positions[part].astype(np.uint64)
        base += np.uint64(group.start)
        base *= np.uint64(GOLDEN)
        both = np.empty((2, len(base)), dtype=np.uint64)
        both[0], both[1] = (each[part].view(_unsigned(each.dtype)) for each in (old, new))
        both += base
        before, after = _finalize(both).sum(axis=1).tolist()
        total += after - before
    return total & MASK


def digest(schema: Schema, arrays: Sequence[Array]) -> int:
    """The digest of a whole state: the sum of `mix` over all elements, modulo 2^64.

    Being a sum, it follows a change of k elements in O(k). It proves equality against faults, not against an adversary
    who may choose values freely.

    Args:
        arrays: one flat array per group of `schema`.
    """
    return sum(sum_mix(group.start, array) for group, array in zip(schema.groups, arrays, strict=True)) & MASK


def sum_mix(first: int, values: Array) -> int:
    """The share in the digest, not yet modulo 2^64, of elements that have the indices from `first` on."""
    total = 0
    for start in range(0, len(values), _CHUNK):
        bits = _bits(values[start : start + _CHUNK])
        base = np.arange(first + start, first + start + len(bits), dtype=np.uint64)
        base *= np.uint64(GOLDEN)
        base += bits
        total += int(_finalize(base).sum(dtype=np.uint64))
    return total


def valid(values: Array, dtype: str) -> bool:
    """Whether all of `values` (stored as `dtype`) may stand in a state: no NaN, no infinity, booleans 0 or 1."""
    if dtype == "BF16":
        values = widen_bf16(values)
    if dtype in FLOATING:
        return bool(np.isfinite(values).all())
    return dtype != "BOOL" or int(values.max(initial=0)) <= 1
