"""Folds: a run of updates in one object, so that a reader n versions behind fetches O(log n) of them.

Folds span powers of `FOLD_BASE` versions, from multiples of that power:

    updates  1 2 3 ... 16 17 ... 32 ...      folds  0-16  16-32 ... 240-256      0-256  256-512 ...

A fold of updates is their sections one after another: steps stay one to three bits an element, which is less than any
absolute value as long as most elements moved once or twice. Where the state after the last of them is at hand,
elements that any of them set absolutely (statistics, above all) may be told once, and so may all of them where they
moved often.

A fold is at most `MAX_FOLD_BYTES` long, which bounds a reader's memory, and at most half the model: a reader that far
behind is better served by a snapshot. Longer spans are then left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from evergrad.codec import decode, encode, split, with_header
from evergrad.errors import CorruptRecord
from evergrad.schema import Schema
from evergrad.update import Section, State, Steps, Values, hull
from evergrad.update.digest import Indices, union

FOLD_BASE = 16
MAX_FOLD_BYTES = 1 << 20
_MAX_FOLD_ELEMENTS = 1 << 19


def concatenate(parts: Sequence[bytes]) -> bytes:
    """One update out of encoded updates, each of which starts where the one before ended; nothing is decoded.

    Raises:
        CorruptRecord: one of them is damaged, or does not start where the one before ended.
        UnsupportedFormat: one was written by a newer release.
    """
    headers, bodies = zip(*map(split, parts), strict=True)
    for before, after in itertools.pairwise(headers):
        if (before.version, before.schema, before.digest_after) != (
            after.base_version,
            after.schema,
            after.digest_before,
        ):
            raise CorruptRecord(f"update {after.version}", f"it does not continue update {before.version}")
    folded = replace(
        headers[-1],
        base_version=headers[0].base_version,
        digest_before=headers[0].digest_before,
        newest_us=next((header.newest_us for header in reversed(headers) if header.newest_us), 0),
        examples=hull(header.examples for header in headers),
    )
    return with_header(folded, b"".join(bodies))


def smallest_fold(joined: bytes, schema: Schema, state: State | None) -> bytes | None:
    """The smallest form of a concatenated fold; None where even that is too large.

    Args:
        state: the state after it; None: the form stays.
    """
    most = min(MAX_FOLD_BYTES, schema.nbytes // 2)
    if state is None or len(joined) > 8 * most:
        return joined if len(joined) <= most else None
    update = decode(joined, schema)
    candidates = [absolute(update.sections, state)]
    if any(not isinstance(section, Steps) for section in update.sections):
        candidates.append(absolute_once(update.sections, state))
    forms = [joined] if update.elements <= _MAX_FOLD_ELEMENTS else []
    forms += [
        encode(replace(update, sections=tuple(sections)))
        for sections in candidates
        if sum(len(section.indices) for section in sections) <= _MAX_FOLD_ELEMENTS
    ]
    smallest = min(forms, key=len, default=None)
    return smallest if smallest is not None and len(smallest) <= most else None


def absolute(sections: Iterable[Section], state: State) -> list[Section]:
    """What `sections` led to, as the values that `state`, the one after them, has where they moved anything."""
    touched: dict[str, list[Indices]] = {}
    for section in sections:
        touched.setdefault(section.dtype, []).append(section.indices)
    moved = {dtype: union(found) for dtype, found in touched.items()}
    return [Values(indices, state.elements_at(dtype, indices), dtype) for dtype, indices in moved.items()]


def absolute_once(sections: Iterable[Section], state: State) -> list[Section]:
    """The same, but steps stay steps: only elements that other sections moved are told as values, at the end."""
    found = list(sections)
    values = absolute((s for s in found if not isinstance(s, Steps)), state)
    told = next((v.indices for v in values if v.dtype == "F32"), np.empty(0, dtype=np.int64))
    return [_without(s, told) for s in found if isinstance(s, Steps)] + values


def _without(steps: Steps, told: Indices) -> Steps:
    kept = ~np.isin(steps.indices, told, assume_unique=True)
    if kept.all():
        return steps
    levels = None if steps.levels is None else steps.levels[kept]
    return Steps(steps.indices[kept], steps.negative[kept], steps.scale, levels)
