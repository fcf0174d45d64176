"""What a replica tells about itself."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from evergrad.errors import EvergradError

logger = logging.getLogger(__name__)
ANOTHER_MODEL = (
    "the log goes on with another model, and this replica keeps its last version of the one before: "
    "build the new module, and make a new Replica for it (with a cache of its own)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What a callback of `Replica.on_update` is told.

    Attributes:
        version, digest: that the replica holds now.
        touched: (number of the group, positions in its flat array) of all that was written; None: everything may have
            been (a snapshot was loaded).
    """

    version: int
    digest: int
    touched: tuple[tuple[int, npt.NDArray[Any]], ...] | None


class Listeners:
    """Who wants to be told of each move."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[[Applied], None]] = []

    def add(self, callback: Callable[[Applied], None]) -> Callable[[], None]:
        """From now on; gives what ends that."""
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    def tell(self, applied: Applied) -> None:
        """Calls them one after the other; what one raises is logged."""
        for callback in tuple(self._callbacks):
            try:
                callback(applied)
            except Exception:  # the user's code, of which we know nothing; the state is whole either way
                logger.exception("a callback failed at version %d", applied.version)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStats:
    """What a replica has done so far.

    Attributes:
        updates, update_bytes: applied; a fold is one.
        apply_s: seconds spent on checking and writing them, while readers waited or not.
        rejects: updates and snapshots that were refused; one that is tried again counts again.
        snapshots: loaded, the first one included.
        rollbacks: calls of `rollback`.
        held: whether it was rolled back and stays there until `resume`.
        undo_bytes: memory of the undo ring.
        error: the last problem, while it lasts; None: the replica follows.
    """

    version: int | None
    digest: int | None
    newest_us: int
    updates: int
    update_bytes: int
    apply_s: float
    rejects: int
    snapshots: int
    rollbacks: int
    held: bool
    undo_bytes: int
    error: EvergradError | None
