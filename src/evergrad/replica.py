"""A replica: the newest version of a log, in this process, with numpy alone.

    log ──read next version──> check whole (base, schema, bounds, finite, both digests) ──> write in ──> readers

A replica is at one version at any time. An update that is not exactly the next step of exactly this state is never
written in: the replica stays at its last good version, and continues from a later snapshot when there is one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy.typing as npt

from evergrad.errors import CorruptRecord, EvergradError, NotSynced, ReplicaError, UnsupportedFormat
from evergrad.log import UpdateLog, open_log
from evergrad.schema import Schema
from evergrad.update import Snapshot, State

logger = logging.getLogger(__name__)
_MAX_WAIT_S = 1.0
_MIN_WAIT_S = 0.001
_LOOK_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStats:
    """What a replica has done so far.

    Attributes:
        updates, update_bytes: applied.
        snapshots: loaded, the first one included.
        error: the last problem, while it lasts; None: the replica follows.
    """

    version: int | None
    digest: int | None
    newest_us: int
    updates: int
    update_bytes: int
    snapshots: int
    error: EvergradError | None


class Replica:
    """Follows an update log.

    Args:
        log: a URL (see `evergrad.log.open_log`) or an open log.
        clock: seconds since 1970; what staleness is measured against.

    Any thread may read while one thread syncs: readers that need one whole version hold `pin()`.

    Example:
        >>> replica = Replica("memory:nothing")
        >>> replica.sync()
        Traceback (most recent call last):
        evergrad.errors.LogNotFound: no update log at memory:nothing; check the path, or start a publisher there first
    """

    def __init__(self, log: str | UpdateLog, *, clock: Callable[[], float] = time.time) -> None:
        self._source = log
        self._clock = clock
        self._log = log if isinstance(log, UpdateLog) else open_log(log)
        self._lock = threading.RLock()  # held while the state moves, and by readers that pin it
        self._syncing = threading.Lock()
        self._state: State | None = None
        self._version = -1
        self._newest_us = 0
        self._updates = self._update_bytes = self._snapshots = 0
        self._error: EvergradError | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def log(self) -> UpdateLog:
        """The log that it follows."""
        return self._log

    @property
    def schema(self) -> Schema:
        """The model's tensors, as the log names them."""
        return self._log.schema

    @property
    def state(self) -> State:
        """The state itself; only `pin` protects it from the next update.

        Raises:
            NotSynced: no version yet.
        """
        if self._state is None:
            raise NotSynced(self._log.url)
        return self._state

    @property
    def version(self) -> int:
        """The version that this replica holds. Raises NotSynced where there is none yet."""
        return self._version if self.state else -1

    @property
    def digest(self) -> int:
        """The digest of its state, a 64-bit number. Raises NotSynced where there is none yet."""
        return self.state.digest

    @property
    def weights(self) -> Mapping[str, npt.NDArray[Any]]:
        """Read-only views of all tensors by name, tied names included; BF16 as uint16 bits (`schema.widen_bf16`).

        They show each later version as it is applied; `pin()` holds a version still, a copy keeps it.

        Raises:
            NotSynced: no version yet.
        """
        return self.state.tensors()

    def staleness_s(self) -> float:
        """Seconds since the arrival of the newest example that this model learned from; infinite: none is known."""
        with self._lock:
            return self._clock() - self._newest_us / 1e6 if self._newest_us else float("inf")

    @contextmanager
    def pin(self) -> Iterator[int]:
        """Holds one version still: no update is written in until the block ends. Gives that version.

        Raises:
            NotSynced: no version yet.
        """
        with self._lock:
            yield self.version

    def stats(self) -> ReplicaStats:
        """One consistent set of numbers about this replica."""
        with self._lock:
            return ReplicaStats(
                version=self._version if self._state else None,
                digest=self._state.digest if self._state else None,
                newest_us=self._newest_us,
                updates=self._updates,
                update_bytes=self._update_bytes,
                snapshots=self._snapshots,
                error=self._error,
            )

    def sync(self) -> int:
        """Applies everything that the log holds; gives the version reached.

        Where the next update is lost or cannot be applied, it continues from the newest later snapshot.

        Raises:
            LogNotFound, LogUnavailable: the log cannot be read.
            NotSynced: the log has been begun, and holds no snapshot yet.
            CorruptRecord, UnsupportedFormat, DigestMismatch, BaseMismatch: the next update cannot be applied and no
                later snapshot can replace it. The replica stays at its last good version; a later `sync` tries again.
        """
        return self._sync(look=True)

    def _sync(self, *, look: bool) -> int:
        with self._syncing:
            try:
                if self._state is None:
                    self._load_snapshot(after=-1)
                while self._step() or (look and self._skip_lost()):
                    pass
            except EvergradError as error:
                self._error = error
                raise
            self._error = None
            return self._version

    def _step(self) -> bool:
        try:
            found = self._log.read(self._version + 1)
            if found is None:
                return False
            update, size = found
            change = self.state.check(update, self._version)
        except (CorruptRecord, UnsupportedFormat, ReplicaError) as error:
            logger.warning("version %d: %s", self._version + 1, error)
            self._load_snapshot(after=self._version, cause=error)
            return True
        with self._lock:
            self.state.commit(change)
            self._version = update.version
            self._newest_us = max(self._newest_us, update.newest_us)
            self._updates += 1
            self._update_bytes += size
        return True

    def _skip_lost(self) -> bool:
        # No next update is the end of the log, unless the log has a later snapshot: then that update is lost.
        if not any(version > self._version for version in self._log.snapshots()):
            return False
        if not self._step():  # it was not written between the two looks either
            logger.warning("version %d is missing from %s", self._version + 1, self._log.url)
            self._load_snapshot(after=self._version)
        return True

    def _load_snapshot(self, *, after: int, cause: EvergradError | None = None) -> None:
        for version in reversed(self._readable_snapshots(after)):
            try:
                snapshot = self._log.read_snapshot(version)
            except CorruptRecord as error:
                logger.warning("%s", error)
                cause = cause or error
                continue
            self._adopt(snapshot)
            return
        raise cause or NotSynced(self._log.url)

    def _readable_snapshots(self, after: int) -> list[int]:
        if not self._log.begun() and isinstance(self._source, str):
            self._log = open_log(self._source)  # the place may have come into being since
        _ = self._log.schema
        return [version for version in self._log.snapshots() if version > after]

    def _adopt(self, snapshot: Snapshot) -> None:
        with self._lock:
            if self._state is None:
                self._state = snapshot.state
            else:  # into the same memory, so that every view and every attached module follows
                for mine, new in zip(self._state.arrays, snapshot.state.arrays, strict=True):
                    mine[:] = new
                self._state.digest = snapshot.state.digest
            self._version = snapshot.version
            self._newest_us = snapshot.newest_us
            self._snapshots += 1

    def follow(self, *, poll_s: float = 0.01) -> Replica:
        """Keeps itself fresh in a background thread until `close`; gives itself.

        The thread never ends on an error: the replica stays at its last good version, tells the error once in the log
        and in `stats()`, and tries again at longer and longer intervals, up to a second.

        Args:
            poll_s: seconds between two looks at a log that has nothing new.
        """
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._follow, args=(poll_s,), name="evergrad-replica", daemon=True)
            self._thread.start()
        return self

    def _follow(self, poll_s: float) -> None:
        first_s = max(poll_s, _MIN_WAIT_S)
        wait_s, told, unlooked_s = first_s, "", _LOOK_S
        while not self._stop.is_set():
            look = unlooked_s >= _LOOK_S  # listing costs much more than asking for the next name
            try:
                self._sync(look=look)
                wait_s, told = first_s, ""
            except EvergradError as error:
                if str(error) != told:
                    logger.warning("keeping version %d: %s", self._version, error)
                told, wait_s = str(error), max(first_s, min(2 * wait_s, _MAX_WAIT_S))
            unlooked_s = wait_s if look else unlooked_s + wait_s
            self._stop.wait(wait_s)

    def close(self) -> None:
        """Ends `follow`; the last version stays readable."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
