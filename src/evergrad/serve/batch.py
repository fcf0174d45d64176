"""Micro-batches: requests that wait at the same time are computed at once, in one thread.

    requests ──> queue ──take all that fit together──> compute ──cut into rows──> answers

Who comes alone never waits. While a batch is computed, others queue up and make the next one; where the last batch held
several requests, their clients are likely to ask again, and the thread waits for as many, a few milliseconds at most.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import numpy as np

from evergrad.errors import ConfigError
from evergrad.serve.tensors import Array

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batching:
    """How requests are put together.

    The rows of a batch must not depend on each other, as in evaluation mode. Their last bits may: a matrix product of
    eight rows need not add up in the order of one of one row. `rows=1` computes every request alone.

    Attributes:
        rows: most rows of a batch; a request with more is a batch of its own.
        delay_s: longest time to wait for more requests.

    Raises:
        ConfigError: a value out of range.
    """

    rows: int = 32
    delay_s: float = 0.002

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ConfigError("rows", f"must be 1 or more, not {self.rows}")
        if not 0 <= self.delay_s <= 1:
            raise ConfigError("delay_s", f"must lie in 0 to 1 second, not {self.delay_s}")


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """Outputs, and the model that computed them all."""

    outputs: Array
    version: int
    digest: int
    staleness_s: float


@dataclass(slots=True, eq=False)
class _Job:
    x: Array
    version: int | None
    future: Future[Computed] = field(default_factory=Future)

    @property
    def rows(self) -> int:
        return len(self.x) if self.x.ndim else 0

    def fits(self, other: _Job) -> bool:
        mine, its = self.x, other.x
        alike = mine.ndim and its.ndim and (mine.dtype, mine.shape[1:]) == (its.dtype, its.shape[1:])
        return bool(alike) and self.version == other.version


class Batcher:
    """The thread that computes.

    Args:
        compute: gives the outputs of a batch by a version; None: the newest.
        observe: told of each batch: its requests and rows.
    """

    def __init__(
        self,
        compute: Callable[[Array, int | None], Computed],
        batching: Batching,
        observe: Callable[[int, int], None],
    ) -> None:
        self._compute, self._observe, self._delay_s = compute, observe, batching.delay_s
        self._rows = batching.rows
        self._jobs: deque[_Job] = deque()
        self._condition = threading.Condition()
        self._closed, self._expected = False, 1
        self._thread = threading.Thread(target=self._run, name="evergrad-predict", daemon=True)
        self._thread.start()

    def submit(self, x: Array, version: int | None = None) -> Future[Computed]:
        """The outputs for `x`, to come; with the error of `compute`, where there was one."""
        job = _Job(x, version)
        with self._condition:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            self._jobs.append(job)
            self._condition.notify_all()
        return job.future

    def __len__(self) -> int:
        """How many requests wait."""
        return len(self._jobs)

    def close(self) -> None:
        """Ends the thread after all that waits is computed."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while jobs := self._take():
            live = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if live:
                self._answer(live)

    def _take(self) -> list[_Job]:
        with self._condition:
            self._condition.wait_for(lambda: self._jobs or self._closed)
            if not self._jobs:
                return []
            if self._expected > 1 and self._rows > 1:
                self._condition.wait_for(self._enough, self._delay_s)
            taken = self._together()
            for job in taken:
                self._jobs.remove(job)
            self._expected = len(taken)
            return taken

    def _enough(self) -> bool:
        return self._closed or len(self._jobs) >= self._expected

    def _together(self) -> list[_Job]:
        first = self._jobs[0]
        taken, rows = [first], first.rows
        for job in list(self._jobs)[1:]:
            if rows + job.rows > self._rows:
                break
            if job.fits(first):
                taken.append(job)
                rows += job.rows
        return taken

    def _answer(self, jobs: list[_Job]) -> None:
        if len(jobs) > 1 and self._answer_together(jobs):
            return
        for job in jobs:
            self._observe(1, job.rows)
            try:
                job.future.set_result(self._compute(job.x, job.version))
            except BaseException as error:  # whatever it is, it belongs to who asked; the thread goes on
                job.future.set_exception(error)

    def _answer_together(self, jobs: list[_Job]) -> bool:
        x = np.concatenate([job.x for job in jobs])
        try:
            found = self._compute(x, jobs[0].version)
        except Exception:  # one request's fault must not be another's: each is computed alone
            return False
        if not found.outputs.ndim or len(found.outputs) != len(x):
            logger.warning("the model's outputs have no row for each of the batch's; requests are computed one by one")
            self._rows = 1
            return False
        self._observe(len(jobs), len(x))
        cuts = np.cumsum([job.rows for job in jobs])[:-1]
        for job, outputs in zip(jobs, np.split(found.outputs, cuts), strict=True):
            job.future.set_result(replace(found, outputs=outputs))
        return True
