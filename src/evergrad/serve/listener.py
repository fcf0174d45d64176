"""uvicorn, on a socket of our own: quiet, and it returns on a signal instead of ending the process."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import uvicorn

from evergrad.serve.access import Tls


class Beside(Protocol):
    """Another server in the same event loop."""

    async def start(self) -> None:
        """Accepts calls."""

    async def stop(self) -> None:
        """Ends."""


class Listener(uvicorn.Server):
    """Serves an ASGI application on a bound socket.

    Args:
        on_start: called in the event loop once connections are accepted; it must not wait for an answer of this server.
        beside: starts and stops with it.
    """

    def __init__(
        self, app: Any, on_start: Callable[[], None], tls: Tls | None = None, beside: Beside | None = None
    ) -> None:
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
                ssl_certfile=None if tls is None else tls.cert,
                ssl_keyfile=None if tls is None else tls.key,
            )
        )
        self._on_start, self._beside = on_start, beside

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._beside is not None:
            await self._beside.start()
        await super().startup(sockets)
        self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._beside is not None:
            await self._beside.stop()
        await super().shutdown(sockets)

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
