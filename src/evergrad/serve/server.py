"""Serving: a port, a replica that follows its log, and answers from the newest version.

>>> from evergrad.serve.server import Server   # importing starts nothing, and needs numpy alone
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from evergrad.errors import ServerError
from evergrad.serve.servable import Candidate, Servable
from evergrad.serve.settings import Settings

if TYPE_CHECKING:
    from evergrad.serve.rpc import RpcServer

__all__ = ["Candidate", "Servable", "Server", "Settings", "serve"]


def serve(
    servable: Servable,
    settings: Settings | None = None,
    *,
    candidate: Candidate | None = None,
    on_start: Callable[[str], None] | None = None,
) -> None:
    """Serves a model over the Open Inference Protocol until SIGINT or SIGTERM, and keeps it fresh.

    Args:
        servable: what to serve, e.g. a `ReplicaModule`; its replica follows the log from now on, and is closed at the
            end.
        settings: default: `Settings()`.
        candidate: what may take its place.
        on_start: called with the server's URL once it accepts connections; it must not wait for an answer of it.

    Raises:
        ServerError: the address cannot be used.
        HistoryUnavailable, HistoryDamaged: the folder for feedback cannot be used.
        MissingDependency: KServe is not installed.
    """
    Server(servable, settings, candidate=candidate).run(on_start)


class Server:
    """One model behind one port, for programs that do more than serve:
    `with Server(servable, Settings(port=0)) as server:`.

    The port is taken at construction. Arguments and errors as `serve`.

    Attributes:
        url: where it listens, e.g. `http://127.0.0.1:8080`; known before anything answers there.
    """

    def __init__(
        self, servable: Servable, settings: Settings | None = None, *, candidate: Candidate | None = None
    ) -> None:
        chosen = settings or Settings()
        from evergrad.serve.app import make_app
        from evergrad.serve.feedback import Labelling
        from evergrad.serve.listener import Listener
        from evergrad.serve.model import ModelPlane, ServedModel
        from evergrad.serve.rpc import RpcServer

        self._started = threading.Event()
        self._on_start: Callable[[str], None] | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        shared = chosen.worker is not None
        self._socket = bind(chosen.host, chosen.port, shared)
        self.url = _url(self._socket, "http" if chosen.tls is None else "https")
        try:
            labelling = None if chosen.feedback is None else Labelling(chosen.feedback, chosen.worker or 0)
        except BaseException:
            self._socket.close()
            raise
        self._model = ServedModel(
            chosen.name,
            servable,
            batching=chosen.batching,
            candidate=candidate,
            input_type=chosen.input,
            recorded=chosen.recorded,
            max_staleness_s=chosen.max_staleness_s,
            worker=chosen.worker,
            labelling=labelling,
        )
        plane, limit = ModelPlane(self._model), chosen.max_request_bytes
        rpc: RpcServer | None = None
        if chosen.grpc_port is not None:
            rpc = RpcServer(
                plane, chosen.host, chosen.grpc_port, max_bytes=limit, token=chosen.token, tls=chosen.tls, shared=shared
            )
        self._rpc = rpc
        app = make_app(plane, token=chosen.token, max_bytes=limit)
        self._listener = Listener(app, self._accepting, chosen.tls, rpc)

    @property
    def grpc_port(self) -> int | None:
        """Where gRPC is served, once it is; None: nowhere."""
        return None if self._rpc is None else self._rpc.port

    def run(self, on_start: Callable[[str], None] | None = None) -> None:
        """Serves until `stop`, SIGINT or SIGTERM (signals: in the main thread only); closes the replica. Runs once."""
        self._on_start = on_start
        try:
            self._model.follow()
            self._listener.run([self._socket])
        finally:
            self._socket.close()
            self._model.close()

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


def bind(host: str, port: int, shared: bool = False) -> socket.socket:
    """A socket at an address, not yet listening; `shared`: other processes may take the same port, with the same word.

    Raises:
        ServerError: the address cannot be used.
    """
    bound: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
    except OSError as error:
        if bound is not None:
            bound.close()
        raise ServerError(f"{host}:{port}", f"cannot listen there: {error}; choose another host or port") from error
    return bound


def _url(bound: socket.socket, scheme: str) -> str:
    host, port = bound.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
