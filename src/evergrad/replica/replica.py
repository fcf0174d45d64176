"""A replica: the newest version of a log, in this process, with numpy alone.

    log ──read next version──> check whole (base, schema, bounds, finite, both digests) ──> write in ──> readers
                                                                                      └──> undo ring ──> rollback

A replica is at one version at any time. An update that is not exactly the next step of exactly this state is never
written in: the replica stays at its last good version, and continues from a later snapshot when there is one.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import RLock, get_ident
from typing import Any, Self

import numpy.typing as npt

from evergrad.errors import (
    CorruptRecord,
    EvergradError,
    NotSynced,
    ReplicaError,
    SchemaMismatch,
    UnsupportedFormat,
    VersionNotHeld,
)
from evergrad.log import UpdateLog, open_log
from evergrad.replica.cache import Cache, rewound
from evergrad.replica.facts import ANOTHER_MODEL, Applied, Listeners, ReplicaStats
from evergrad.replica.follow import Follower
from evergrad.replica.lock import FairLock, ReadWriteLock
from evergrad.replica.undo import UndoRing
from evergrad.replica.walk import Walk
from evergrad.schema import Schema
from evergrad.update import Change, Snapshot, State, Update

logger = logging.getLogger(__name__)
_UNREADABLE = (CorruptRecord, UnsupportedFormat, ReplicaError)


class Replica:
    """Follows an update log.

    Any thread may read while one thread syncs: readers that need one whole version hold `pin()`.

    It needs memory for the model, the undo ring, and at most 32 MB for updates of up to half a million elements.

    Args:
        log: a URL (see `evergrad.log.open_log`) or an open log.
        cache: a directory of its own in which it keeps its state, at most every `cache_every_s` seconds and on `close`;
            a restarted replica continues from there, even where the log cannot be reached.
        undo_bytes: most memory for the undo ring; a float32 element that moved takes 8.
        clock: seconds since 1970; what staleness is measured against.

    Example:
        >>> replica = Replica("memory:nothing")
        >>> replica.sync()
        Traceback (most recent call last):
        evergrad.errors.LogNotFound: no update log at memory:nothing; check the path, or start a publisher there first
    """

    def __init__(
        self,
        log: str | UpdateLog,
        *,
        cache: str | Path | None = None,
        cache_every_s: float = 60.0,
        undo_bytes: int = 16 << 20,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._source, self._clock = log, clock
        self._log = log if isinstance(log, UpdateLog) else open_log(log)
        self._lock = ReadWriteLock()  # written under inside `_syncing` only
        self._syncing = RLock()
        self._moving = FairLock()  # from an update's check to its commit; never held while the log is read
        self._state: State | None = None
        self._version = -1
        self._newest_us = 0
        self._looking: tuple[int, int, int] | None = None  # thread, version, newest_us, while `at` shows them to it
        self._updates = self._update_bytes = self._snapshots = self._rollbacks = self._rejects = 0
        self._apply_s = 0.0
        self._held = False
        self._undo = UndoRing(undo_bytes)
        self._listeners = Listeners()
        self._error: EvergradError | None = None
        self._follower: Follower | None = None
        self._log_id, self._from_cache = "", False
        self._cache = Cache(Path(cache)) if cache is not None else None
        self._cache_every_s, self._cached_s, self._cached_version = cache_every_s, clock(), -1
        if self._cache is not None:
            self._load_cache(self._cache)

    @property
    def log(self) -> UpdateLog:
        """The log that it follows."""
        return self._log

    @property
    def schema(self) -> Schema:
        """The model's tensors, as the log names them."""
        return self._log.schema if self._state is None else self._state.schema

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
        return self._here()[0] if self.state else -1

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
        newest_us = self._here()[1]
        return self._clock() - newest_us / 1e6 if newest_us else float("inf")

    @contextmanager
    def pin(self) -> Iterator[int]:
        """Holds one version still: no update is written in until the block ends. Gives that version.

        Any number of threads may pin at once, and inside another pin. Inside, `sync` and `rollback` raise RuntimeError.

        Raises:
            NotSynced: no version yet.
        """
        with self._lock.shared():
            yield self.version

    def on_update(self, callback: Callable[[Applied], None]) -> Callable[[], None]:
        """Calls `callback` after each move to another version, before any reader sees it; gives what ends that.

        It runs in the thread that syncs, while all readers wait: keep it short. An exception in it is logged, and stops
        neither the replica nor the other callbacks.
        """
        return self._listeners.add(callback)

    def stats(self) -> ReplicaStats:
        """One consistent set of numbers about this replica."""
        with self._lock.shared():
            version, newest_us = self._here()
            return ReplicaStats(
                version=version if self._state else None,
                digest=self._state.digest if self._state else None,
                newest_us=newest_us,
                updates=self._updates,
                update_bytes=self._update_bytes,
                apply_s=self._apply_s,
                rejects=self._rejects,
                snapshots=self._snapshots,
                rollbacks=self._rollbacks,
                held=self._held,
                undo_bytes=self._undo.nbytes,
                error=self._error,
            )

    # -- forwards -----------------------------------------------------------------------------------------------------

    def sync(self) -> int:
        """Applies everything that the log holds; gives the version reached. After a `rollback` it does nothing.

        Where the next update is lost or cannot be applied, it continues from the newest later snapshot; where the log
        was begun anew, from that one's.

        Raises:
            SchemaMismatch: the log goes on with another model, whose tensors differ. The replica stays at its last good
                version for ever: make a new one.
            LogNotFound, LogUnavailable: the log cannot be read.
            NotSynced: the log has been begun, and holds no snapshot yet.
            CorruptRecord, UnsupportedFormat, DigestMismatch, BaseMismatch: the next update cannot be applied and no
                later snapshot can replace it. The replica stays at its last good version; a later `sync` tries again.
        """
        return self._sync(look=True)

    def _sync(self, look: bool) -> int:
        self._lock.require_outside()
        with self._syncing:
            if self._held:
                return self._version
            try:
                self._catch_up(look)
            except EvergradError as error:
                self._error = error
                raise
            self._error = None
            if self._cache is not None and self._clock() - self._cached_s >= self._cache_every_s:
                self._save_cache(self._cache)
            return self._version

    def _catch_up(self, look: bool) -> None:
        if self._state is None:
            self._load_snapshot(after=-1)
        walk = Walk(self.state.schema.nbytes)
        try:
            newest = self._newest_snapshot() if look or self._from_cache else -1
        except SchemaMismatch:  # what was published before the model changed is still for this replica
            with contextlib.suppress(*_UNREADABLE):
                while self._step(walk):
                    pass
            raise
        if self._from_cache:
            self._check_against_log(newest)
        while True:
            if walk.costs_more_than_snapshot(self._version, newest):
                walk.forget_snapshot()
                self._try_shortcut()
            elif self._step(walk):
                continue
            elif newest <= self._version:
                return
            # No next update is the end of the log, unless the log has a later snapshot: then that update is lost or
            # deleted; or it was written between the two looks.
            elif not self._step(walk):
                logger.info("version %d is missing from %s", self._version + 1, self._log.url)
                self._load_snapshot(after=self._version)

    def _try_shortcut(self) -> None:
        try:
            self._load_snapshot(after=self._version)
        except (CorruptRecord, NotSynced) as error:
            logger.info("%s; going on update by update", error)

    def _newest_snapshot(self) -> int:
        """What `latest.json` points at, which an update that is lost or deleted does not hide; -1 where it is not."""
        latest = self._log.latest()
        if latest is None or (latest.log != self._log_id and not self._begin_anew(latest.log)):
            return -1
        return latest.snapshot

    def _begin_anew(self, log_id: str) -> bool:
        """Goes over to the log that has taken the place of the one before, if that is so."""
        fresh = open_log(self._source) if isinstance(self._source, str) else UpdateLog(self._log.store, self._log.url)
        if fresh.id != log_id:
            return False
        try:
            fresh.schema.require(self.schema)
        except SchemaMismatch as error:
            raise SchemaMismatch(error.tensor, error.expected, error.found, ANOTHER_MODEL) from None
        logger.warning("%s was begun anew; version %d is given up", self._log.url, self._version)
        self._log = fresh
        self._load_snapshot(after=-1)
        self._from_cache = False
        return True

    def _check_against_log(self, newest: int) -> None:
        # A log may have been taken back to an older copy of itself while this replica was away.
        try:
            found = self._log.read(self._version)
            with self._moving:
                digest = self.digest
            elsewhere = newest < self._version if found is None else found[0].digest_after != digest
        except _UNREADABLE:
            elsewhere = False  # it tells nothing; the update after it tells the digest that it starts from
        if elsewhere:
            logger.warning("%s does not lead to the cached version %d", self._log.url, self._version)
            self._load_snapshot(after=-1)
        self._from_cache = False

    def _step(self, walk: Walk) -> bool:
        for last in walk.spans(self._version, self._log.fold_base):
            try:
                found = self._log.read_fold(self._version, last)
                if found is not None:
                    self._apply(*found, walk)
                    return True
            except _UNREADABLE as error:
                self._rejects += 1
                logger.warning("%s; its updates are tried one by one", error)
        walk.missed(self._version)
        try:
            found = self._log.read(self._version + 1)
            if found is None:
                return False
            self._apply(*found, walk)
        except _UNREADABLE as error:
            self._rejects += 1
            logger.warning("version %d: %s", self._version + 1, error)
            self._load_snapshot(after=self._version, cause=error)
        return True

    def _apply(self, update: Update, size: int, walk: Walk) -> None:
        started_s = time.perf_counter()
        with self._moving:
            before, newest_us = self._version, self._newest_us
            change = self.state.check(update, before)
            walk.add(update.version - before, size)
            with self._lock.exclusive():
                self.state.commit(change)
                self._version = update.version
                self._newest_us = update.newest_us or newest_us  # a log that was rolled back goes back in this too
                self._updates += 1
                self._update_bytes += size
                self._undo.push(before, newest_us, change)
                self._tell(change)
        self._apply_s += time.perf_counter() - started_s

    def _tell(self, change: Change | None) -> None:
        touched = None if change is None else tuple((part.group, part.positions) for part in change.parts)
        self._listeners.tell(Applied(version=self._here()[0], digest=self.state.digest, touched=touched))

    # -- snapshots ----------------------------------------------------------------------------------------------------

    def _load_snapshot(self, *, after: int, cause: EvergradError | None = None) -> None:
        if self._state is None:
            self._log.reread()  # for it may have been opened long ago
        if not self._log.begun() and isinstance(self._source, str):
            self._log = open_log(self._source)  # the place may have come into being since
        _ = self._log.schema
        for version in self._log.begin_versions(after):
            try:
                self._adopt(version)
            except CorruptRecord as error:
                self._rejects += 1
                logger.warning("%s", error)
                cause = cause or error
                continue
            self._log_id = self._log.id
            return
        if self._state is None:
            self._log.reread()
        raise cause or NotSynced(self._log.url)

    def _adopt(self, version: int) -> None:
        if self._state is None:
            snapshot = self._log.read_snapshot(version)
            with self._lock.exclusive():
                self._state, self._version, self._newest_us = snapshot.state, version, snapshot.newest_us
                self._snapshots += 1
                self._tell(None)
            return
        # Checked on disk before the first element changes, then copied into the same memory, so that every view and
        # every attached module follows, and no second model stands in memory.
        with tempfile.TemporaryFile() as file:
            for chunk in self._log.snapshot_chunks(version):
                file.write(chunk)
            info = self._log.snapshot_reader(rewound(file), version).check()
            with self._moving, self._lock.exclusive():
                self._log.snapshot_reader(rewound(file), version).fill(self._state.arrays)
                self._state.digest, self._version, self._newest_us = info.digest, version, info.newest_us
                self._snapshots += 1
                self._undo.clear()
                self._tell(None)

    # -- backwards ----------------------------------------------------------------------------------------------------

    def rollback(self, to: int) -> int:
        """Goes back to version `to` and stays there until `resume`; gives the version. Costs what changed since.

        Raises:
            VersionNotHeld: the undo ring does not reach back to it. Nothing was changed.
            NotSynced: no version yet.
        """
        self._lock.require_outside()
        with self._syncing:
            if to != self.version and to not in self._undo.versions:
                raise VersionNotHeld(to, [*self._undo.versions, self._version])
            with self._moving, self._lock.exclusive():
                while self._version != to:
                    undo = self._undo.pop()
                    change = undo.change(self.state)
                    self.state.commit(change)
                    self._version, self._newest_us = undo.version, undo.newest_us
                    self._tell(change)
                self._held = True
                self._rollbacks += 1
            return to

    @property
    def versions(self) -> list[int]:
        """The versions that `at` and `rollback` can go to, ascending: the undo ring's, and the one that it holds."""
        with self._lock.shared():
            return [*self._undo.versions, *([] if self._state is None else [self._version])]

    @contextmanager
    def at(self, version: int) -> Iterator[int]:
        """Holds `version` for a moment: inside, this thread reads it, and all others wait. Gives that version.

        The elements that have changed since are taken back, and written again at the end, so it costs what changed
        since, twice, and no memory but for those. Callbacks of `on_update` are told of each move.

        Raises:
            VersionNotHeld: the undo ring does not reach back to it. NotSynced: no version yet.
        """
        self._lock.require_outside()
        with self._moving:
            head = self.version
            undos = self._undo.since(version) if version != head else []
            if not undos and version != head:
                raise VersionNotHeld(version, self.versions)
            with self._lock.exclusive():
                again: list[tuple[tuple[int, int], Change]] = []
                try:
                    for undo in undos:
                        change = undo.change(self.state)
                        again.append((self._here(), change.inverse()))
                        self._look(change, undo.version, undo.newest_us)
                    yield version
                finally:
                    for there, change in reversed(again):
                        self._look(change, *there)
                    self._looking = None

    def _look(self, change: Change, version: int, newest_us: int) -> None:
        self.state.commit(change)
        self._looking = (get_ident(), version, newest_us)
        self._tell(change)

    def _here(self) -> tuple[int, int]:
        """Version and time of the newest example as this thread sees them: the head's, but inside `at`."""
        looking = self._looking
        if looking is not None and looking[0] == get_ident():
            return looking[1:]
        return self._version, self._newest_us

    def resume(self) -> None:
        """Lets a replica that was rolled back follow its log again, from where it stands."""
        with self._syncing:
            self._held = False

    # -- the cache ----------------------------------------------------------------------------------------------------

    def _load_cache(self, cache: Cache) -> None:
        found = cache.load()
        if found is not None:
            self._log_id, snapshot = found
            self._state, self._version, self._newest_us = snapshot.state, snapshot.version, snapshot.newest_us
            self._cached_version, self._from_cache = snapshot.version, True

    def _save_cache(self, cache: Cache) -> None:
        self._cached_s = self._clock()
        if self._version == self._cached_version or self._state is None:
            return
        with self.pin() as version:
            snapshot = Snapshot(version=version, run=0, newest_us=self._newest_us, state=self._state)
            try:
                cache.save(self._log_id, snapshot)
                self._cached_version = version
            except OSError as error:
                logger.warning("version %d was not cached: %s", version, error)

    # -- following ----------------------------------------------------------------------------------------------------

    def follow(self, *, poll_s: float = 0.01, max_poll_s: float = 1.0) -> Replica:
        """Keeps itself fresh in a background thread until `close`; gives itself.

        The thread never ends on an error: the replica stays at its last good version, tells the error once in the log
        and in `stats()`, and tries again at longer and longer intervals, up to five seconds.

        Args:
            poll_s, max_poll_s: shortest and longest time, in seconds, between two looks at a log that has nothing new
                and cannot tell when it has (a local directory can).
        """
        if self._follower is None:
            watch = lambda: self._log.watch()  # noqa: E731, PLW0108 - of the log that it then follows
            self._follower = Follower(self._sync, lambda: self._version, watch, poll_s=poll_s, max_poll_s=max_poll_s)
        return self

    def close(self) -> None:
        """Ends `follow`, and keeps the state in the cache; the last version stays readable."""
        if self._follower is not None:
            self._follower.close()
            self._follower = None
        if self._cache is not None:
            with self._syncing:
                self._save_cache(self._cache)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
