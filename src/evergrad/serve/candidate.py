"""A second model beside the served one: a canary answers a share of the requests, a shadow is only compared."""

from __future__ import annotations

import random
from concurrent.futures import Future

import numpy as np
import xxhash

from evergrad.serve.batch import Computed
from evergrad.serve.lane import Lane
from evergrad.serve.metrics import Metrics
from evergrad.serve.servable import Candidate
from evergrad.serve.tensors import Array

_MOST_WAITING = 64


class Trial:
    """A candidate at work."""

    def __init__(self, lane: Lane, candidate: Candidate, metrics: Metrics) -> None:
        self.lane, self.share, self.shadow = lane, candidate.share, candidate.shadow
        self._metrics = metrics
        self._random = random.Random()  # noqa: S311 - it spreads load, nothing else

    def answers(self, request_id: str | None) -> bool:
        """Whether the candidate is to answer; requests with one id always go the same way."""
        return not self.shadow and self.lane.version is not None and self._in_share(request_id)

    def _in_share(self, request_id: str | None) -> bool:
        if request_id:
            return xxhash.xxh64_intdigest(request_id.encode()) < self.share * 2.0**64
        return self._random.random() < self.share

    def compare(self, request_id: str | None, x: Array, answer: Computed) -> None:
        """Lets a shadow compute what was answered, unless it has too much to do already."""
        if not self.shadow or self.lane.version is None or not self._in_share(request_id):
            return
        if self.lane.waiting >= _MOST_WAITING:
            self._metrics.dropped()
            return
        self.lane.submit(x).add_done_callback(lambda done: self._count(done, answer))

    def _count(self, done: Future[Computed], answer: Computed) -> None:
        error = done.exception()
        self._metrics.answered(self.lane.track, 500 if error else 200, 0.0)
        if error is None:
            self._metrics.shadowed(*agreeing_rows(answer.outputs, done.result().outputs))


def agreeing_rows(outputs: Array, others: Array) -> tuple[int, int]:
    """How many rows say the same, and how many there are: the same class, where there are columns; else equal values.

    >>> agreeing_rows(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([[0.4, 0.6], [0.3, 0.7]]))
    (1, 2)
    """
    rows = len(outputs) if outputs.ndim else 1
    if outputs.shape != others.shape:
        return 0, rows
    if outputs.ndim >= 2 and outputs.shape[-1] > 1:
        same = outputs.argmax(-1) == others.argmax(-1)
        return int(same.reshape(rows, -1).all(axis=1).sum()), rows
    return int(np.isclose(outputs, others).reshape(rows, -1).all(axis=1).sum()), rows
