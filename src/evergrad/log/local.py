"""A local directory as an object store, on plain system calls.

    write .tmp-*  ──>  (durable: fsync it)  ──>  link to the name  ──>  unlink .tmp-*  ──>  (durable: fsync the folder)

The link fails where the name exists, and shows the whole object at once: it is both the lock and the moment at which an
object is there. What a crash of this process leaves:

- before the link: a temporary file, whole or not, under a name that `names` never lists and `read` refuses.
- between link and unlink: the object, and beside it a second name of the same bytes.
- after the unlink: the object.

Temporary files that a crash left are removed when a writer opens the directory an hour or more later.

A crash of the machine may undo what the kernel had not yet written out: the newest objects may be missing, or there
without some of their bytes (which their checksum tells). Not so when `durable`: what `create` or `replace` has answered
about is on the disk, bytes and name. Deletions are never synced: a crash of the machine may bring an object back.

Where a file system has no hard links (FAT, many FUSE ones), the temporary file is renamed to the name without replacing
(Linux `renameat2` with RENAME_NOREPLACE, macOS `renamex_np` with RENAME_EXCL), which is as atomic. A place that has
neither is refused with the first write. There is no third way: to create the name first and fill it afterwards would
show half objects, and a lock file would outlive the crash of its owner.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from evergrad.errors import LogUnavailable
from evergrad.log.base import CHUNK_BYTES, TEMPORARY, require_name
from evergrad.log.watch import Inotify, watch_folder

_READ_BYTES = 1 << 16
_STRAY_S = 3600.0  # no write takes as long
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class LocalStore:
    """An `ObjectStore` in one local directory, which exists.

    Any number of threads and processes may use one directory, each with a store of its own or not.

    Args:
        root: the directory.
        url: what to call it in messages.
        durable: whether an answer of `create` and `replace` waits for the disk.
        fsync, link: the system's.
    """

    def __init__(
        self,
        root: Path,
        url: str,
        *,
        durable: bool = False,
        fsync: Callable[[int], None] = os.fsync,
        link: Callable[[str, str], None] = os.link,
    ) -> None:
        self._root, self._url, self._durable = os.path.abspath(root), url, durable
        self._fsync, self._link = fsync, link
        self._synced: set[str] = set()

    def create(self, name: str, data: bytes) -> bool:
        """Stores `data` under `name`; False where that name exists already.

        Raises:
            LogUnavailable: the name was left as it was; or, where only the last sync failed, it is fully stored.
        """
        path = self._path(name)
        with self._telling(name):
            temporary = self._write_beside(path, data)
            try:
                created = self._publish(temporary, path)
            finally:
                _unlink(temporary)
            if self._durable:
                if not created:  # somebody's, who may not have synced it; our caller may find it equal to its own
                    self._sync(path)
                self._sync_names(os.path.dirname(path))
            return created

    def replace(self, name: str, data: bytes) -> None:
        """Stores `data` under `name`, whatever was there."""
        path = self._path(name)
        with self._telling(name):
            temporary = self._write_beside(path, data)
            try:
                os.replace(temporary, path)
            except BaseException:
                _unlink(temporary)
                raise
            if self._durable:
                self._sync_names(os.path.dirname(path))

    def read(self, name: str) -> bytes | None:
        """The bytes under `name`, or None where there are none."""
        try:
            return _contents(self._path(name))
        except (FileNotFoundError, IsADirectoryError):
            return None
        except OSError as error:
            raise self._unavailable(name, error) from error

    def stream(self, name: str) -> Iterator[bytes] | None:
        """The bytes under `name` in order, a mebibyte at a time; None where there is no such object."""
        chunks = self._chunks(self._path(name), name)
        try:
            next(chunks)
        except (FileNotFoundError, IsADirectoryError):
            return None
        return chunks

    def _chunks(self, path: str, name: str) -> Iterator[bytes]:
        try:
            with open(path, "rb", buffering=0) as file:
                yield b""  # it is there, and held open from now on
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
        except (FileNotFoundError, IsADirectoryError):
            raise
        except OSError as error:
            raise self._unavailable(name, error) from error

    def delete(self, name: str) -> None:
        """Removes `name`; no error where it is not there."""
        path = self._path(name)
        with self._telling(name), contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def names(self, prefix: str) -> list[str]:
        """The names of all objects directly in the folder `prefix`, whole and ascending."""
        path = self._path(prefix)
        with self._telling(prefix):
            try:
                with os.scandir(path) as entries:
                    found = [
                        entry.name for entry in entries if not entry.name.startswith(TEMPORARY) and entry.is_file()
                    ]
            except FileNotFoundError:
                return []
            return [f"{prefix}/{name}" for name in sorted(found)]

    def watch(self, folder: str) -> Inotify | None:
        """What tells that something appeared in `folder`; None where this machine cannot tell."""
        return watch_folder(self._path(folder))

    def may_write(self, access: Callable[[str, int], bool] = os.access) -> bool:
        """Whether permissions let this process write here. Only a write tells whether the disk and its kind do, too.

        Raises:
            LogUnavailable: the directory cannot be read.
        """
        with self._telling("its folders"), os.scandir(self._root) as entries:
            folders = [entry.path for entry in entries if entry.is_dir()]
        return all(access(folder, os.W_OK | os.X_OK) for folder in [self._root, *folders])

    def remove_strays(self, clock: Callable[[], float] = time.time) -> None:
        """Removes the temporary files that writers left an hour ago or earlier, as far as this process may.

        Raises:
            LogUnavailable: the directory cannot be read.
        """
        with self._telling("temporary files"), os.scandir(self._root) as entries:
            folders = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        for folder in [self._root, *folders]:
            with contextlib.suppress(OSError):
                for name in os.listdir(folder):
                    if name.startswith(TEMPORARY):
                        path = os.path.join(folder, name)
                        if os.stat(path).st_mtime < clock() - _STRAY_S:
                            os.unlink(path)

    def _path(self, name: str) -> str:
        return os.path.join(self._root, require_name(name, self._url))

    @contextlib.contextmanager
    def _telling(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._unavailable(name, error) from error

    def _unavailable(self, name: str, error: OSError) -> LogUnavailable:
        return LogUnavailable(self._url, f"{name}: {error.strerror or error}")

    def _write_beside(self, path: str, data: bytes) -> str:
        temporary = f"{os.path.dirname(path)}/{TEMPORARY}{os.urandom(8).hex()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            fd = os.open(temporary, flags, 0o666)
        except FileNotFoundError:
            self._make_folder(os.path.dirname(path))
            fd = os.open(temporary, flags, 0o666)
        try:
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(fd, rest) :]
                if self._durable:
                    self._fsync(fd)
            finally:
                os.close(fd)
        except BaseException:
            _unlink(temporary)
            raise
        return temporary

    def _make_folder(self, folder: str) -> None:
        # The root is never made anew: where it is gone, the log is gone, and nobody should begin another by accident.
        if folder == self._root:
            raise FileNotFoundError(errno.ENOENT, "the directory is gone")
        with contextlib.suppress(FileExistsError):
            try:
                os.mkdir(folder)
            except FileNotFoundError:
                self._make_folder(os.path.dirname(folder))
                os.mkdir(folder)

    def _publish(self, temporary: str, path: str) -> bool:
        try:
            try:
                self._link(temporary, path)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                _rename_without_replacing(temporary, path)
        except FileExistsError:
            return False
        return True

    def _sync_names(self, folder: str) -> None:
        # A folder's own name may be anybody's, synced or not: the first write into it syncs the folders above, too.
        self._sync(folder)
        if folder not in self._synced:
            above = folder
            while above != self._root:
                above = os.path.dirname(above)
                self._sync(above)
            self._synced.add(folder)

    def _sync(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY)
        try:
            self._fsync(fd)
        finally:
            os.close(fd)


def _contents(path: str) -> bytes:
    # By system calls: an update is read between two requests, and a file object takes more of them and of Python.
    fd = os.open(path, os.O_RDONLY)
    try:
        chunks = []
        while chunk := os.read(fd, _READ_BYTES):
            chunks.append(chunk)
        return b"".join(chunks)
    finally:
        os.close(fd)


def _unlink(temporary: str) -> None:
    with contextlib.suppress(OSError):  # a stray one harms nobody, and what went before must not be told as failed
        os.unlink(temporary)


def _rename_without_replacing(source: str, target: str) -> None:
    """Renames, or fails with FileExistsError: one system call."""
    at_fdcwd, no_replace, exclusive = -100, 1, 4
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(source), os.fsencode(target)
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        result = libc.renameat2(at_fdcwd, names[0], at_fdcwd, names[1], ctypes.c_uint(no_replace))
    elif hasattr(libc, "renamex_np"):
        result = libc.renamex_np(names[0], names[1], ctypes.c_uint(exclusive))
    else:
        raise OSError(errno.EOPNOTSUPP, "this file system has no hard links, and this system cannot do without")
    if result < 0:
        number = ctypes.get_errno()
        reason = os.strerror(number)
        if number in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
            reason = "this file system can neither link nor rename without replacing; put the log elsewhere"
        raise OSError(number, reason)


def local_store(path: Path, url: str, *, create: bool, durable: bool = False) -> LocalStore | None:
    """The store in a local directory; None where that does not exist and `create` is false.

    Raises:
        LogUnavailable: the path is no directory, or may not be entered, or not be written where `create` is true.
    """
    try:
        if create:
            _make_root(path.absolute(), durable)
        elif not path.exists():
            return None
        os.listdir(path)
        if create and not os.access(path, os.W_OK):
            raise PermissionError(f"{path} is not writable")
    except OSError as error:
        raise LogUnavailable(url, str(error)) from error
    store = LocalStore(path, url, durable=durable)
    if create:
        store.remove_strays()
    return store


def _make_root(path: Path, durable: bool) -> None:
    if durable:
        missing = list(itertools.takewhile(lambda folder: not folder.exists(), [path, *path.parents]))
        path.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            fd = os.open(folder.parent, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
    path.mkdir(parents=True, exist_ok=True)
