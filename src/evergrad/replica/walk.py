"""The way of a replica that catches up: through folds where there are some, or over a snapshot."""

from __future__ import annotations

_ANY = 1 << 62


class Walk:
    """One catching up: which folds to try, and when a snapshot is the shorter way."""

    def __init__(self, model_bytes: int) -> None:
        self._model_bytes = model_bytes
        self._versions = self._bytes = 0
        self._longest = _ANY
        self._shortcut = True

    def add(self, versions: int, size: int) -> None:
        """`versions` more were caught up, by an object of `size` bytes."""
        self._versions += versions
        self._bytes += size

    def missed(self, span: int) -> None:
        """There is no fold of `span` versions: none so long is asked for again."""
        self._longest = span - 1

    def spans(self, version: int, base: int) -> list[int]:
        """Where the folds from `version` may lead, the farthest first; none for one who is but a step behind."""
        if self._versions < 2 and self._longest == _ANY:
            return []
        found, span = [], base
        while version % span == 0 and span <= min(self._longest, max(version, base)):
            found.append(version + span)
            span *= base
        return found[::-1]

    def costs_more_than_snapshot(self, version: int, newest: int) -> bool:
        """Whether the way to the snapshot of version `newest` looks longer than that snapshot, by the bytes so far."""
        if not self._versions or not self._shortcut:
            return False
        return (newest - version) * self._bytes / self._versions > self._model_bytes

    def forget_snapshot(self) -> None:
        """The snapshot was tried: from here on only updates."""
        self._shortcut = False
