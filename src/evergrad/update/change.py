"""What an update did to one particular state, exactly: undo and fold are algebra on changes.

A change lists the elements that were written, with their bits before and after. Changes that follow each other compose
(`compose`, associative), and every change has an inverse.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evergrad.errors import BaseMismatch
from evergrad.schema import Schema
from evergrad.update.digest import Array, Indices, union
from evergrad.update.sections import Values


@dataclass(frozen=True, slots=True, eq=False)
class GroupChange:
    """The elements of one dtype group that a change writes.

    Attributes:
        group: number of the group in the schema.
        positions: int64, strictly ascending, in the group's flat array.
        old, new: values before and after, in the group's storage type.
    """

    group: int
    positions: Indices
    old: Array
    new: Array


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """From the state of digest `digest_before` to the one of digest `digest`."""

    parts: tuple[GroupChange, ...]
    digest_before: int
    digest: int

    def inverse(self) -> Change:
        """The change that takes it back."""
        parts = tuple(GroupChange(part.group, part.positions, part.new, part.old) for part in self.parts)
        return Change(parts, self.digest, self.digest_before)

    def distance(self) -> float:
        """The 2-norm of the differences of all floating-point elements; BF16 aside."""
        squares = 0.0
        for part in self.parts:
            if part.new.dtype.kind == "f":
                squares += float(np.square(part.new.astype(np.float64) - part.old).sum())
        return math.sqrt(squares)

    def without_noughts(self) -> Change:
        """The same without elements whose bits are as before."""
        parts = []
        for part in self.parts:
            kind = f"u{part.old.dtype.itemsize}"
            moved = part.old.view(kind) != part.new.view(kind)
            parts.append(GroupChange(part.group, part.positions[moved], part.old[moved], part.new[moved]))
        return Change(tuple(parts), self.digest_before, self.digest)


def compose(changes: Sequence[Change]) -> Change:
    """Folds changes, each of which starts where the one before ended, into one: first old values, last new values.

    Args:
        changes: at least one.

    Raises:
        BaseMismatch: one does not start where the one before ended.
    """
    for before, after in itertools.pairwise(changes):
        if before.digest != after.digest_before:
            raise BaseMismatch(f"digest {before.digest:016x}", f"digest {after.digest_before:016x}")
    by_group: dict[int, list[GroupChange]] = {}
    for change in changes:
        for part in change.parts:
            by_group.setdefault(part.group, []).append(part)
    parts = tuple(_compose_group(group, found) for group, found in sorted(by_group.items()))
    return Change(parts, changes[0].digest_before, changes[-1].digest)


def _compose_group(group: int, parts: list[GroupChange]) -> GroupChange:
    if len(parts) == 1:
        return parts[0]
    positions = union([part.positions for part in parts])
    old, new = (np.empty(len(positions), dtype=parts[0].old.dtype) for _ in range(2))
    for part in reversed(parts):  # the first old value is written last, and so stays
        old[np.searchsorted(positions, part.positions)] = part.old
    for part in parts:
        new[np.searchsorted(positions, part.positions)] = part.new
    return GroupChange(group, positions, old, new)


def values_of(change: Change, schema: Schema) -> tuple[tuple[Values, Array], ...]:
    """A change as sections of absolute values, each with the values before: what a fold of updates is made of."""
    return tuple(
        (Values(part.positions + schema.groups[part.group].start, part.new, schema.groups[part.group].dtype), part.old)
        for part in change.parts
        if len(part.positions)
    )
