"""The undo ring: overwritten values of the newest versions, so that going back costs what changed and not the model."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evergrad.update import Change, GroupChange, State


@dataclass(frozen=True, slots=True, eq=False)
class Undo:
    """How to go back to `version`: per group, the positions that were written since, and what was there.

    Attributes:
        parts: (group, positions, old values).
        digest, newest_us: of that version.
    """

    version: int
    digest: int
    newest_us: int
    parts: tuple[tuple[int, npt.NDArray[Any], npt.NDArray[Any]], ...]

    @property
    def nbytes(self) -> int:
        return 200 + sum(positions.nbytes + old.nbytes for _, positions, old in self.parts)

    def change(self, state: State) -> Change:
        """The change that takes `state`, as it was left, back to that version."""
        parts = tuple(
            GroupChange(group, positions.astype(np.int64), state.arrays[group][positions], old)
            for group, positions, old in self.parts
        )
        return Change(parts, state.digest, self.digest)


class UndoRing:
    """The newest versions' undos, as many as fit into `most_bytes` (8 bytes for each float32 element that moved)."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._undos: deque[Undo] = deque()
        self.nbytes = 0

    def push(self, version: int, newest_us: int, change: Change) -> None:
        """Remembers how to undo `change`, which led away from `version`; forgets the oldest that do not fit."""
        parts = tuple((part.group, _narrow(part.positions), part.old) for part in change.parts)
        undo = Undo(version, change.digest_before, newest_us, parts)
        self._undos.append(undo)
        self.nbytes += undo.nbytes
        while self.nbytes > self._most_bytes:
            self.nbytes -= self._undos.popleft().nbytes

    def pop(self) -> Undo:
        """The undo of the newest change."""
        undo = self._undos.pop()
        self.nbytes -= undo.nbytes
        return undo

    def since(self, version: int) -> list[Undo]:
        """The undos that lead back to `version`, in the order to take them; none where it is not in the ring."""
        found = []
        for undo in reversed(self._undos):
            found.append(undo)
            if undo.version == version:
                return found
            if undo.version < version:
                break
        return []

    def clear(self) -> None:
        """Forgets everything."""
        self._undos.clear()
        self.nbytes = 0

    @property
    def versions(self) -> list[int]:
        """The versions that can be gone back to, ascending."""
        return [undo.version for undo in self._undos]


def _narrow(positions: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    fits = not len(positions) or int(positions[-1]) <= np.iinfo(np.uint32).max
    return positions.astype(np.uint32) if fits else positions
