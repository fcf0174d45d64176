"""One safetensors file that always holds a replica's newest version, for whatever loads such files.

    replica ──on_update: due──> copy under a pin ──> written beside, synced, renamed ──> path

An update only marks the file as due, so the replica's lock is never held while a disk is waited for: `refresh` copies
the weights under a pin (one copy of the model in memory, while it is written), lets go, and writes the copy. The file's
metadata tells `evergrad.version`, `evergrad.digest` and the rest that a snapshot's does. A crash at any point leaves
the file as it was before, whole; at worst with an unfinished one beside it, named `.<name>-...`, which nobody reads.

Example:
    with SafetensorsFile(replica.follow(), "model.safetensors", every_s=10.0).follow():
        ...
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from evergrad.codec import snapshot_pieces
from evergrad.replica import Replica
from evergrad.replica.cache import write_file
from evergrad.update import Snapshot, State

logger = logging.getLogger(__name__)
_RETRY_S = 1.0


class SafetensorsFile:
    """Keeps the file at `path` equal to the newest version of `replica`, by `refresh` or, with `follow`, by itself.

    Only the user who writes the file may read it (mode 0600).

    Args:
        replica: the caller follows with it, and closes it.
        path: in a directory that exists; what is there is overwritten.
        every_s: least seconds between two writings by `refresh` and `follow`.
        clock: in seconds; only its differences count.
    """

    def __init__(
        self, replica: Replica, path: str | Path, *, every_s: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.replica, self.path = replica, Path(path)
        self._every_s, self._clock = every_s, clock
        self._written_s = float("-inf")
        self._writing = threading.Lock()
        self._due, self._stopping = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._due.set()
        self._detach = replica.on_update(lambda _: self._due.set())

    def write(self) -> int:
        """Writes the version that the replica holds, now; gives it.

        Raises:
            NotSynced: the replica holds no version yet.
            OSError: the disk refused; the file before stays, and stays due.
        """
        with self._writing:
            with self.replica.pin() as version:
                self._due.clear()  # under the pin: an update that comes after it marks the file as due again
                held, newest_us = self.replica.state, self.replica.stats().newest_us
                state = State(held.schema, [array.copy() for array in held.arrays], held.digest)
            try:
                snapshot = Snapshot(version=version, run=0, newest_us=newest_us, state=state)
                write_file(self.path, snapshot_pieces(snapshot))
            except BaseException:
                self._due.set()
                raise
            self._written_s = self._clock()
            return version

    def refresh(self) -> bool:
        """Writes if the replica moved since, and `every_s` passed; tells whether it wrote. Raises what `write` does."""
        if not self._due.is_set() or self._clock() - self._written_s < self._every_s:
            return False
        self.write()
        return True

    def follow(self) -> Self:
        """Keeps the file fresh in a background thread until `close`; a failure is logged, and tried again."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="evergrad-safetensors", daemon=True)
            self._thread.start()
        return self

    def close(self) -> None:
        """Ends it; where `follow` kept the file, the newest version is in it first.

        Raises:
            NotSynced, OSError: that version could not be written.
        """
        detach, self._detach = self._detach, lambda: None
        detach()
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stopping.set()
            self._due.set()
            thread.join()
            self.write()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._due.wait()
            early_s = self._every_s - (self._clock() - self._written_s)
            if early_s > 0 and self._stopping.wait(early_s):
                return
            try:
                if not self._stopping.is_set():
                    self.refresh()
            except Exception:  # whatever it is: a thread that ends leaves a stale file
                logger.exception("%s was not written", self.path)
                self._stopping.wait(_RETRY_S)
