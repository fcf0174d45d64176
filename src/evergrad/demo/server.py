"""A model server in a process of its own, started again whenever it is found dead."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Self

import numpy.typing as npt

from evergrad.errors import ServerError
from evergrad.serve.client import Answer, InferenceClient

_START_S = 60.0
_RESTARTS_PER_REQUEST = 3


class ServerProcess:
    """Runs `evergrad serve LOG` beside this process, on a free loopback port.

    Args:
        log: the URL of a log that holds its model's program.

    Raises:
        ServerError: it does not start, or has no version to serve within a minute.
    """

    def __init__(self, log: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock = log, clock
        self._port = 0
        self.restarts = 0
        self._process: subprocess.Popen[str] | None = None
        self._client: InferenceClient | None = None
        self.last: Answer | None = None
        self._start()

    def _start(self) -> None:
        self.close()  # of a server that died: its pipe and connection
        command = [sys.executable, "-m", "evergrad", "serve", self._log, "--port", str(self._port)]
        # One compute thread: the trainer beside it needs the other cores.
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(  # noqa: S603 - our own command line
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=environment
        )
        deadline = self._clock() + _START_S
        url = self._announced(self._process, deadline)
        self._port = int(url.rpartition(":")[2])
        self._client = InferenceClient(url)
        while not self._client.ready():
            if self._process.poll() is not None or self._clock() > deadline:
                self.close()
                raise ServerError(url, "has no version to serve")
            time.sleep(0.02)

    def _announced(self, process: subprocess.Popen[str], deadline: float) -> str:
        stream: Any = process.stdout
        while self._clock() < deadline:
            if not select.select([stream], [], [], 0.1)[0]:
                continue
            line = str(stream.readline())
            if not line:
                break
            if "http://" in line:
                return "http://" + line.partition("http://")[2].split()[0]
        self.close()
        raise ServerError("evergrad serve", f"did not start (exit status {process.poll()}); its own words are above")

    def predict(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The served model's outputs; a server that died is started again first. `last` keeps the whole answer."""
        for _ in range(_RESTARTS_PER_REQUEST):
            try:
                self.last = self._require_client().infer(x)
                return self.last.outputs
            except ServerError:
                if not self.died():
                    raise
                self.restarts += 1
                self._start()
        raise ServerError("evergrad serve", f"died {_RESTARTS_PER_REQUEST} times at the same request")

    def wait_for(self, version: int, timeout_s: float) -> dict[str, Any]:
        """Waits until the server is at `version` at least; gives what it says about its weights then.

        Raises:
            ServerError: it does not get there in time.
        """
        deadline = self._clock() + timeout_s
        while True:
            info = self._require_client().info()
            if (info["version"] or 0) >= version:
                return info
            if self._clock() > deadline:
                raise ServerError("evergrad serve", f"is at version {info['version']}, not {version}: {info['error']}")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL: it gets no chance to say goodbye."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def died(self) -> bool:
        """Whether the process has ended; a connection may break a moment before it has."""
        if self._process is None:
            return True
        try:
            self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _require_client(self) -> InferenceClient:
        if self._client is None:
            raise ServerError("evergrad serve", "is closed")
        return self._client

    def close(self) -> None:
        """Ends the server."""
        if self._client is not None:
            self._client.close()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.kill()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
