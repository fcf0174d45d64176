"""Open files, and the lock that makes a history's writer the only one."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType

from evergrad.errors import HistoryLocked, HistoryUnavailable

_LOCK = "lock"


class Handles:
    """Files by name, each open until it is closed here: whoever holds this need not remember them one by one."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}

    def get(self, path: Path, flags: int) -> int:
        """The descriptor of a file, which is opened where it is not open yet."""
        found = self._open.get(path)
        if found is None:
            found = self._open[path] = os.open(path, flags, 0o666)
        return found

    def close(self, path: Path) -> None:
        """Closes a file where it is open."""
        if path in self._open:
            os.close(self._open.pop(path))

    def close_all(self) -> None:
        """Closes all files; the lock goes with its own."""
        while self._open:
            os.close(self._open.popitem()[1])


class Locked:
    """One thread at a time works on a history, and what the disk refuses has a name.

    Args:
        path: the history's folder.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        self._lock.release()
        if isinstance(error, OSError):
            raise HistoryUnavailable(str(self._path), str(error)) from error


def take_lock(folder: Path, handles: Handles) -> None:
    """Locks a history's folder until its handle is closed, or this process and those it forked have ended.

    Raises:
        HistoryLocked: somebody else has.
        HistoryUnavailable: this system or this place has no locks.
    """
    try:
        import fcntl
    except ImportError as error:
        raise HistoryUnavailable(str(folder), f"this system cannot lock files ({error})") from error
    path = folder / _LOCK
    fd = handles.get(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(fd, 20, 0).strip()
        handles.close(path)
        raise HistoryLocked(str(folder), int(holder) if holder.isdigit() else 0) from error
    except OSError:
        handles.close(path)
        raise
    os.pwrite(fd, f"{os.getpid():<19}\n".encode(), 0)


def write_all(fd: int, data: memoryview, at: int) -> None:
    """Writes all of `data`, or raises OSError."""
    while len(data):
        written = os.pwrite(fd, data, at)
        if not written:
            raise OSError("nothing was written")
        data, at = data[written:], at + written


def sync_path(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
