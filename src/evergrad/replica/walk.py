"""One catching up: which folds to try, and when a snapshot is the shorter way."""

from __future__ import annotations


class Walk:
    """Counts what was caught up so far, and decides by it what to ask for next.

    Args:
        model_bytes: what a snapshot costs.
    """

    def __init__(self, model_bytes: int) -> None:
        self._model_bytes = model_bytes
        self._versions = self._bytes = 0
        self._no_fold_from = -1
        self._shortcut = True

    def add(self, versions: int, size: int) -> None:
        """`versions` more were caught up, by an object of `size` bytes."""
        self._versions += versions
        self._bytes += size

    def missed(self, version: int) -> None:
        """No fold leads on from `version`; those from later versions are asked for all the same."""
        self._no_fold_from = version

    def spans(self, version: int, base: int) -> list[int]:
        """Where the folds from `version` may lead, the farthest first; none for one who is but a step behind."""
        if self._versions < 2 or version == self._no_fold_from:
            return []
        found, span = [], base
        while version % span == 0 and span <= max(version, base):
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
