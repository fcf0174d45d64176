"""What a server tells about the weights it serves, as JSON."""

from __future__ import annotations

import math

import msgspec

from evergrad.errors import EvergradError, LogNotFound
from evergrad.replica import Replica
from evergrad.serve.metrics import pinned_stats


class WeightsInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Version, digest, staleness and counts of one moment.

    Attributes:
        version, digest: None before the first version is served; the digest in 16 hexadecimal digits.
        staleness_s: None where no example's time is known.
        error: why the replica does not follow its log, or cannot be served, in one line; None: it does, and can.
    """

    version: int | None
    digest: str | None
    staleness_s: float | None
    updates: int
    update_bytes: int
    apply_s: float
    rejects: int
    snapshots: int
    error: str | None


def weights_info(replica: Replica, missing: str | None = None) -> WeightsInfo:
    """What a replica serves now; waits for a prediction that is under way, and asks whether the log is still there.

    Args:
        missing: why its version cannot be served.
    """
    stats, staleness_s = pinned_stats(replica)
    error = stats.error or missing or _lost(replica)
    return WeightsInfo(
        version=None if missing else stats.version,
        digest=None if missing or stats.digest is None else hex_digest(stats.digest),
        staleness_s=staleness_s if math.isfinite(staleness_s) else None,
        updates=stats.updates,
        update_bytes=stats.update_bytes,
        apply_s=stats.apply_s,
        rejects=stats.rejects,
        snapshots=stats.snapshots,
        error=None if error is None else one_line(error),
    )


def hex_digest(digest: int) -> str:
    """A digest as it is written in answers: 16 hexadecimal digits.

    >>> hex_digest(255)
    '00000000000000ff'
    """
    return f"{digest:016x}"


def one_line(message: object, limit: int = 300) -> str:
    """The first line of a message, cut to `limit` characters; of an error without one, its type.

    >>> one_line(ValueError("too long\\nby far"))
    'too long'
    """
    lines = str(message).strip().splitlines()
    return lines[0][:limit] if lines else type(message).__name__


def _lost(replica: Replica) -> EvergradError | None:
    # To a reader, a log that is gone looks like one where nothing new is: only a listing tells them apart.
    try:
        return None if replica.log.begun() else LogNotFound(replica.log.url)
    except EvergradError as error:
        return error
