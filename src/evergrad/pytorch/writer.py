"""Puts what has moved into the log: at once, or on a thread of its own while training goes on.

    publish ──> queue of at most `MOST_WAITING` runs ──> thread: encode, append, folds

A queue that is full folds what comes into its last run; a log that is down folds all that waits into one. Nothing is
lost, and memory stays bounded (see `pending`). Snapshots, and the long folds that are made beside the whole state, are
always written by the caller, with the queue empty: they need the state of the very version.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from evergrad.codec import encode
from evergrad.codec.rice import WriteRice, write_rice
from evergrad.errors import ConfigError, LogUnavailable, WeightsChanged
from evergrad.log import UpdateLog
from evergrad.pytorch.mover import COMPILED
from evergrad.pytorch.pending import Pending
from evergrad.pytorch.stats import PublisherStats
from evergrad.schema import Schema
from evergrad.update import Section, Snapshot, State, Update, digest, short_fingerprint

logger = logging.getLogger(__name__)
MOST_WAITING = 16
_FIRST_RETRY_S = 0.1
_LAST_RETRY_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One published update: its version, its bytes in the log, and how many element moves it holds."""

    version: int
    update_bytes: int
    elements: int


@dataclass(slots=True)
class Written:
    """What a writer has written so far, and how long that took, seconds in all."""

    updates: int = 0
    update_bytes: int = 0
    snapshot_bytes: int = 0
    encode_s: float = 0.0
    append_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """When a snapshot is due, and what is deleted after it: see `Publisher`."""

    snapshot_every: int
    snapshot_every_bytes: int | None
    keep_versions: int | None

    def __post_init__(self) -> None:
        if self.snapshot_every < 1:
            raise ConfigError("snapshot_every", f"must be 1 or more, not {self.snapshot_every}")
        if self.snapshot_every_bytes is not None and self.snapshot_every_bytes < 1:
            raise ConfigError("snapshot_every_bytes", f"must be 1 or more, not {self.snapshot_every_bytes}")
        if self.keep_versions is not None and self.keep_versions < 0:
            raise ConfigError("keep_versions", f"must be 0 or more, not {self.keep_versions}")


@dataclass(slots=True)
class Head:
    """Where a log ends, and the newest snapshot in it."""

    version: int
    digest: int
    newest_us: int = 0
    snapshot: int = -1
    bytes_since_snapshot: int = 0

    def next_update(
        self,
        run: int,
        schema: Schema,
        before: int,
        after: int,
        sections: tuple[Section, ...] = (),
        examples: range | None = None,
    ) -> Update:
        """The update that leads one version further, from the digest `before` to `after`."""
        return Update(
            base_version=self.version,
            version=self.version + 1,
            run=run,
            schema=short_fingerprint(schema),
            digest_before=before,
            digest_after=after,
            newest_us=self.newest_us,
            sections=sections,
            examples=examples,
        )


class Writer:
    """The one who appends to a log.

    Args:
        state: the deployed copy; read by the caller's thread alone.
        head: where the log ends.
        run: 64 random bits that name this writer.
        background: a thread writes updates.
        on_published: a method that is called with each update that is in the log, and how many moves it carries
            (`Pending.moved`), on the thread that wrote it, as long as its object is there: no thread keeps that.
        check: called before each snapshot; raises where what the caller shows as deployed is not the state.
    """

    def __init__(
        self,
        log: UpdateLog,
        state: State,
        head: Head,
        run: int,
        keeping: Keeping,
        *,
        background: bool,
        on_published: Callable[[Published, int], None],
        check: Callable[[], None],
    ) -> None:
        self._log, self._state, self.head, self._run, self._keeping = log, state, head, run, keeping
        self._on_published, self._check = weakref.WeakMethod(on_published), check
        self.written = Written()
        self._rice = fastest_rice()
        self.failure: Exception | None = None
        self._unsent: tuple[Update, bytes, int] | None = None
        self._waiting: deque[Pending] = deque()
        self._busy = self._closing = False
        self._caller_writes = False
        self._lost_at = -1
        self._next_try_s = 0.0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        if background:
            self._thread = threading.Thread(target=self._work, name="evergrad-writer", daemon=True)
            self._thread.start()

    @property
    def waiting(self) -> int:
        """How many runs are not in the log yet."""
        with self._changed:
            return len(self._waiting) + (self._busy or self._unsent is not None)

    def stats(self, *, select_s: float, full_push_bytes: int) -> PublisherStats:
        """What has been written, beside what only the publisher knows."""
        return PublisherStats(
            version=self.head.version, digest=self.head.digest, **asdict(self.written), select_s=select_s,
            full_push_bytes=full_push_bytes, waiting=self.waiting,
            unavailable=None if self.failure is None else str(self.failure),
        )  # fmt: skip

    def position(self) -> dict[str, Any]:
        """Where the log ends, for a checkpoint; `head` is None where a thread or a failure leaves that open."""
        is_open = self._thread is not None or self.waiting
        head, written = None if is_open else asdict(self.head), asdict(self.written)
        return {"id": self._log.id, "run": self._run, "head": head, "written": written, "lost_at": self._lost_at}

    def go_on_from(self, at: Mapping[str, Any]) -> None:
        """Takes over what `position` gave."""
        self.head, self.written, self._lost_at = Head(**at["head"]), Written(**at["written"]), at["lost_at"]

    # -- the caller's side ------------------------------------------------------------------------------------------

    def publish(self, run: Pending) -> Published | None:
        """Hands over a run, which may be empty, and leads to the state as it is; gives what this very call wrote last.

        Raises:
            WriterConflict: now, or earlier on the thread. LogUnavailable: without a thread; the run waits.
        """
        self._raise_conflict()
        if self._thread is None:
            self._enqueue(run)
            return self._write_beside_state()
        if not self._needs_state(bool(run)) or time.monotonic() < self._next_try_s:
            self._enqueue(run)
            return None
        try:
            self.flush()
            self._caller_writes = True
            self._enqueue(run)
            return self._write_beside_state()
        except LogUnavailable as error:
            if not self._caller_writes:
                self._enqueue(run)
            self._next_try_s = time.monotonic() + _LAST_RETRY_S
            logger.warning("%s; training goes on, and a snapshot is tried again later", error)
            return None
        finally:
            with self._changed:
                self._caller_writes = False
                self._changed.notify_all()

    def _enqueue(self, run: Pending) -> None:
        if not run:
            return
        with self._changed:
            if self._waiting and (self._thread is None or len(self._waiting) >= MOST_WAITING):
                self._waiting[-1].extend(run)
            else:
                self._waiting.append(run)
            self._changed.notify_all()

    def _needs_state(self, more: bool) -> bool:
        with self._changed:
            upcoming = self.head.version + self.waiting + more
            lost = any(run.lost for run in self._waiting)
        return lost or self._snapshot_due(upcoming) or (more and self._is_long_fold(upcoming))

    def _is_long_fold(self, version: int) -> bool:
        return version % self._log.fold_base**2 == 0

    def _write_beside_state(self) -> Published | None:
        published = self._write_all(beside_state=True)
        if self._snapshot_due(self.head.version):
            self.write_snapshot()
        return published

    def flush(self) -> None:
        """Returns when all that was handed over is in the log, but for runs that are lost (see `pending`).

        Raises:
            WriterConflict, LogUnavailable: it is not, and waits.
        """
        if self._thread is None:
            self._write_all(beside_state=False)
            return
        with self._changed:
            if isinstance(self.failure, LogUnavailable):
                self.failure = None
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.failure is not None or not (self._has_work() or self._busy))
            if self.failure is not None:
                raise self.failure

    def _has_work(self) -> bool:
        if self._caller_writes:
            return False
        return self._unsent is not None or (bool(self._waiting) and not self._waiting[0].lost)

    def _raise_conflict(self) -> None:
        if self.failure is not None and not isinstance(self.failure, LogUnavailable):
            raise self.failure

    def close(self) -> None:
        """Ends the thread. What it has not written waits for ever; `flush` comes first."""
        self.end_soon()
        if self._thread is not None:
            self._thread.join()

    def end_soon(self) -> None:
        """As `close`, and waits for nothing: for a publisher that nobody closed."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    # -- the thread -------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        retry_s = _FIRST_RETRY_S
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._has_work())
                if self._closing:
                    return
            try:
                self._write_all(beside_state=False)
                retry_s = _FIRST_RETRY_S
            except LogUnavailable as error:
                logger.warning("%s; training goes on, and what moves is folded until the log is back", error)
                self._wait_for_log(error, retry_s)
                retry_s = min(2 * retry_s, _LAST_RETRY_S)
            except Exception as error:  # the caller hears of it at its next call
                self._fail(error)
                return

    def _wait_for_log(self, error: LogUnavailable, retry_s: float) -> None:
        self._fail(error)
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self.failure is None, timeout=retry_s)
            while len(self._waiting) > 1:
                last = self._waiting.pop()
                self._waiting[-1].extend(last)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self.failure = error
            self._changed.notify_all()

    # -- writing ----------------------------------------------------------------------------------------------------

    def _write_all(self, *, beside_state: bool) -> Published | None:
        # A store that failed may have stored: the very update that it failed on goes first, or it would be our rival.
        published = self._append(beside_state) if self._unsent is not None else None
        while True:
            with self._changed:
                if not self._waiting or (self._waiting[0].lost and not beside_state):
                    self.failure = None
                    self._changed.notify_all()
                    return published
                while self._waiting[0].lost and len(self._waiting) > 1:
                    self._waiting[0].extend(self._waiting[1])
                    del self._waiting[1]
                run = self._waiting.popleft()
                self._busy = True
            try:
                published = self._write(run, beside_state)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _write(self, run: Pending, beside_state: bool) -> Published:
        begun = time.perf_counter()
        # An update that fits no state sends every reader to the snapshot of the same version.
        before, sections = (run.digest_after, ()) if run.lost else (run.digest_before, run.smallest())
        self.head.newest_us = max(self.head.newest_us, run.newest_us)
        schema, after = self._state.schema, run.digest_after
        update = self.head.next_update(self._run, schema, before, after, sections, run.examples)
        self._unsent = update, encode(update, self._rice), run.moved
        self._lost_at = update.version if run.lost else self._lost_at
        self.written.encode_s += time.perf_counter() - begun
        return self._append(beside_state)

    def _append(self, beside_state: bool) -> Published:
        if self._unsent is None:
            raise RuntimeError("nothing is to be appended")
        (update, data, moved), begun = self._unsent, time.perf_counter()
        size = self._log.append(update, data)
        self._unsent, head, written = None, self.head, self.written
        head.version, head.digest = update.version, update.digest_after
        head.bytes_since_snapshot += size
        written.updates, written.update_bytes = written.updates + 1, written.update_bytes + size
        try:
            whole = beside_state and self._state.digest == update.digest_after
            self._log.write_folds(update.version, self._state if whole else None)
        except LogUnavailable as error:  # readers do without: they take the updates
            logger.warning("no fold was written at version %d: %s", update.version, error)
        written.append_s += time.perf_counter() - begun
        published = Published(version=update.version, update_bytes=size, elements=update.elements)
        on_published = self._on_published()
        if on_published is not None:
            on_published(published, moved)
        return published

    # -- snapshots --------------------------------------------------------------------------------------------------

    def _snapshot_due(self, version: int) -> bool:
        head, keeping = self.head, self._keeping
        spans = version // keeping.snapshot_every > head.snapshot // keeping.snapshot_every
        most = self._state.schema.nbytes if keeping.snapshot_every_bytes is None else keeping.snapshot_every_bytes
        grown = version > head.snapshot and head.bytes_since_snapshot >= most
        return spans or grown or head.snapshot < self._lost_at

    def write_snapshot(self) -> None:
        """Writes the state, which is that of the head, and deletes what nobody needs any more.

        Raises:
            WeightsChanged: the state, or a copy of it, is not what it should be. LogUnavailable: the store failed.
        """
        # The one place that reads every element: writes that no version counter saw (`p.data.mul_`) are found here.
        if digest(self._state.schema, self._state.arrays) != self._state.digest:
            raise WeightsChanged("a parameter")
        self._check()
        head = self.head
        snapshot = Snapshot(version=head.version, run=self._run, newest_us=head.newest_us, state=self._state)
        self.written.snapshot_bytes += self._log.write_snapshot(snapshot)
        head.snapshot, head.bytes_since_snapshot = head.version, 0
        if self._keeping.keep_versions is not None:
            try:
                self._log.prune(self._keeping.keep_versions, head.version)
            except LogUnavailable as error:  # what is left is deleted after the next snapshot
                logger.warning("old versions were not all deleted: %s", error)


def fastest_rice() -> WriteRice:
    """What writes Rice codes in this process: compiled code where numba is."""
    if not COMPILED:
        return write_rice
    from evergrad.pytorch import coding

    return coding.write_rice
