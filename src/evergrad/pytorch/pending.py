"""What has moved and is not in the log yet: in memory that is bounded, whatever happens to the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evergrad.codec import compact, decode, encode, encoded_bytes
from evergrad.errors import DigestMismatch
from evergrad.schema import Schema
from evergrad.update import Change, Section, State, Steps, Update, compose, hull, short_fingerprint, values_of

# What waits for a log that is down may take as much memory as this fraction of the model, 16 bytes an element.
MOST_WAITING_FRACTION = 1 / 200
_MOST_MOVES = 256
_LEAST_ELEMENTS = 1 << 16


class Pending:
    """A run of moves, each of which starts where the one before ended.

    Args:
        schema: of the state that moves.
        most_elements: as many different elements are held at most, or 65,536 where that is more. A run that grows
            beyond it is `lost`: only its digests are left, and readers need a snapshot.

    Attributes:
        newest_us, examples: as in `Update`. They may be told before the first move.
        moved: elements that optimizer steps moved, each as often as it did.
        digest_before, digest_after: of the state, before its first and after its last move.
    """

    def __init__(self, schema: Schema, most_elements: int) -> None:
        self._schema, self._most = schema, max(most_elements, _LEAST_ELEMENTS)
        self._moves: list[tuple[Sequence[Section], Change]] = []
        self.elements = 0
        self.lost = False
        self.newest_us = self.moved = 0
        self.examples: range | None = None
        self.digest_before = self.digest_after = 0

    def __bool__(self) -> bool:
        return self.lost or bool(self._moves)

    def add(self, sections: Sequence[Section], change: Change) -> None:
        """Takes in a change, and the sections that make it."""
        if not self:
            self.digest_before = change.digest_before
        self.digest_after = change.digest
        if self.lost:
            return
        self._moves.append((sections, change))
        self.elements += _size(change)
        if len(self._moves) > _MOST_MOVES or self.elements > 2 * self._most:
            self._moves = [self._folded()]
            self.elements = _size(self._moves[0][1])
            if self.elements > self._most:
                self._lose()

    def extend(self, later: Pending) -> None:
        """Takes in the run that starts where this one ends."""
        if not self:
            self.digest_before = later.digest_before
        if later.lost:
            self._lose()
        for sections, change in later._moves:
            self.add(sections, change)
        self.newest_us = max(self.newest_us, later.newest_us)
        self.moved += later.moved
        self.examples = hull((self.examples, later.examples))
        self.digest_after = later.digest_after

    def state_dict(self) -> dict[str, Any]:
        """The run, and what its elements were before it."""
        whole = compose([change for _, change in self._moves]) if self._moves else None
        return {
            "moves": [encode(_carrier(self._schema, sections)) for sections, _ in self._moves],
            "old": [(part.group, part.positions, part.old) for part in whole.parts] if whole else [],
            "lost": self.lost,
            "digests": (self.digest_before, self.digest_after),
            "newest_us": self.newest_us,
            "moved": self.moved,
            "examples": (self.examples.start, self.examples.stop) if self.examples else None,
        }

    def load_state_dict(self, saved: Mapping[str, Any], state: State) -> None:
        """Becomes the run that was saved; `state`, where it ended, is taken back to its beginning and moved again.

        Raises:
            CorruptRecord, DigestMismatch: it does not lead to that state.
        """
        before, after = saved["digests"]
        if saved["moves"]:
            for group, positions, old in saved["old"]:
                state.arrays[group][positions] = old
            state.digest = before
        for data in saved["moves"]:
            sections = decode(data, self._schema, "checkpoint").sections
            change = state.resolve(sections)
            state.commit(change)
            self.add(sections, change)
        if self and state.digest != after:
            raise DigestMismatch(0, after, state.digest)
        self.lost = saved["lost"]
        self.digest_before, self.digest_after = before, after
        self.newest_us, self.moved = saved["newest_us"], saved["moved"]
        self.examples = range(*saved["examples"]) if saved["examples"] else None

    def take_back(self, state: State) -> None:
        """Takes a copy of the state where it ended back to its beginning, but for what is lost."""
        for _, change in reversed(self._moves):
            state.commit(change.inverse())

    def _lose(self) -> None:
        self.lost, self.elements, self._moves = True, 0, []

    def _folded(self) -> tuple[Sequence[Section], Change]:
        whole = compose([change for _, change in self._moves]).without_noughts()
        return [compact(values, old) for values, old in values_of(whole, self._schema)], whole

    def smallest(self) -> tuple[Section, ...]:
        """The sections of one update that does it all: as they came, or folded, whichever takes fewer bytes."""
        told = [section for sections, _ in self._moves for section in sections]
        kinds = {(isinstance(section, Steps), section.dtype) for section in told}
        if len(kinds) == len(told):
            return tuple(told)
        return tuple(min((told, self._folded()[0]), key=encoded_bytes))


def _carrier(schema: Schema, sections: Sequence[Section]) -> Update:
    return Update(
        base_version=0, version=1, run=0, schema=short_fingerprint(schema), digest_before=0, digest_after=0,
        newest_us=0, sections=tuple(sections),
    )  # fmt: skip


def _size(change: Change) -> int:
    return sum(len(part.positions) for part in change.parts)
