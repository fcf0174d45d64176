"""What a replica keeps on disk, so that a restarted one continues from its last version without a full download.

    schema.json         the table of tensors
    state.safetensors   the state at one version, as a snapshot with the log's id in its metadata

Both are replaced whole (written beside, synced, renamed), so a crash leaves the older one, and beside it what it had
begun to write, which the next start removes. What is damaged, or belongs
to another log, is ignored and later overwritten: the cache is never trusted more than its digest. A log of another
model is a SchemaMismatch, for views of what was kept may be in use by then: that replica needs another directory.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from evergrad.codec import SnapshotReader, read_snapshot, snapshot_pieces
from evergrad.errors import CorruptRecord
from evergrad.schema import Schema
from evergrad.update import Snapshot

logger = logging.getLogger(__name__)
_SCHEMA, _STATE = "schema.json", "state.safetensors"
_CHUNK_BYTES = 1 << 20


class Cache:
    """One replica's directory; made where it does not exist.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.mkdir(parents=True, exist_ok=True)
        for name in (_SCHEMA, _STATE):
            for stray in path.glob(f".{name}-*"):
                stray.unlink(missing_ok=True)

    def load(self) -> tuple[str, Snapshot] | None:
        """The id of the log that the kept state is of, and that state; None where there is nothing of use."""
        try:
            schema = Schema.from_json((self._path / _SCHEMA).read_bytes(), _SCHEMA)
            name = str(self._path / _STATE)
            log = SnapshotReader(_file_chunks(Path(name)), schema, name).metadata.get("evergrad.log", "")
            return log, read_snapshot(_file_chunks(Path(name)), schema, name)
        except FileNotFoundError:
            return None
        except (CorruptRecord, OSError) as error:
            logger.warning("the cache in %s is of no use: %s", self._path, error)
            return None

    def save(self, log: str, snapshot: Snapshot) -> None:
        """Keeps a state, which must not move meanwhile, of the log with the id `log`.

        Raises:
            OSError: the disk refused; what was kept before stays.
        """
        schema = snapshot.state.schema.to_json()
        kept = self._path / _SCHEMA
        if not kept.exists() or kept.read_bytes() != schema:
            (self._path / _STATE).unlink(missing_ok=True)
            write_file(kept, [schema])
        write_file(self._path / _STATE, snapshot_pieces(snapshot, log=log))


def write_file(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Puts a file in its place whole: written beside, synced, renamed. Raises OSError; then the old one stays."""
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with open(descriptor, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(descriptor)
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def rewound(file: IO[bytes]) -> Iterator[bytes]:
    """The bytes of an open file from its beginning, a mebibyte at a time."""
    file.seek(0)
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk


def _file_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from rewound(file)
