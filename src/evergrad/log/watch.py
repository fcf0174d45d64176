"""Waiting for a new file in a local directory: inotify, where Linux has it.

The kernel keeps what happens between two waits, so nothing that appears after the watch was made is lost. Where there
is no inotify (another system, no descriptor or watch left) or where it would see only this machine's writes (a network
file system), there is no watch, and readers poll.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import struct
import sys
import threading
import time

from evergrad.log.base import TEMPORARY

_IN_MOVED_TO, _IN_CREATE, _IN_DELETE_SELF, _IN_MOVE_SELF = 0x80, 0x100, 0x400, 0x800
_IN_Q_OVERFLOW, _IN_IGNORED, _IN_ONLYDIR = 0x4000, 0x8000, 0x01000000
_GONE = _IN_DELETE_SELF | _IN_MOVE_SELF | _IN_IGNORED
_MASK = _IN_MOVED_TO | _IN_CREATE | _IN_DELETE_SELF | _IN_MOVE_SELF | _IN_ONLYDIR
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows
_EVENTS_BYTES, _LONGEST_EVENT = 1 << 16, _EVENT.size + 256
_ESCAPED = re.compile(r"\\([0-7]{3})")
# Kinds of file systems that other machines may write to, which no inotify here tells. A wrong guess costs polling.
_SHARED = (
    "nfs",
    "cifs",
    "smb",
    "9p",
    "afs",
    "ceph",
    "gluster",
    "lustre",
    "gpfs",
    "beegfs",
    "virtiofs",
    "vboxsf",
    "fuse",
)


def watch_folder(folder: str, *, mounts: str = "/proc/self/mountinfo") -> Inotify | None:
    """A watch on a local folder, which need not exist yet; None where this machine cannot tell what appears in it."""
    try:
        return None if _kind_of_file_system(folder, mounts).startswith(_SHARED) else Inotify(folder)
    except OSError:
        return None


def _kind_of_file_system(folder: str, mounts: str) -> str:
    path, longest, found = os.path.join(os.path.realpath(folder), ""), "", ""
    with open(mounts, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            before, _, after = line.partition(" - ")
            point = _ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), before.split(" ")[4])
            if path.startswith(os.path.join(point, "")) and len(point) >= len(longest):
                longest, found = point, after.partition(" ")[0]
    return found


class Inotify:
    """A `Watch` on one local folder, which may come, go and come again.

    While the folder is not there, its parent is watched for it; while that is gone too, each wait first looks again.
    One thread waits; any may `wake` or `close`.

    Args:
        folder: the directory to watch.
        hidden: how the names begin that nobody waits for.
        system: the calls of inotify.

    Raises:
        OSError: inotify is not to be had, or neither the folder nor its parent is there.
    """

    def __init__(self, folder: str, *, hidden: str = TEMPORARY, system: Calls | None = None) -> None:
        self._system = system or Calls()
        self._folder, self._hidden = folder, os.fsencode(hidden)
        self._lock = threading.Lock()
        self._waiting = self._closed = False
        self._watched: int | None = None  # the watch on the folder
        self._above: int | None = None  # the watch on its parent, while the folder is not there
        self._events = self._system.init()
        try:
            self._woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError:
            os.close(self._events)
            raise
        try:
            self._attach()
        except OSError:
            self.close()
            raise

    def wait(self, timeout_s: float) -> None:
        """Returns when something appeared since the last wait, when woken, after `timeout_s`, and once closed."""
        with self._lock:
            if self._closed:
                return
            self._waiting = True
        try:
            self._wait(time.monotonic() + timeout_s)
        finally:
            self._end_wait()

    def _end_wait(self) -> None:
        with self._lock:
            self._waiting = False
            if self._closed:
                self._release()

    def wake(self) -> None:
        """Ends the wait that is going on, or else the next one."""
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._woken, 1)

    def close(self) -> None:
        """Gives back both descriptors; a wait that is going on ends."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._waiting:  # that thread releases them: nobody may close what another polls
                os.eventfd_write(self._woken, 1)
            else:
                self._release()

    def _release(self) -> None:
        os.close(self._events)
        os.close(self._woken)

    def _wait(self, until: float) -> None:
        poll = select.poll()
        poll.register(self._events, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while not self._came_back():
            ready = {fd for fd, _ in poll.poll(max(0.0, until - time.monotonic()) * 1000)}
            if self._woken in ready:
                os.eventfd_read(self._woken)
                return
            if not ready or self._appeared():
                return

    def _came_back(self) -> bool:
        """Whether the folder is there from now on, and was not: something may be in it already."""
        if self._watched is None:
            with contextlib.suppress(OSError):
                self._attach()
            return self._watched is not None
        return False

    def _attach(self) -> None:
        if not self._attach_folder():
            self._above = self._system.add(self._events, os.path.dirname(self._folder), _MASK)
            self._attach_folder()  # it may have come between the two calls

    def _attach_folder(self) -> bool:
        try:
            self._watched = self._system.add(self._events, self._folder, _MASK)
        except (FileNotFoundError, NotADirectoryError):
            return False
        if self._above is not None:
            self._system.remove(self._events, self._above)
            self._above = None
        return True

    def _appeared(self) -> bool:
        """Takes all that the kernel has kept; whether any of it is what is waited for."""
        appeared, full = False, True
        with contextlib.suppress(BlockingIOError):
            while full:  # else there was room for one event more, and what came since ends the next wait
                data = os.read(self._events, _EVENTS_BYTES)
                appeared, full = appeared | self._tells(data), len(data) > _EVENTS_BYTES - _LONGEST_EVENT
        return appeared

    def _tells(self, data: bytes) -> bool:
        at, appeared = 0, False
        while at < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, at)
            name = data[at + _EVENT.size : at + _EVENT.size + length]
            at += _EVENT.size + length
            if mask & _IN_Q_OVERFLOW:
                appeared = True
            elif watch == self._watched and mask & _GONE:
                self._watched = None
            elif watch == self._watched:
                appeared |= not name.startswith(self._hidden)
        return appeared


class Calls:
    """The calls of inotify, by way of the C library. Each raises OSError."""

    def __init__(self) -> None:
        if sys.platform != "linux":
            raise OSError("inotify is a part of Linux")
        self._libc = ctypes.CDLL(None, use_errno=True)

    def init(self) -> int:
        """A new descriptor."""
        return _checked(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def add(self, fd: int, path: str, mask: int) -> int:
        """Watches a path; gives the number of the watch."""
        return _checked(self._libc.inotify_add_watch(fd, os.fsencode(path), ctypes.c_uint32(mask)))

    def remove(self, fd: int, watch: int) -> None:
        """Watches no longer, if it did."""
        self._libc.inotify_rm_watch(fd, watch)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
