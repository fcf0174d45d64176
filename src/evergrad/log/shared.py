"""One download for all processes of a machine: a log's immutable objects, kept for a while in a local folder.

    worker ─┐                     ┌─> folder (under a lock: who comes first downloads)
    worker ─┼──> SharedStore ─────┤
    worker ─┘                     └─> the place itself

What is kept is forgotten after half a minute: workers are at the same version within moments, and an object that came
damaged is fetched again. A log that is begun anew has another root, and so another subfolder. Where the folder cannot
be used, objects pass through.
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

from evergrad.errors import ReadOnlyLog
from evergrad.log.base import CHUNK_BYTES, ObjectStore, Watch, require_name

logger = logging.getLogger(__name__)
_ROOT = "evergrad.json"
_PASSED = (_ROOT, "latest.json")
_LOCKS = 16


class SharedStore:
    """An `ObjectStore`, to read, in front of another that is far away.

    Args:
        inner: the place itself.
        folder: local, the same for all who share; it must exist, and be nobody else's.
        keep_s: how long an object is kept.
        absent_s: for how long "there is no such object" counts for all.
    """

    def __init__(
        self,
        inner: ObjectStore,
        folder: Path,
        url: str,
        *,
        keep_s: float = 30.0,
        absent_s: float = 0.005,
    ) -> None:
        self._inner, self._folder, self._url = inner, folder, url
        self._keep_s, self._absent_s = keep_s, absent_s
        self._root = ""

    def read(self, name: str) -> bytes | None:
        """As the place itself."""
        if name in _PASSED:
            data = self._inner.read(name)
            if name == _ROOT and data is not None:
                self._root = xxhash.xxh64_hexdigest(data)
            return data
        path = self._path(name)
        try:
            with self._locked(path):
                kept = self._kept(path)
                if kept is not None:
                    return kept.read_bytes()
                if self._absent(path):
                    return None
                data = self._inner.read(name)
                self._keep(path, None if data is None else iter([data]))
                return data
        except OSError as error:
            logger.warning("%s is not shared: %s", name, error)
            return self._inner.read(name)

    def stream(self, name: str) -> Iterator[bytes] | None:
        """As the place itself."""
        path = self._path(name)
        try:
            with self._locked(path):
                kept = self._kept(path)
                if kept is None:
                    chunks = self._inner.stream(name)
                    if chunks is None:
                        return None
                    kept = self._keep(path, chunks)
                return _chunks(kept)
        except OSError as error:
            logger.warning("%s is not shared: %s", name, error)
            return self._inner.stream(name)

    def watch(self, folder: str) -> Watch | None:
        """As the place itself."""
        return self._inner.watch(folder)

    def names(self, prefix: str) -> list[str]:
        """As the place itself."""
        return self._inner.names(prefix)

    def create(self, name: str, data: bytes) -> bool:  # noqa: ARG002
        """Raises ReadOnlyLog."""
        raise ReadOnlyLog(self._url)

    def replace(self, name: str, data: bytes) -> None:  # noqa: ARG002
        """Raises ReadOnlyLog."""
        raise ReadOnlyLog(self._url)

    def delete(self, name: str) -> None:  # noqa: ARG002
        """Raises ReadOnlyLog."""
        raise ReadOnlyLog(self._url)

    def _path(self, name: str) -> Path:
        return self._folder / (self._root or "begin") / require_name(name, self._url).replace("/", "-")

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        path.parent.mkdir(exist_ok=True)
        number = xxhash.xxh64_intdigest(path.name.encode()) % _LOCKS
        with (self._folder / f"lock-{number}").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # given back with the file, also by a process that dies
            yield

    def _kept(self, path: Path) -> Path | None:
        return path if _age_s(path) < self._keep_s else None

    def _absent(self, path: Path) -> bool:
        return _age_s(_absence(path)) < self._absent_s

    def _keep(self, path: Path, chunks: Iterator[bytes] | None) -> Path:
        if chunks is None:
            _absence(path).touch()
            return path
        descriptor, beside = tempfile.mkstemp(dir=self._folder, prefix="part-")
        try:
            with open(descriptor, "wb") as file:
                for chunk in chunks:
                    file.write(chunk)
            os.replace(beside, path)
        except BaseException:
            os.unlink(beside)
            raise
        self._tidy(path)
        return path

    def _tidy(self, newest: Path) -> None:
        for place in (self._folder, newest.parent):
            for entry in os.scandir(place):
                old = entry.is_file() and not entry.name.startswith("lock-") and _age_s(Path(entry.path)) > self._keep_s
                if old:
                    Path(entry.path).unlink(missing_ok=True)


def _absence(path: Path) -> Path:
    return path.with_name(path.name + ".none")


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _chunks(path: Path) -> Iterator[bytes]:
    file = path.open("rb")  # now: it may be tidied away before the first chunk is asked for

    def read() -> Iterator[bytes]:
        with file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    return read()
