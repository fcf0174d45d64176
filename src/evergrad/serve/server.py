"""Serving: a port, a replica that follows its log, and answers from the newest version.

>>> from evergrad.serve.server import Server   # importing starts nothing, and needs numpy alone
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Self

from evergrad.errors import ConfigError, ServerError
from evergrad.serve.servable import Servable

__all__ = ["Servable", "Server", "serve"]


def serve(
    servable: Servable,
    *,
    name: str = "model",
    host: str = "127.0.0.1",
    port: int = 8080,
    on_start: Callable[[str], None] | None = None,
) -> None:
    """Serves a model over the Open Inference Protocol until SIGINT or SIGTERM, and keeps it fresh.

    Args:
        servable: what to serve, e.g. a `ReplicaModule`; its replica follows the log from now on, and is closed at the
            end.
        name: how clients call the model: `POST /v2/models/{name}/infer`.
        host: where to listen. There is no authentication: anybody who can reach it may ask.
        port: 0 takes any free one.
        on_start: called with the server's URL once it accepts connections; it must not wait for an answer of it.

    Raises:
        ConfigError: the name or the port cannot be one.
        ServerError: the address cannot be used.
        MissingDependency: KServe is not installed.
    """
    Server(servable, name=name, host=host, port=port).run(on_start)


class Server:
    """One model behind one port, for programs that do more than serve: `with Server(servable, port=0) as server:`.

    The port is taken at construction. Arguments and errors as `serve`.

    Attributes:
        url: where it listens, e.g. `http://127.0.0.1:8080`; known before anything answers there.
    """

    def __init__(self, servable: Servable, *, name: str = "model", host: str = "127.0.0.1", port: int = 8080) -> None:
        if not name or not set(name) <= _NAME:
            raise ConfigError("name", f"must be letters, digits, '.', '_' or '-', not {name!r}")
        if not 0 <= port <= 65535:
            raise ConfigError("port", f"must lie in 0 to 65535, not {port}")
        from evergrad.serve.app import make_app
        from evergrad.serve.listener import Listener
        from evergrad.serve.model import ServedModel

        self._servable, self._started = servable, threading.Event()
        self._on_start: Callable[[str], None] | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._model = ServedModel(name, servable)
        self._listener = Listener(make_app(self._model, servable), self._accepting)
        self._socket = _bind(host, port)
        self.url = _url(self._socket)

    def run(self, on_start: Callable[[str], None] | None = None) -> None:
        """Serves until `stop`, SIGINT or SIGTERM (signals: in the main thread only); closes the replica. Runs once."""
        self._on_start = on_start
        try:
            self._servable.replica.follow()
            self._listener.run([self._socket])
        finally:
            self._socket.close()
            self._model.close()
            self._servable.replica.close()

    def _accepting(self) -> None:
        self._started.set()
        if self._on_start is not None:
            self._on_start(self.url)

    def start(self) -> Self:
        """Serves in a background thread; returns once connections are accepted.

        Raises:
            ServerError: it ended before.
        """
        self._thread = threading.Thread(target=self._run_guarded, name="evergrad-server", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise ServerError("the model server", f"did not start: {self._failure}") from self._failure
        return self

    def _run_guarded(self) -> None:
        try:
            self.run()
        except BaseException as error:  # the thread that waits in `start` raises it
            self._failure = error
        finally:
            self._started.set()

    def stop(self) -> None:
        """Ends `run`; requests under way are answered first."""
        self._listener.should_exit = True

    def close(self) -> None:
        """Stops, and waits for the end of a server that `start` started."""
        self.stop()
        if self._thread is not None:
            self._thread.join()
        self._socket.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()


_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def _bind(host: str, port: int) -> socket.socket:
    bound: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        if bound is not None:
            bound.close()
        raise ServerError(f"{host}:{port}", f"cannot listen there: {error}; choose another host or port") from error
    return bound


def _url(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
