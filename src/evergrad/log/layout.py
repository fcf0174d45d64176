"""The update log: which objects a log holds, and what they promise.

    schema/<fingerprint>.json           the table of tensors
    evergrad.json                       format version, schema fingerprint, how to build the model
    snapshots/<version>.safetensors     the whole state at a version
    updates/<version>.eg                the update that leads to a version

Versions are consecutive integers of 12 digits in names, so a reader asks for the next name and needs no listing.

What a crash of the writer leaves, at each point:

- before the first snapshot: no version. Whoever publishes next begins there; the objects already written are equal to
  its own, or it has another model and is told so.
- before an update's object is whole: the log ends one version earlier. The publisher that restarts continues from
  there.
- after an update and before the snapshot of its version: readers start from the snapshot before and replay more.
"""

from __future__ import annotations

import re

import msgspec

from evergrad.codec import decode, decode_snapshot, encode, encode_snapshot
from evergrad.errors import CorruptRecord, LogNotFound, UnsupportedFormat, WriterConflict
from evergrad.log.base import ObjectStore
from evergrad.schema import Schema
from evergrad.update import Snapshot, Update

FORMAT = 1


class _Root(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    format: int
    schema: str
    model: str | None = None


class _FormatOnly(msgspec.Struct):
    format: int


class UpdateLog:
    """One log of one model, over any `ObjectStore`.

    Args:
        store: where its objects are; None: the place does not exist.
        url: what to call it in messages.
    """

    def __init__(self, store: ObjectStore | None, url: str) -> None:
        self._store, self.url = store, url
        self._root: _Root | None = None
        self._schema: Schema | None = None

    @property
    def store(self) -> ObjectStore:
        """Where the objects are.

        Raises:
            LogNotFound: the place does not exist.
        """
        if self._store is None:
            raise LogNotFound(self.url)
        return self._store

    def begun(self) -> bool:
        """Whether this log holds a version."""
        return self._store is not None and bool(self.snapshots())

    def begin(self, snapshot: Snapshot, model: str | None = None) -> int:
        """Begins the log with its first state; gives the bytes written.

        Args:
            snapshot: the first state.
            model: how a server may build the module, as an import path `package.module:callable`.

        Raises:
            SchemaMismatch: an unfinished log of another model is here.
            WriterConflict: another publisher began it first.
        """
        schema, data = snapshot.state.schema, encode_snapshot(snapshot)
        self.store.create(f"schema/{schema.fingerprint}.json", schema.to_json())
        root = msgspec.json.encode(_Root(FORMAT, schema.fingerprint, model))
        if not self.store.create("evergrad.json", root):
            self.schema.require(schema)
        if not self._create_equal(_snapshot_name(snapshot.version), data):
            raise WriterConflict(self.url, snapshot.version, "another publisher")
        return len(data)

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
    def model(self) -> str | None:
        """The import path that builds the module, where the publisher knew one."""
        return self._read_root().model

    def _read_root(self) -> _Root:
        if self._root is None:
            data = self.store.read("evergrad.json")
            if data is None:
                raise LogNotFound(self.url)
            self._root = _decode_root(data)
        return self._root

    def append(self, update: Update) -> int:
        """Writes the next version; gives the bytes written.

        Raises:
            WriterConflict: another publisher wrote this version.
            LogUnavailable: the store failed; the same update may be appended again.
        """
        data, name = encode(update), _update_name(update.version)
        if not self._create_equal(name, data):
            raise WriterConflict(self.url, update.version, self._writer_of(name))
        return len(data)

    def _writer_of(self, name: str) -> str:
        try:
            return f"run {decode(self.store.read(name) or b'', self.schema, name).run:016x}"
        except (CorruptRecord, UnsupportedFormat):
            return "a writer that left it unreadable"

    def read(self, version: int) -> tuple[Update, int] | None:
        """The update that leads to `version`, and its size in bytes; None where there is none (yet).

        Raises:
            CorruptRecord, UnsupportedFormat: there is one, and it cannot be read.
        """
        name = _update_name(version)
        data = self.store.read(name)
        if data is None:
            return None
        update = decode(data, self.schema, name)
        if update.version != version:
            raise CorruptRecord(name, f"it holds version {update.version}")
        return update, len(data)

    def write_snapshot(self, snapshot: Snapshot) -> int:
        """Writes a snapshot; gives the bytes written. One that exists already is left as it is."""
        data = encode_snapshot(snapshot)
        self.store.create(_snapshot_name(snapshot.version), data)
        return len(data)

    def read_snapshot(self, version: int) -> Snapshot:
        """The snapshot of `version`.

        Raises:
            CorruptRecord: it is missing, or cannot be read.
        """
        name = _snapshot_name(version)
        snapshot = decode_snapshot(self.store.read(name) or b"", self.schema, name)
        if snapshot.version != version:
            raise CorruptRecord(name, f"it holds version {snapshot.version}")
        return snapshot

    def snapshots(self) -> list[int]:
        """The versions that have a snapshot, ascending."""
        return _versions(self.store.names("snapshots"), ".safetensors")

    def updates(self) -> list[int]:
        """The versions that have an update, ascending."""
        return _versions(self.store.names("updates"), ".eg")


def _decode_root(data: bytes) -> _Root:
    try:
        found = msgspec.json.decode(data, type=_FormatOnly).format
        if found > FORMAT:
            raise UnsupportedFormat("evergrad.json", found, FORMAT)
        root = msgspec.json.decode(data, type=_Root)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptRecord("evergrad.json", str(error)) from error
    if root.format != FORMAT or not re.fullmatch(r"[0-9a-f]{32}", root.schema):
        raise CorruptRecord("evergrad.json", f"format {root.format} and schema {root.schema!r}, as no writer writes")
    return root


def _update_name(version: int) -> str:
    return f"updates/{version:012d}.eg"


def _snapshot_name(version: int) -> str:
    return f"snapshots/{version:012d}.safetensors"


def _versions(names: list[str], suffix: str) -> list[int]:
    stems = (name.rpartition("/")[2].removesuffix(suffix) for name in names if name.endswith(suffix))
    return sorted(int(stem) for stem in stems if stem.isdecimal())
