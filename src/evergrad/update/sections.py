"""What an update holds: sections, each of which says how some elements move."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evergrad.schema import FLOATING, STORAGE, Schema
from evergrad.update.digest import Array, Indices

_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """Moves float32 elements by steps up or down: one IEEE-754 addition in float32 each, the same on every platform.

    Attributes:
        indices: int64, strictly ascending, in the schema's flat index space; all of dtype F32.
        negative: bool, one per index: True moves down.
        scale: positive and finite; rounded to float32 where it is applied.
        levels: uint8, one per index: the element moves by scale * 2^level. None: all levels are 0.
    """

    indices: Indices
    negative: npt.NDArray[np.bool_]
    scale: float
    levels: npt.NDArray[np.uint8] | None = None

    def moved(self, old: Array) -> Array:
        """What float32 elements become that were `old`; overflow gives infinity."""
        with np.errstate(over="ignore", invalid="ignore"):
            size: Any = np.float32(self.scale)
            if self.levels is not None:
                size = np.ldexp(size, self.levels.astype(np.int32))
            result: Array = old + np.where(self.negative, -size, size)
        return result

    @property
    def dtype(self) -> str:
        return "F32"


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """Sets elements of one dtype to absolute values.

    Attributes:
        indices: int64, strictly ascending, in the schema's flat index space; all of `dtype`.
        values: one per index, in the storage type of `dtype` (see `schema.STORAGE`).
        dtype: a safetensors dtype name.
    """

    indices: Indices
    values: Array
    dtype: str

    def moved(self, old: Array) -> Array:  # noqa: ARG002
        """The values, whatever was there."""
        return self.values


@dataclass(frozen=True, slots=True, eq=False)
class Differences:
    """Sets elements of one dtype to values that are told relative to the old ones, exactly; see `to_ordered`.

    The new ordered bits are `((old >> shift) + difference) << shift`, modulo two to the number of bits.

    Attributes:
        indices, dtype: as in `Values`.
        differences: int64, one per index.
        shift: low bits of the ordered values that become zero; less than the dtype's bits.
    """

    indices: Indices
    differences: npt.NDArray[np.int64]
    shift: int
    dtype: str

    def moved(self, old: Array) -> Array:
        """What elements become that were `old`."""
        new = np.empty_like(old)
        for start in range(0, len(old), _CHUNK):  # bounded memory, whatever an update claims
            part = slice(start, start + _CHUNK)
            ordered = to_ordered(old[part], self.dtype)
            kind = ordered.dtype.type
            ordered >>= kind(self.shift)
            ordered += self.differences[part].view(np.uint64).astype(ordered.dtype)
            ordered <<= kind(self.shift)
            new[part] = from_ordered(ordered, self.dtype)
        return new


Section = Steps | Values | Differences


def to_ordered(values: Array, dtype: str) -> Array:
    """The bits of `values` as unsigned integers of their width; those of floating-point numbers in numerical order.

    A floating-point number of clear sign bit has that bit set, any other has all bits inverted: neighbours in value
    are neighbours in integers. The bits of all other dtypes stay as they are.

    >>> to_ordered(np.float32([-0.0, 0.0, 1.0]), "F32") - np.uint32(2**31)
    array([4294967295,          0, 1065353216], dtype=uint32)
    """
    bits: Array = values.view(f"u{values.dtype.itemsize}")
    if dtype not in FLOATING:
        return bits.copy()
    sign = bits.dtype.type(1 << (8 * bits.itemsize - 1))
    return np.where(bits & sign, ~bits, bits ^ sign)


def from_ordered(ordered: Array, dtype: str) -> Array:
    """The inverse of `to_ordered`, in the storage type of `dtype`."""
    if dtype in FLOATING:
        sign = ordered.dtype.type(1 << (8 * ordered.itemsize - 1))
        ordered = np.where(ordered & sign, ordered ^ sign, ~ordered)
    return ordered.view(STORAGE[dtype])


def differences(values: Values, old: Array, shift: int = 0) -> Differences:
    """The same section told relative to what the elements were, for a reader who knows that exactly.

    Args:
        old: the elements' values at the update's base, one per index.
        shift: low bits of the ordered values to leave out; those of `values` must be zero.
    """
    new_ordered, old_ordered = to_ordered(values.values, values.dtype), to_ordered(old, values.dtype)
    kind = new_ordered.dtype.type
    moved = (new_ordered >> kind(shift)) - (old_ordered >> kind(shift))
    # Of the two differences that lead there modulo 2^bits, the nearer one.
    bits = 8 * new_ordered.itemsize - shift
    signed = (moved.astype(np.uint64) << np.uint64(64 - bits)).view(np.int64) >> np.int64(64 - bits)
    return Differences(values.indices, signed, shift, values.dtype)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Update:
    """One step from `base_version` to `version`; a fold of several versions has a base further back.

    Attributes:
        run: 64 random bits that name the publisher that wrote it.
        schema: the first 64 bits of the schema's fingerprint.
        digest_before, digest_after: of the whole state (see `digest`).
        newest_us: arrival time of the newest example that it learned from, microseconds since 1970 (UTC); 0: unknown.
        sections: applied in order.
        examples: ids of the new examples that it learned from, all from the first to the last, below 2^63; None: not
            said. Of a fold, the shortest range that holds those of its updates (see `hull`).
    """

    base_version: int
    version: int
    run: int
    schema: int
    digest_before: int
    digest_after: int
    newest_us: int
    sections: tuple[Section, ...]
    examples: range | None = None

    @property
    def elements(self) -> int:
        """How many element moves it holds."""
        return sum(len(section.indices) for section in self.sections)


def hull(ranges: Iterable[range | None]) -> range | None:
    """The shortest range that holds all of `ranges`; None where none of them says anything.

    >>> hull([range(3, 5), None, range(8, 9)])
    range(3, 9)
    """
    told = [found for found in ranges if found]
    return range(min(r.start for r in told), max(r.stop for r in told)) if told else None


def short_fingerprint(schema: Schema) -> int:
    """The first 64 bits of the schema's fingerprint, as every update carries them."""
    return int(schema.fingerprint[:16], 16)
