"""A model's state, and the one place where updates are worked out and written in.

A state is one flat array per dtype (see `schema`). `State.resolve` works an update out beside the state and
`State.commit` writes it in; in between, the caller compares digests. Because publisher and replica run these same
lines, equal inputs give equal bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evergrad.errors import BaseMismatch, CorruptRecord, DigestMismatch, SchemaMismatch
from evergrad.schema import STORAGE, Group, Schema
from evergrad.update.change import Change, GroupChange
from evergrad.update.digest import MASK, Array, Indices, digest, shift_of, union, valid
from evergrad.update.sections import Section, Update, short_fingerprint


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

    def elements_at(self, dtype: str, indices: Indices) -> Array:
        """The values of the elements at flat `indices`, all of `dtype`. Raises CorruptRecord where there is no such."""
        group = self._group_holding(dtype, indices)
        return self.arrays[group][indices - self.schema.groups[group].start]

    def resolve(self, sections: Iterable[Section]) -> Change:
        """Works out what `sections`, applied in order, do to this state, and the digest after. Writes nothing.

        Raises:
            CorruptRecord: an index outside its dtype's range, or a result that is NaN or infinite.
        """
        by_group: dict[int, list[Section]] = {}
        for section in sections:
            if len(section.indices):
                by_group.setdefault(self._group_holding(section.dtype, section.indices), []).append(section)
        parts, total = [], self.digest
        for group_index, found in sorted(by_group.items()):
            group, array = self.schema.groups[group_index], self.arrays[group_index]
            positions, old, new = _overlay(group, array, found)
            total += shift_of(group, positions, old, new)
            parts.append(GroupChange(group_index, positions, old, new))
        return Change(tuple(parts), self.digest, total & MASK)

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
        """Writes a change that `resolve` worked out for this very state, or the inverse of its last one."""
        for part in change.parts:
            self.arrays[part.group][part.positions] = part.new
        self.digest = change.digest

    def _group_holding(self, dtype: str, indices: Indices) -> int:
        first, last = int(indices[0]), int(indices[-1])
        for index, group in enumerate(self.schema.groups):
            if group.dtype == dtype and group.start <= first and last < group.stop:
                return index
        raise CorruptRecord("update", f"{dtype} indices {first} to {last} lie outside the schema's {dtype} elements")


def _slices(schema: Schema, arrays: Sequence[Array]) -> Iterable[tuple[Any, Array]]:
    starts = {group.dtype: (group.start, array) for group, array in zip(schema.groups, arrays, strict=True)}
    for spec in schema.tensors:
        start, array = starts[spec.dtype]
        yield spec, array[spec.offset - start : spec.offset - start + spec.size]


def _overlay(group: Group, array: Array, sections: list[Section]) -> tuple[Indices, Array, Array]:
    if len(sections) == 1:
        positions = sections[0].indices - group.start
        old = array[positions]
        return positions, old, _moved(sections[0], old)
    positions = union([section.indices for section in sections]) - group.start
    old = array[positions]
    new = old.copy()
    for section in sections:
        at = np.searchsorted(positions, section.indices - group.start)
        new[at] = _moved(section, new[at])
    return positions, old, new


def _moved(section: Section, old: Array) -> Array:
    new = section.moved(old)
    if not valid(new, section.dtype):
        raise CorruptRecord("update", f"it leads to a {section.dtype} that is NaN, infinite or no boolean")
    return new


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A whole state at one version. `run` and `newest_us` are as in `Update`."""

    version: int
    run: int
    newest_us: int
    state: State
