"""Prometheus metrics of one server: its requests, its batches, and the weights that it serves.

    evergrad_requests_total{model_name, track, code}      evergrad_version{model_name, track}
    evergrad_request_seconds{model_name, track}           evergrad_staleness_seconds{...}
    evergrad_batch_requests{...}, evergrad_batch_rows     evergrad_updates_total, evergrad_update_bytes_total{...}
    evergrad_shadow_rows_total{model_name, agreed}        evergrad_apply_seconds, evergrad_rejects_total{...}
    evergrad_shadow_dropped_total{model_name}             evergrad_snapshots_total{...}
    evergrad_feedback_total{model_name, outcome}          evergrad_feedback_waiting{model_name}
    evergrad_unkept_answers_total{model_name}             evergrad_feedback_expired_total, ..._dropped_total{model_name}

`track` is "stable" or "candidate". Where several workers share a port, requests are summed over all of them, and the
weights' metrics have the label `worker`: each scrape tells those of one. `outcome` is "joined", "duplicate" or
"unknown" (requests), "example" (rows) or "refused" (pieces of feedback). What waits, has expired (its labels never
came) or was dropped is counted by each worker over all workers' requests, from the oldest on disk on.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector

from evergrad.errors import NotSynced
from evergrad.replica import Replica, ReplicaStats
from evergrad.serve.feedback import Labelling

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SHARED = "PROMETHEUS_MULTIPROC_DIR"


class Tracked(Protocol):
    """One lane, as far as metrics go."""

    track: str

    @property
    def replica(self) -> Replica: ...


class Metrics:
    """The metrics of one server, in a registry of its own, so that several servers live in one process.

    Args:
        lanes: gives the lanes that there are now.
        worker: its number, where several processes share a port.
    """

    def __init__(
        self,
        model_name: str,
        lanes: Callable[[], Sequence[Tracked]],
        worker: int | None = None,
        labelling: Labelling | None = None,
    ) -> None:
        self._name = model_name
        own = CollectorRegistry()
        tracked = ("model_name", "track")
        self._requests = Counter("evergrad_requests", "Requests, by the status", [*tracked, "code"], registry=own)
        self._seconds = Histogram(
            "evergrad_request_seconds", "Arrival to answer", tracked, registry=own, buckets=_SECONDS
        )
        self._batch_requests = Histogram(
            "evergrad_batch_requests", "Requests computed at once", tracked, registry=own, buckets=_COUNTS
        )
        self._batch_rows = Histogram(
            "evergrad_batch_rows", "Rows computed at once", tracked, registry=own, buckets=_COUNTS
        )
        self._shadow_rows = Counter(
            "evergrad_shadow_rows", "Rows that the shadow computed too", ("model_name", "agreed"), registry=own
        )
        self._shadow_dropped = Counter(
            "evergrad_shadow_dropped", "Requests that a busy shadow left out", ("model_name",), registry=own
        )
        self._feedback = Counter(
            "evergrad_feedback", "Feedback, by what became of it", ("model_name", "outcome"), registry=own
        )
        self._not_kept = Counter(
            "evergrad_unkept_answers", "Answers that could not be kept for labels", ("model_name",), registry=own
        )
        self.registry = CollectorRegistry()
        if labelling is not None:
            self.registry.register(_JoinCollector(model_name, labelling))
        self.registry.register(_WeightsCollector(model_name, lanes, worker))
        if os.environ.get(_SHARED):
            MultiProcessCollector(self.registry)
        else:
            self.registry.register(own)
            self.registry.register(REGISTRY)

    def answered(self, track: str, code: int, seconds: float) -> None:
        """One request was answered with the HTTP status `code`, or what it would have been over gRPC."""
        self._requests.labels(self._name, track, str(code)).inc()
        self._seconds.labels(self._name, track).observe(seconds)

    def batched(self, track: str, requests: int, rows: int) -> None:
        """So many requests, with so many rows, were computed at once."""
        self._batch_requests.labels(self._name, track).observe(requests)
        self._batch_rows.labels(self._name, track).observe(rows)

    def shadowed(self, agreed: int, rows: int) -> None:
        """The shadow computed `rows` that the stable lane had answered; of `agreed` both say the same."""
        self._shadow_rows.labels(self._name, "yes").inc(agreed)
        self._shadow_rows.labels(self._name, "no").inc(rows - agreed)

    def taken(self, outcome: str, count: int, duplicates: int) -> None:
        """Feedback was taken in: `outcome` is "joined" or "example"."""
        self._feedback.labels(self._name, outcome).inc(count)
        self._feedback.labels(self._name, "duplicate").inc(duplicates)

    def refused(self, code: int, unknown: int) -> None:
        """Feedback was refused with the HTTP status `code`; so many of its requests are unknown."""
        self._feedback.labels(self._name, "refused").inc(code != 404)
        self._feedback.labels(self._name, "unknown").inc(unknown)

    def not_kept(self) -> None:
        """An answer could not be kept for its labels."""
        self._not_kept.labels(self._name).inc()

    def dropped(self) -> None:
        """A request was not shadowed."""
        self._shadow_dropped.labels(self._name).inc()


def pinned_stats(replica: Replica) -> tuple[ReplicaStats, float]:
    """Numbers and staleness of one version; infinite where none is known."""
    try:
        with replica.pin():
            return replica.stats(), replica.staleness_s()
    except NotSynced:
        return replica.stats(), math.inf


class _JoinCollector:
    def __init__(self, model_name: str, labelling: Labelling) -> None:
        self._name, self._labelling = model_name, labelling

    def collect(self) -> Iterator[Metric]:
        stats, names = self._labelling.stats(), ["model_name"]
        waiting = GaugeMetricFamily("evergrad_feedback_waiting", "Requests that wait for their labels", labels=names)
        expired = CounterMetricFamily("evergrad_feedback_expired", "Requests whose labels never came", labels=names)
        dropped = CounterMetricFamily("evergrad_feedback_dropped", "Requests that made room for others", labels=names)
        waiting.add_metric([self._name], stats.waiting)
        expired.add_metric([self._name], stats.expired)
        dropped.add_metric([self._name], stats.dropped)
        yield from (waiting, expired, dropped)


class _WeightsCollector:
    def __init__(self, model_name: str, lanes: Callable[[], Sequence[Tracked]], worker: int | None) -> None:
        self._lanes = lanes
        self._names = ["model_name", "track", *([] if worker is None else ["worker"])]
        self._values = [model_name, *([] if worker is None else [str(worker)])]

    def collect(self) -> Iterator[Metric]:
        names = self._names
        version = GaugeMetricFamily("evergrad_version", "Version of the weights that are served", labels=names)
        stale = GaugeMetricFamily(
            "evergrad_staleness_seconds", "Seconds since the newest example that the weights learned from", labels=names
        )
        apply = SummaryMetricFamily("evergrad_apply_seconds", "Seconds to check and write an update", labels=names)
        counters = {
            "updates": CounterMetricFamily("evergrad_updates", "Updates applied", labels=names),
            "update_bytes": CounterMetricFamily("evergrad_update_bytes", "Bytes of the updates applied", labels=names),
            "snapshots": CounterMetricFamily("evergrad_snapshots", "Snapshots loaded", labels=names),
            "rejects": CounterMetricFamily("evergrad_rejects", "Updates and snapshots refused", labels=names),
        }
        for lane in self._lanes():
            labels = [self._values[0], lane.track, *self._values[1:]]
            stats, staleness_s = pinned_stats(lane.replica)
            if stats.version is not None:
                version.add_metric(labels, stats.version)
            stale.add_metric(labels, staleness_s)
            apply.add_metric(labels, stats.updates, stats.apply_s)
            for name, family in counters.items():
                family.add_metric(labels, getattr(stats, name))
        yield from (version, stale, apply, *counters.values())
