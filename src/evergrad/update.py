"""Updates, and the state that they move: one copy of the code for publisher and replica.

A model's state is one flat array per dtype (see `schema`). An update moves some of its elements, in two kinds of
section:

- `Steps`: element i (float32) moves by +scale or -scale, one IEEE-754 addition in float32, the same on every platform;
- `Values`: element i becomes this value, bit for bit.

`State.resolve` works an update out beside the state and `State.commit` writes it in; in between, the caller compares
digests. Because publisher and replica run these same lines, equal inputs give equal bits.

No bytes here (see `codec`), and no storage (see `log`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evergrad.errors import BaseMismatch, CorruptRecord, DigestMismatch, SchemaMismatch
from evergrad.schema import STORAGE, Group, Schema, widen_bf16

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Steps:
    """Moves float32 elements by one step up or down.

    Attributes:
        indices: int64, strictly ascending, in the schema's flat index space; all of dtype F32.
        negative: bool, one per index: True moves by -scale.
        scale: positive and finite; rounded to float32 where it is applied.
    """

    indices: Indices
    negative: npt.NDArray[np.bool_]
    scale: float


@dataclass(frozen=True, slots=True)
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


Section = Steps | Values


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One step from `base_version` to `version`.

    Attributes:
        run: 64 random bits that name the publisher that wrote it.
        schema: the first 64 bits of the schema's fingerprint.
        digest_before, digest_after: of the whole state (see `digest`).
        newest_us: arrival time of the newest example that it learned from, microseconds since 1970 (UTC); 0: unknown.
        sections: applied in order.
    """

    base_version: int
    version: int
    run: int
    schema: int
    digest_before: int
    digest_after: int
    newest_us: int
    sections: tuple[Section, ...]

    @property
    def elements(self) -> int:
        """How many element moves it holds."""
        return sum(len(section.indices) for section in self.sections)


@dataclass(frozen=True, slots=True)
class GroupChange:
    """The elements of one dtype group that an update touches: positions in the group's flat array, and new values."""

    group: int
    positions: Indices
    values: Array


@dataclass(frozen=True, slots=True)
class Change:
    """What an update does to one particular state: worked out, not yet written."""

    parts: tuple[GroupChange, ...]
    digest: int


def mix(indices: npt.NDArray[np.uint64], bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The digest's 64-bit mix of (index, value bits), elementwise, modulo 2^64.

    `index * golden + bits` goes through the finalizer of SplitMix64 (Steele, Lea, Flood 2014, variant 13 of Stafford).
    Multiples of the golden ratio stay so far apart that no two (index, bits) of up to 32 bits a value meet below 2^30
    elements.
    """
    x: npt.NDArray[np.uint64] = indices * np.uint64(_GOLDEN)
    x += bits
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def _sum_mix(group: Group, positions: Indices, values: Array) -> int:
    bits = values.view(f"u{values.dtype.itemsize}").astype(np.uint64)
    return int(mix((positions + group.start).astype(np.uint64), bits).sum(dtype=np.uint64))


def digest(schema: Schema, arrays: Sequence[Array]) -> int:
    """The digest of a whole state: the sum of `mix` over all elements, modulo 2^64.

    Being a sum, it follows a change of k elements in O(k). It proves equality against faults, not against an adversary
    who may choose values freely.

    Args:
        arrays: one flat array per group of `schema`.
    """
    total = 0
    for group, array in zip(schema.groups, arrays, strict=True):
        for start in range(0, group.size, _CHUNK):
            chunk = array[start : start + _CHUNK]
            total += _sum_mix(group, np.arange(start, start + len(chunk), dtype=np.int64), chunk)
    return total & _MASK


def finite(values: Array, dtype: str) -> npt.NDArray[np.bool_]:
    """Which of `values` (stored as `dtype`) are neither NaN nor infinite."""
    if dtype == "BF16":
        values = widen_bf16(values)
    elif STORAGE[dtype].kind != "f":
        return np.ones(len(values), dtype=np.bool_)
    result: npt.NDArray[np.bool_] = np.isfinite(values)
    return result


class State:
    """All elements of a model, one flat array per dtype, with their digest kept current.

    Args:
        schema: the table of tensors.
        arrays: one writable flat array per group of the schema, in its storage type. The state writes into them; the
            caller may keep views for reading.
        digest_value: the digest, where the caller knows it; computed otherwise.
    """

    def __init__(self, schema: Schema, arrays: Sequence[Array], digest_value: int | None = None) -> None:
        for group, array in zip(schema.groups, arrays, strict=True):
            if array.dtype != group.storage or array.shape != (group.size,):
                found = f"{array.dtype} {list(array.shape)}"
                raise SchemaMismatch(f"group {group.dtype}", f"{group.storage} [{group.size}]", found)
        self.schema = schema
        self.arrays = tuple(arrays)
        self.digest = digest(schema, arrays) if digest_value is None else digest_value

    @classmethod
    def from_tensors(cls, schema: Schema, tensors: Mapping[str, Array]) -> State:
        """A state of its own memory, copied from `tensors` (by name, in storage types; aliases are not needed).

        Raises:
            SchemaMismatch: a tensor is missing, or has another dtype or shape.
        """
        for spec in schema.tensors:  # all of them before memory is taken: a table may claim more than there is
            found, storage = tensors.get(spec.name), STORAGE[spec.dtype]
            if found is None:
                raise SchemaMismatch(spec.name, str(spec), "no such tensor")
            if found.dtype != storage or found.shape != spec.shape:
                raise SchemaMismatch(spec.name, f"{storage} {list(spec.shape)}", f"{found.dtype} {list(found.shape)}")
        arrays = [np.empty(group.size, dtype=group.storage) for group in schema.groups]
        for spec, target in _slices(schema, arrays):
            target[:] = tensors[spec.name].reshape(-1)
        return cls(schema, arrays)

    def tensors(self) -> dict[str, Array]:
        """Read-only views by name, in the schema's shapes, aliases included. They follow every later `commit`."""
        views: dict[str, Array] = {}
        for spec, flat in _slices(self.schema, self.arrays):
            view = flat.reshape(spec.shape)
            view.flags.writeable = False
            views[spec.name] = view
        return views | {alias: views[name] for alias, name in self.schema.aliases.items()}

    def resolve(self, sections: Iterable[Section]) -> Change:
        """Works out what `sections`, applied in order, do to this state, and the digest after. Writes nothing.

        Raises:
            CorruptRecord: an index outside its dtype's range, or a result that is NaN or infinite.
        """
        by_group: dict[int, list[Section]] = {}
        for section in sections:
            if len(section.indices):
                by_group.setdefault(self._group_of(section), []).append(section)
        parts, total = [], self.digest
        for group_index, found in sorted(by_group.items()):
            group, array = self.schema.groups[group_index], self.arrays[group_index]
            positions, new = _overlay(group, array, found)
            if not finite(new, group.dtype).all():
                raise CorruptRecord("update", "it leads to a value that is NaN or infinite")
            total += _sum_mix(group, positions, new) - _sum_mix(group, positions, array[positions])
            parts.append(GroupChange(group_index, positions, new))
        return Change(tuple(parts), total & _MASK)

    def check(self, update: Update, version: int) -> Change:
        """Validates `update` as the next one of this state at `version`, whole, and works it out. Writes nothing.

        Raises:
            BaseMismatch: it starts from another version, or belongs to another schema.
            DigestMismatch: this state, or the state after it, is not what its publisher had.
            CorruptRecord: it cannot be applied.
        """
        if update.base_version != version or update.version <= version:
            found = f"version {update.base_version}, leading to {update.version}"
            raise BaseMismatch(f"version {version}", found)
        if update.schema != short_fingerprint(self.schema):
            raise BaseMismatch(f"schema {short_fingerprint(self.schema):016x}", f"schema {update.schema:016x}")
        if update.digest_before != self.digest:
            raise DigestMismatch(version, update.digest_before, self.digest)
        change = self.resolve(update.sections)
        if change.digest != update.digest_after:
            raise DigestMismatch(update.version, update.digest_after, change.digest)
        return change

    def commit(self, change: Change) -> None:
        """Writes a change that `resolve` worked out for this very state."""
        for part in change.parts:
            self.arrays[part.group][part.positions] = part.values
        self.digest = change.digest

    def _group_of(self, section: Section) -> int:
        dtype = "F32" if isinstance(section, Steps) else section.dtype
        first, last = int(section.indices[0]), int(section.indices[-1])
        for index, group in enumerate(self.schema.groups):
            if group.dtype == dtype and group.start <= first and last < group.stop:
                return index
        raise CorruptRecord("update", f"{dtype} indices {first} to {last} lie outside the schema's {dtype} elements")


def _slices(schema: Schema, arrays: Sequence[Array]) -> Iterable[tuple[Any, Array]]:
    starts = {group.dtype: (group.start, array) for group, array in zip(schema.groups, arrays, strict=True)}
    for spec in schema.tensors:
        start, array = starts[spec.dtype]
        yield spec, array[spec.offset - start : spec.offset - start + spec.size]


def _overlay(group: Group, array: Array, sections: list[Section]) -> tuple[Indices, Array]:
    if len(sections) == 1:
        positions = sections[0].indices - group.start
    else:
        positions = np.unique(np.concatenate([s.indices for s in sections])) - group.start
    new = array[positions]
    for section in sections:
        at: Any = slice(None)
        if len(sections) > 1:
            at = np.searchsorted(positions, section.indices - group.start)
        if isinstance(section, Values):
            new[at] = section.values
            continue
        scale = np.float32(section.scale)
        with np.errstate(over="ignore", invalid="ignore"):
            new[at] += np.where(section.negative, -scale, scale)
    return positions, new


def short_fingerprint(schema: Schema) -> int:
    """The first 64 bits of the schema's fingerprint, as every update carries them."""
    return int(schema.fingerprint[:16], 16)


def fold(state: State, touched: Mapping[int, Indices]) -> tuple[Values, ...]:
    """Folds any run of updates that led to `state` into absolute values.

    Args:
        touched: per group of the schema, the positions (ascending) that any of the updates moved.
    """
    return tuple(
        Values(
            positions + state.schema.groups[group].start,
            state.arrays[group][positions],
            state.schema.groups[group].dtype,
        )
        for group, positions in sorted(touched.items())
        if len(positions)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A whole state at one version. `run` and `newest_us` are as in `Update`."""

    version: int
    run: int
    newest_us: int
    state: State
