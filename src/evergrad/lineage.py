"""Which examples led to which version, as the updates of a log tell it (`docs/format.md`, lineage).

An update names the new examples of the training steps in it; the old ones that were drawn to join them are not told. It
carries what error feedback held back before, too: an example begins to show in the first version that names it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evergrad.errors import CorruptRecord, ReadOnlyLog, UnsupportedFormat, VersionNotInLog
from evergrad.log import UpdateLog
from evergrad.schema import Schema
from evergrad.update import Section
from evergrad.update.digest import union

Observe = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blame:
    """What led to a version.

    Attributes:
        version, run, examples, newest_us: as in `Update`.
        update_bytes: of the update, as it is in the log.
        moved: how many elements of each tensor it wrote, the most first; tensors without are left out.
    """

    version: int
    run: int
    examples: range | None
    newest_us: int
    update_bytes: int
    moved: tuple[tuple[str, int], ...]

    @property
    def elements(self) -> int:
        """How many different elements it wrote."""
        return sum(count for _, count in self.moved)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What `first_to_name` found.

    Attributes:
        version: the first that names the example; None: none does.
        searched: the versions that were looked at: from the first to the last whose update the log holds.
        unread: those before `version` whose updates are missing or cannot be read: they may name it, too.
    """

    version: int | None
    searched: range
    unread: tuple[int, ...]


def blame(log: UpdateLog, version: int) -> Blame:
    """Which examples led to a version, and what they moved.

    Raises:
        VersionNotInLog: no update leads there: retention has deleted it, nobody wrote it, or the log began there.
        CorruptRecord, UnsupportedFormat: it cannot be read.
    """
    found = log.read(version)
    if found is None:
        raise VersionNotInLog(log.url, version, _held(log))
    update, size = found
    return Blame(
        version=version, run=update.run, examples=update.examples, newest_us=update.newest_us, update_bytes=size,
        moved=_by_tensor(log.schema, update.sections),
    )  # fmt: skip


def _held(log: UpdateLog) -> str:
    try:
        updates = log.updates()
    except ReadOnlyLog:
        return "updates that can only be asked for by name"
    return f"the updates that lead to {updates[0]} to {updates[-1]}" if updates else "no update"


def _by_tensor(schema: Schema, sections: tuple[Section, ...]) -> tuple[tuple[str, int], ...]:
    if not sections:
        return ()
    specs = [spec for spec in schema.tensors if spec.size]
    starts = np.array([spec.offset for spec in specs])
    moved = union([section.indices for section in sections])
    counts = np.bincount(np.searchsorted(starts, moved, side="right") - 1, minlength=len(specs)).tolist()
    named = [(spec.name, count) for spec, count in zip(specs, counts, strict=True) if count]
    return tuple(sorted(named, key=lambda row: -row[1]))


def first_to_name(log: UpdateLog, example: int, observe: Observe | None = None) -> Found:
    """Looks for the first version that learned from an example, in all that the log holds; it must be listable.

    Versions need not name their examples in order (a log may be rolled back, and continued by others), so that all are
    looked at, but for those within a fold that does not name the example.

    Args:
        example: its number in the history.
        observe: called with how many versions are done, and how many there are.

    Raises:
        ReadOnlyLog: the log can only be read by name.
    """
    _ = log.schema
    updates = log.updates()
    searched = range(updates[0], updates[-1] + 1) if updates else range(0)
    folds: dict[int, list[int]] = {}
    for begin, end in sorted(log.folds(), reverse=True):  # those from one version: the longest first
        folds.setdefault(begin, []).append(end)
    unread: list[int] = []
    version = searched.start
    while version in searched:
        if observe is not None:
            observe(version - searched.start, len(searched))
        before = version - 1
        without = next((end for end in folds.get(before, []) if _names(log, before, end, example) is False), None)
        if without is not None:
            version = without + 1
            continue
        named = _names(log, before, version, example)
        if named:
            return Found(version=version, searched=searched, unread=tuple(unread))
        if named is None:
            unread.append(version)
        version += 1
    return Found(version=None, searched=searched, unread=tuple(unread))


def _names(log: UpdateLog, first: int, last: int, example: int) -> bool | None:
    """Whether the update or fold between two versions names an example; None: it is missing, or cannot be read."""
    try:
        header = log.read_header(first, last)
    except (CorruptRecord, UnsupportedFormat):
        return None
    return None if header is None else header.examples is not None and example in header.examples
