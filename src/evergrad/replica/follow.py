"""The thread that keeps a replica fresh: wakes when something was written, or asks for the next version by its name."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from evergrad.errors import EvergradError
from evergrad.log import Watch

logger = logging.getLogger(__name__)
_LOOK_S = 1.0
_MAX_WAIT_S = 5.0
_MIN_WAIT_S = 0.001


class Follower:
    """Calls `sync` until closed, and never ends on an error.

    Where the place can tell that something appeared (inotify), it waits for that; elsewhere it asks again at intervals
    that grow from `poll_s` to `max_poll_s` while nothing comes, each shortened at random by up to a half, so that many
    replicas do not ask at once.

    Args:
        sync: brings the replica up to date; with True, it also looks for what a plain "there is no next update" would
            hide. That costs more, and is asked for once a second, and again after each failure.
        version: what the replica holds.
        watch: makes a watch on the log, where there can be one.
        poll_s, max_poll_s: the shortest and the longest interval, in seconds.
    """

    def __init__(
        self,
        sync: Callable[[bool], object],
        version: Callable[[], int],
        watch: Callable[[], Watch | None],
        *,
        poll_s: float,
        max_poll_s: float,
    ) -> None:
        self._sync, self._version, self._make_watch = sync, version, watch
        self._poll_s = max(poll_s, _MIN_WAIT_S)
        self._max_poll_s = max(max_poll_s, self._poll_s)
        self._stopping = threading.Event()
        self._watch: Watch | None = None
        self._random = random.Random()  # noqa: S311 - it spreads load, nothing else
        self._thread = threading.Thread(target=self._run, name="evergrad-replica", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, and waits for it."""
        self._stopping.set()
        watch = self._watch
        if watch is not None:
            watch.wake()
        self._thread.join()

    def _run(self) -> None:
        wait_s, told, looked_s = self._poll_s, "", -_LOOK_S
        try:
            while not self._stopping.is_set():
                self._watch = self._watch or self._watched()  # before the look, or what comes between is missed
                look = bool(told) or time.monotonic() - looked_s >= _LOOK_S
                looked_s = time.monotonic() if look else looked_s
                before, failed = self._version(), ""
                try:
                    self._sync(look)
                except EvergradError as error:
                    failed = str(error)
                except Exception as error:  # whatever it is: a thread that ends leaves a stale model
                    failed = f"{type(error).__name__}: {error}"
                if failed and failed != told:
                    logger.warning("keeping version %d: %s", self._version(), failed)
                longest = _MAX_WAIT_S if failed else self._max_poll_s
                anew = self._version() != before or bool(failed) != bool(told)
                wait_s, told = self._poll_s if anew else min(2 * wait_s, longest), failed
                self._wait(wait_s, watch=not failed)
        finally:
            if self._watch is not None:
                self._watch.close()

    def _watched(self) -> Watch | None:
        try:
            return self._make_watch()
        except Exception as error:  # a thread that ends leaves a stale model; without a watch it asks again and again
            logger.debug("no watch: %s", error)
            return None

    def _wait(self, wait_s: float, *, watch: bool) -> None:
        if watch and self._watch is not None:
            if not self._stopping.is_set():
                self._watch.wait(_LOOK_S)
        else:
            self._stopping.wait(wait_s * self._random.uniform(0.5, 1.0))
