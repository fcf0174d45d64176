"""What a server tells about the weights it serves: as JSON, and as Prometheus metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from evergrad.errors import EvergradError, LogNotFound, NotSynced
from evergrad.replica import Replica, ReplicaStats


class WeightsInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Version, digest, staleness and counts of one moment.

    Attributes:
        version, digest: None before the first version; the digest in 16 hexadecimal digits.
        staleness_s: None where no example's time is known.
        error: why the replica does not follow its log, in one line; None: it does.
    """

    version: int | None
    digest: str | None
    staleness_s: float | None
    updates: int
    update_bytes: int
    snapshots: int
    error: str | None


def weights_info(replica: Replica) -> WeightsInfo:
    """What a replica serves now; waits for a prediction that is under way, and asks whether the log is still there."""
    stats, staleness_s = _read(replica)
    error = stats.error or _lost(replica)
    return WeightsInfo(
        version=stats.version,
        digest=None if stats.digest is None else hex_digest(stats.digest),
        staleness_s=staleness_s if math.isfinite(staleness_s) else None,
        updates=stats.updates,
        update_bytes=stats.update_bytes,
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


def _read(replica: Replica) -> tuple[ReplicaStats, float]:
    try:
        with replica.pin():
            return replica.stats(), replica.staleness_s()
    except NotSynced:
        return replica.stats(), math.inf


def _lost(replica: Replica) -> EvergradError | None:
    # To a reader, a log that is gone looks like one where nothing new is: only a listing tells them apart.
    try:
        return None if replica.log.begun() else LogNotFound(replica.log.url)
    except EvergradError as error:
        return error


def metrics_registry(replica: Replica) -> CollectorRegistry:
    """A registry of this replica's metrics and of the process's own (KServe's request latencies among them).

    Each server has its own registry, so several live in one process.
    """
    registry = CollectorRegistry()
    registry.register(_WeightsCollector(replica))
    registry.register(REGISTRY)
    return registry


class _WeightsCollector:
    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def collect(self) -> Iterator[Metric]:
        stats, staleness_s = _read(self._replica)
        if stats.version is not None:
            yield GaugeMetricFamily("evergrad_version", "Version of the weights that are served", stats.version)
        yield GaugeMetricFamily(
            "evergrad_staleness_seconds", "Seconds since the newest example that the weights learned from", staleness_s
        )
        yield CounterMetricFamily("evergrad_updates", "Updates applied", stats.updates)
        yield CounterMetricFamily("evergrad_update_bytes", "Bytes of the updates applied", stats.update_bytes)
        yield CounterMetricFamily("evergrad_snapshots", "Snapshots loaded", stats.snapshots)
