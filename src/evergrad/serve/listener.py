"""uvicorn, on a socket of our own: quiet, and it returns on a signal instead of ending the process."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn


class Listener(uvicorn.Server):
    """Serves an ASGI application on a bound socket.

    Args:
        on_start: called in the event loop once connections are accepted; it must not wait for an answer of this server.
    """

    def __init__(self, app: Any, on_start: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="warning",
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                timeout_keep_alive=65,
                timeout_graceful_shutdown=5,
            )
        )
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end `run` in order, and the handlers from before are back after it.

        uvicorn's own raises the signal again, which would end the process before the replica is closed.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
