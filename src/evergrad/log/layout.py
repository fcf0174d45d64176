"""The update log: which objects a log holds, and what they promise (`docs/format.md`, section Log, is normative).

    schema/<fingerprint>.json           the table of tensors
    evergrad.json                       format version, the log's own id, schema fingerprint, how to build the model;
                                        replaced where a new generation begins
    snapshots/<version>.safetensors     the whole state at a version
    latest.json                         the newest snapshot that readers may begin with; replaced with each
    updates/<version>.eg                the update that leads to a version
    folds/<from>-<to>.eg                a run of updates in one (see `folds`)

Versions are consecutive integers of 12 digits in names, so a reader asks for the next name and needs no listing.

The order of writes: schema, root, first snapshot, `latest.json`; then for each version its update, the folds that end
with it (shorter ones first), and, when one is due, its snapshot, `latest.json`, and the deletion of what is old. What a
crash of the writer leaves, at each point:

- before the first snapshot: no version. Whoever publishes next begins there; the objects already written are equal to
  its own, or it has another model and is told so.
- after the first snapshot, before `latest.json`: a log that has begun. Readers that can list find the snapshot; the
  publisher that continues the log writes `latest.json` (`point_at_newest`).
- before an update's object is whole: the log ends one version earlier. The publisher that restarts continues from
  there.
- after an update, before a fold: that fold is never written, nor any that would have been made of it. Readers take the
  shorter ones and the updates.
- after a snapshot, before `latest.json`: readers start from the snapshot before and replay more.
- during the deletion: what is gone was needed by nobody within the promised window; what is left is deleted next time.

A model whose tensors change goes on in the same place, as a new *generation*: a log with an id and a schema of its own,
whose versions go on from the older ones. Its writes: schema; an update of the next version that fits no state and so
takes that version, by the only lock there is; the snapshot of that version; the root and `latest.json`, replaced. What
a crash leaves:

- before that update: the older generation, whole. Its publisher goes on with it.
- after that update, before the root: the older generation, whose newest update no reader can apply: they keep the
  version before. Its publisher goes on after it, with a snapshot. One of the new model finds that schema in the log,
  and begins the generation again, one version later.
- after the root, before `latest.json`: as after a first snapshot. Readers of the older generation go on as if nothing
  had happened.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

import msgspec

from evergrad.codec import (
    SnapshotReader,
    decode,
    decode_header,
    encode,
    encode_snapshot,
    read_snapshot,
)
from evergrad.errors import ConfigError, CorruptRecord, LogNotFound, ReadOnlyLog, UnsupportedFormat, WriterConflict
from evergrad.log.base import ObjectStore, Watch
from evergrad.log.folds import FOLD_BASE, concatenate, smallest_fold
from evergrad.log.root import FORMAT, MAX_FOLD_BASE, Latest, Root, decode_latest, decode_root
from evergrad.schema import Schema
from evergrad.update import Snapshot, State, Update, short_fingerprint


class UpdateLog:
    """One log of one model, over any `ObjectStore`.

    Args:
        store: where its objects are; None: the place does not exist.
        url: what to call it in messages.
    """

    def __init__(self, store: ObjectStore | None, url: str) -> None:
        self._store, self.url = store, url
        self._root: Root | None = None
        self._schema: Schema | None = None
        self._recent: dict[str, bytes] = {}  # the updates appended last: what the next fold is made of

    @property
    def store(self) -> ObjectStore:
        """Where the objects are.

        Raises:
            LogNotFound: the place does not exist.
        """
        if self._store is None:
            raise LogNotFound(self.url)
        return self._store

    def watch(self) -> Watch | None:
        """What tells that an update was written; None where the place cannot: poll."""
        return None if self._store is None else self._store.watch("updates")

    # -- beginning, and what the first objects say ------------------------------------------------------------------

    def begun(self) -> bool:
        """Whether this log holds a version. Raises as `schema`, but for LogNotFound."""
        if self._store is None:
            return False
        return self._own_latest() is not None or bool(self._listed_snapshots())

    def begin(self, snapshot: Snapshot, model: str | None = None, *, fold_base: int = FOLD_BASE) -> int:
        """Begins the log with its first state; gives the bytes written.

        Args:
            snapshot: the first state; its run becomes the log's id.
            model: how a server may build the module, as an import path `package.module:callable`.
            fold_base: folds span powers of it, 2 to 2^20.

        Raises:
            ConfigError: a `fold_base` out of range.
            SchemaMismatch: an unfinished log of another model is here.
            WriterConflict: another publisher began it first.
        """
        if not 2 <= fold_base <= MAX_FOLD_BASE:
            raise ConfigError("fold_base", f"must lie in 2 to {MAX_FOLD_BASE}, not {fold_base}")
        schema, data = snapshot.state.schema, encode_snapshot(snapshot)
        self.store.create(f"schema/{schema.fingerprint}.json", schema.to_json())
        root = Root(FORMAT, f"{snapshot.run:016x}", schema.fingerprint, fold_base, model=model)
        if not self.store.create("evergrad.json", msgspec.json.encode(root)):
            self.schema.require(schema)
        if not self._create_equal(_snapshot_name(snapshot.version), data):
            raise WriterConflict(self.url, snapshot.version, "another publisher")
        self._point_at(snapshot.version)
        return len(data)

    def begin_anew(self, snapshot: Snapshot, log: int, model: str | None = None) -> tuple[int, int]:
        """Begins a new generation, of another schema; gives the version that it begins with, and its snapshot's bytes.

        Args:
            snapshot: its first state; its version is the one after this log's last. Where the same run has taken that
                version already, for a generation that it could not finish, it becomes the next one.
            log: the new generation's id, 64 random bits.
            model: as in `begin`; None: as it was.

        Raises:
            WriterConflict: another publisher wrote that version. LogUnavailable: the store failed; call it again.
        """
        schema, before = snapshot.state.schema, self._read_root()
        self.store.create(f"schema/{schema.fingerprint}.json", schema.to_json())
        snapshot = self._take_version(snapshot)
        data, version = encode_snapshot(snapshot), snapshot.version
        if not self._create_equal(_snapshot_name(version), data):
            raise WriterConflict(self.url, version, "another publisher")
        root = Root(FORMAT, f"{log:016x}", schema.fingerprint, before.fold_base, version, model or before.model)
        self.store.replace("evergrad.json", msgspec.json.encode(root))
        self._root, self._schema = root, schema
        self._point_at(version)
        return version, len(data)

    def _take_version(self, snapshot: Snapshot) -> Snapshot:
        while True:
            name = _update_name(snapshot.version)
            if self._create_equal(name, encode(_fits_no_state(snapshot))):
                return snapshot
            writer = self._writer_of(name)
            if writer != _named(snapshot.run):
                raise WriterConflict(self.url, snapshot.version, writer)
            snapshot = replace(snapshot, version=snapshot.version + 1)

    def _create_equal(self, name: str, data: bytes) -> bool:
        # A store may fail after it has stored: finding the very bytes that we meant to write is a success.
        return self.store.create(name, data) or self.store.read(name) == data

    @property
    def schema(self) -> Schema:
        """The model's table of tensors.

        Raises:
            LogNotFound: no log here. CorruptRecord, UnsupportedFormat: its first objects cannot be read.
        """
        if self._schema is None:
            name = f"schema/{self._read_root().schema}.json"
            data = self.store.read(name)
            if data is None:
                raise CorruptRecord(name, "evergrad.json names it, and it is missing")
            schema = Schema.from_json(data, name)
            if name != f"schema/{schema.fingerprint}.json":
                raise CorruptRecord(name, f"its contents have the fingerprint {schema.fingerprint}")
            self._schema = schema
        return self._schema

    @property
    def id(self) -> str:
        """16 hexadecimal digits that no other log has, nor this place when it is begun anew. Raises as `schema`."""
        return self._read_root().log

    @property
    def begins(self) -> int:
        """The version that this generation begins with: what is older is of another schema, and is not read."""
        return self._read_root().begins

    def has_had(self, schema: Schema) -> bool:
        """Whether this log is of that schema, was once, or was about to be when its publisher ended."""
        return self.store.read(f"schema/{schema.fingerprint}.json") is not None

    @property
    def model(self) -> str | None:
        """The import path that builds the module, where the publisher knew one."""
        return self._read_root().model

    @property
    def fold_base(self) -> int:
        """Folds of this log span powers of it."""
        return self._read_root().fold_base

    def reread(self) -> None:
        """Forgets what the first objects said, for this place may have been begun anew since."""
        self._root = self._schema = None

    def _read_root(self) -> Root:
        if self._root is None:
            data = self.store.read("evergrad.json")
            if data is None:
                raise LogNotFound(self.url)
            self._root = decode_root(data)
        return self._root

    # -- updates ----------------------------------------------------------------------------------------------------

    def append(self, update: Update, data: bytes | None = None) -> int:
        """Writes the next version; gives the bytes written.

        Args:
            data: the update's encoding, where the caller has it.

        Raises:
            WriterConflict: another publisher wrote this version.
            LogUnavailable: the store failed; the same update may be appended again.
        """
        data, name = encode(update) if data is None else data, _update_name(update.version)
        if not self._create_equal(name, data):
            raise WriterConflict(self.url, update.version, self._writer_of(name))
        self._recent[name] = data
        if len(self._recent) > FOLD_BASE:
            del self._recent[next(iter(self._recent))]
        return len(data)

    def _writer_of(self, name: str) -> str:
        try:
            return _named(decode_header(self.store.read(name) or b"", name).run)
        except (CorruptRecord, UnsupportedFormat):
            return "a writer that left it unreadable"

    def read(self, version: int) -> tuple[Update, int] | None:
        """The update that leads to `version`, and its size in bytes; None where there is none (yet).

        Raises:
            CorruptRecord, UnsupportedFormat: there is one, and it cannot be read.
        """
        return self._read_update(_update_name(version), version - 1, version)

    def read_fold(self, first: int, last: int) -> tuple[Update, int] | None:
        """The fold that leads from version `first` to `last`, and its size in bytes; None where there is none.

        Raises:
            CorruptRecord, UnsupportedFormat: there is one, and it cannot be read.
        """
        return self._read_update(_fold_name(first, last), first, last)

    def _read_update(self, name: str, first: int, last: int) -> tuple[Update, int] | None:
        data = self._read_from(first, name)
        return None if data is None else (_between(decode(data, self.schema, name), first, last, name), len(data))

    def _read_from(self, first: int, name: str) -> bytes | None:
        return self.store.read(name) if first >= self.begins else None

    def read_header(self, first: int, last: int) -> Update | None:
        """The update (where that is one version) or fold from `first` to `last`, without its sections; None: none.

        Raises:
            CorruptRecord, UnsupportedFormat: there is one, and it cannot be read.
        """
        name = _update_name(last) if last - first == 1 else _fold_name(first, last)
        data = self._read_from(first, name)
        return None if data is None else _between(decode_header(data, name), first, last, name)

    def write_folds(self, version: int, state: State | None = None) -> int:
        """Writes the folds that end with `version`; gives the bytes written.

        Of each span, where the log holds all that it is made of and it is not too large (see `folds`).

        Args:
            state: the state of `version`, where the caller holds it: longer folds may then tell absolute values.
        """
        written, span = 0, self.fold_base
        while version % span == 0:
            data = self._fold(version - span, version, span // self.fold_base, state)
            if data is None:
                break
            self.store.create(_fold_name(version - span, version), data)
            written, span = written + len(data), span * self.fold_base
        return written

    def _fold(self, first: int, last: int, step: int, state: State | None) -> bytes | None:
        if first < self.begins:
            return None
        parts = []
        for start in range(first, last, step):
            name = _update_name(start + 1) if step == 1 else _fold_name(start, start + step)
            data = self._recent.get(name) or self.store.read(name)
            if data is None:
                return None
            parts.append(data)
        try:
            return smallest_fold(concatenate(parts), self.schema, state if step > 1 else None)
        except (CorruptRecord, UnsupportedFormat):
            return None  # readers who meet the damaged part tell it, and heal by a snapshot

    # -- snapshots --------------------------------------------------------------------------------------------------

    def write_snapshot(self, snapshot: Snapshot) -> int:
        """Writes a snapshot, and points readers at it; gives its bytes. One that exists already is left as it is."""
        data = encode_snapshot(snapshot)
        self.store.create(_snapshot_name(snapshot.version), data)
        self._point_at(snapshot.version)
        return len(data)

    def _point_at(self, version: int) -> None:
        latest = self._own_latest()
        if latest is None or latest.snapshot < version:
            self.store.replace("latest.json", msgspec.json.encode(Latest(self.id, version)))

    def point_at_newest(self) -> None:
        """Writes `latest.json` where a crash came before it."""
        newest = next((version for version in reversed(self._listed_snapshots()) if self._is_own(version)), None)
        if newest is not None:
            self._point_at(newest)

    def _is_own(self, version: int) -> bool:
        """Whether a snapshot is of this schema, and not of a generation that never began."""
        data = self.store.read(_update_name(version))
        try:
            return data is None or decode_header(data).schema == short_fingerprint(self.schema)
        except (CorruptRecord, UnsupportedFormat):
            return True

    def latest(self) -> Latest | None:
        """What `latest.json` says; None where it is missing or cannot be read: it is a hint, not a promise."""
        if self._store is None:
            return None
        data = self._store.read("latest.json")
        return None if data is None else decode_latest(data)

    def _own_latest(self) -> Latest | None:
        # One that an earlier log left behind says nothing about this one.
        latest = self.latest()
        with contextlib.suppress(LogNotFound):
            return latest if latest is not None and latest.log == self.id else None
        return None

    def begin_versions(self, after: int) -> Iterator[int]:
        """The snapshots later than `after` to begin from, newest first; a listing is made only when one did not do."""
        latest = self._own_latest()
        first = latest.snapshot if latest is not None else -1
        if first > after:
            yield first
        yield from (version for version in reversed(self._listed_snapshots()) if version > after and version != first)

    def _listed_snapshots(self) -> list[int]:
        with contextlib.suppress(ReadOnlyLog):
            return self.snapshots()
        return []

    def read_snapshot(self, version: int) -> Snapshot:
        """The snapshot of `version`, in memory of its own.

        Raises:
            CorruptRecord: it is missing, or cannot be read.
        """
        return _expect(read_snapshot(self.snapshot_chunks(version), self.schema, _snapshot_name(version)), version)

    def snapshot_chunks(self, version: int) -> Iterator[bytes]:
        """The bytes of a snapshot's file, a mebibyte at a time. Raises CorruptRecord where it is missing."""
        chunks = self.store.stream(_snapshot_name(version))
        if chunks is None:
            raise CorruptRecord(_snapshot_name(version), "it is missing")
        return chunks

    def snapshot_reader(self, chunks: Iterable[bytes], version: int) -> SnapshotReader:
        """Reads chunks that `snapshot_chunks` gave. Raises CorruptRecord where they are not of this version."""
        reader = SnapshotReader(chunks, self.schema, _snapshot_name(version))
        if reader.info.version != version:
            raise CorruptRecord(_snapshot_name(version), f"it holds version {reader.info.version}")
        return reader

    # -- listings and retention -------------------------------------------------------------------------------------

    def snapshots(self) -> list[int]:
        """The versions of this generation that have a snapshot, ascending."""
        oldest = self._oldest()
        return [version for version in self._all_snapshots() if version >= oldest]

    def updates(self) -> list[int]:
        """The versions of this generation that an update leads to, ascending."""
        oldest = self._oldest()
        return [version for version in self._all_updates() if version > oldest]

    def head(self) -> int:
        """The newest version that this generation has an object of, -1 where there is none; by listing."""
        return max([*self.updates(), *self.snapshots()], default=-1)

    def folds(self) -> list[tuple[int, int]]:
        """The folds of this generation, each by the versions that it leads from and to, ascending."""
        oldest = self._oldest()
        return [(first, last) for first, last in self._all_folds() if first >= oldest]

    def _oldest(self) -> int:
        with contextlib.suppress(LogNotFound):
            return self.begins
        return 0

    def _all_snapshots(self) -> list[int]:
        return _versions(self.store.names("snapshots"), ".safetensors")

    def _all_updates(self) -> list[int]:
        return _versions(self.store.names("updates"), ".eg")

    def _all_folds(self) -> list[tuple[int, int]]:
        names = (re.fullmatch(r"folds/(\d{12,})-(\d{12,})\.eg", name) for name in self.store.names("folds"))
        return sorted((int(match[1]), int(match[2])) for match in names if match)

    def prune(self, keep_versions: int, newest: int | None = None) -> list[str]:
        """Deletes what no reader within the window needs, and gives the names of that.

        A reader that holds any of the last `keep_versions` versions, or begins with the snapshot that `latest.json`
        names, finds every update and fold from there on. A reader further behind continues from that snapshot.

        Args:
            keep_versions: the window, in versions before the newest one.
            newest: that version; default: the log's. One that goes on from a checkpoint counts from its own.

        Raises:
            LogUnavailable: the store failed; what is deleted by then is not needed either.
        """
        names = self.prunable(keep_versions, newest)
        for name in names:
            self.store.delete(name)
        return names

    def prunable(self, keep_versions: int, newest: int | None = None) -> list[str]:
        """The names of what `prune` would delete, older generations' included."""
        latest, updates = self._own_latest(), self._all_updates()
        if latest is None or not updates:
            return []
        floor = min(latest.snapshot, (updates[-1] if newest is None else newest) - keep_versions)
        names = [_snapshot_name(version) for version in self._all_snapshots() if version < floor]
        names += [_fold_name(first, last) for first, last in self._all_folds() if first < floor]
        return names + [_update_name(version) for version in updates if version <= floor]


def _expect(snapshot: Snapshot, version: int) -> Snapshot:
    if snapshot.version != version:
        raise CorruptRecord(_snapshot_name(version), f"it holds version {snapshot.version}")
    return snapshot


def _between(update: Update, first: int, last: int, name: str) -> Update:
    if (update.base_version, update.version) != (first, last):
        raise CorruptRecord(name, f"it holds version {update.version}, from {update.base_version}")
    return update


def _fits_no_state(snapshot: Snapshot) -> Update:
    digest = snapshot.state.digest
    return Update(
        base_version=snapshot.version - 1, version=snapshot.version, run=snapshot.run, digest_before=digest,
        schema=short_fingerprint(snapshot.state.schema), digest_after=digest, newest_us=snapshot.newest_us, sections=(),
    )  # fmt: skip


def _named(run: int) -> str:
    return f"run {run:016x}"


def _update_name(version: int) -> str:
    return f"updates/{version:012d}.eg"


def _fold_name(first: int, last: int) -> str:
    return f"folds/{first:012d}-{last:012d}.eg"


def _snapshot_name(version: int) -> str:
    return f"snapshots/{version:012d}.safetensors"


def _versions(names: list[str], suffix: str) -> list[int]:
    stems = (name.rpartition("/")[2].removesuffix(suffix) for name in names if name.endswith(suffix))
    return sorted(int(stem) for stem in stems if stem.isdecimal())
