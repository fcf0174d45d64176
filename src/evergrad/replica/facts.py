"""What a replica tells about itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from evergrad.errors import EvergradError


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
