"""A lock that many readers share, or one writer holds; and one that is given in the order of asking."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ReadWriteLock:
    """Readers share it; a writer waits for those that read, and new readers wait for a writer that waits.

    A thread that reads may read again inside, and the thread that writes may read: neither waits for itself. A thread
    that reads must not write: it is told so.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._mine = threading.local()
        self._readers = self._writers_waiting = 0
        self._writer: int | None = None

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Inside, nobody writes."""
        depth: int = getattr(self._mine, "depth", 0)
        nested = depth > 0 or self._writer == threading.get_ident()
        if not nested:
            with self._condition:
                self._condition.wait_for(lambda: self._writer is None and not self._writers_waiting)
                self._readers += 1
        self._mine.depth = depth + 1
        try:
            yield
        finally:
            self._mine.depth = depth
            if not nested:
                with self._condition:
                    self._readers -= 1
                    self._condition.notify_all()

    def require_outside(self) -> None:
        """Raises RuntimeError where this thread reads or writes: to write, it would wait for itself, for ever."""
        if getattr(self._mine, "depth", 0) or self._writer == threading.get_ident():
            raise RuntimeError("a thread cannot move the version that it holds still; end pin() or the callback first")

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Inside, nobody else reads or writes. Raises as `require_outside`."""
        self.require_outside()
        with self._condition:
            self._writers_waiting += 1
            try:
                self._condition.wait_for(lambda: self._writer is None and not self._readers)
                self._writer = threading.get_ident()
            finally:  # also where Ctrl-C ends the wait, or new readers would wait for ever
                self._writers_waiting -= 1
                self._condition.notify_all()
        try:
            yield
        finally:
            with self._condition:
                self._writer = None
                self._condition.notify_all()


class FairLock:
    """A lock that whoever asks first gets first, so that a thread that asks again at once cannot keep others out.

    It is no `RLock`: a thread that asks while it holds it waits for ever.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._next = self._serving = 0
        self._gone: set[int] = set()

    def __enter__(self) -> None:
        with self._condition:
            ticket = self._next
            self._next += 1
            try:
                self._condition.wait_for(lambda: self._serving == ticket)
            except BaseException:  # Ctrl-C ends the wait: the next in line must not wait for this one
                self._gone.add(ticket)
                if self._serving == ticket:
                    self._advance()
                raise

    def __exit__(self, *exc: object) -> None:
        with self._condition:
            self._gone.add(self._serving)
            self._advance()

    def _advance(self) -> None:
        while self._serving in self._gone:
            self._gone.remove(self._serving)
            self._serving += 1
        self._condition.notify_all()
