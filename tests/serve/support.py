"""A tiny model in training, servers of it, and waiting that is bounded."""

from __future__ import annotations

import http.client
import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from evergrad.log import open_log
from evergrad.pytorch.bridge import ReplicaModule
from evergrad.pytorch.publisher import Publisher
from evergrad.replica import Replica
from evergrad.serve.client import InferenceClient
from evergrad.serve.server import Candidate, Server, Settings

Array = npt.NDArray[Any]
BATCH = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
ROOT = Path(__file__).parents[2]


def make_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(4, 3)


class Training:
    """A trainer of the tiny model; each `step` publishes one version."""

    def __init__(self, directory: Path) -> None:
        self.url = f"file:{directory}"
        self.model = make_model()
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        # The model is smaller than one update: by the bytes, each version would have its snapshot, which heals at once.
        self.publisher = Publisher(self.model, self._optimizer, self.url, density=0.5, snapshot_every_bytes=1 << 30)

    def step(self) -> None:
        self._optimizer.zero_grad()
        self.model(torch.from_numpy(BATCH)).square().sum().backward()
        self._optimizer.step()
        self.publisher.publish()

    def grow(self) -> None:
        """One parameter more: the next step begins a new generation of the log."""
        self.model.late = nn.Parameter(torch.ones(2))
        self._optimizer.add_param_group({"params": [self.model.late]})

    def servable(self) -> ReplicaModule:
        return ReplicaModule(make_model(), Replica(self.url))

    def outputs(self) -> Array:
        with torch.no_grad(), self.publisher.deployed():
            found: Array = self.model(torch.from_numpy(BATCH)).numpy()
        return found


class FromNothing:
    """A servable of a log in which nothing is yet."""

    def __init__(self, url: str) -> None:
        self.replica = Replica(open_log(url, create=True))

    def predict(self, x: Array) -> tuple[Array, int]:
        return x, self.replica.version


def until(condition: Callable[[], object], tries: int = 1500) -> None:
    """Waits until `condition` holds; gives up after so many tries, some 20 ms apart."""
    pause = threading.Event()
    for _ in range(tries):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError("the condition never came true")


@contextmanager
def serving(
    servable: Any, name: str = "model", candidate: Candidate | None = None, **settings: Any
) -> Iterator[tuple[Server, InferenceClient]]:
    chosen = Settings(name=name, port=0, **settings)
    started = Server(servable, chosen, candidate=candidate)
    token = None if chosen.token is None else chosen.token.secret
    with started as server, InferenceClient(server.url, name, timeout_s=60, token=token) as client:
        yield server, client


def ask(
    url: str, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """One request over a connection of its own: status, headers, body."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def ask_json(url: str, method: str, path: str, content: object = None) -> tuple[int, Any]:
    body = None if content is None else json.dumps(content).encode()
    status, _, answer = ask(url, method, path, body, {"Content-Type": "application/json"})
    return status, json.loads(answer)


def request_of(x: Array, **changes: object) -> dict[str, Any]:
    tensor = {"name": "input-0", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
    return {"inputs": [{**tensor, **changes}]}


@contextmanager
def command(*arguments: str, folder: Path = ROOT, stderr: Any = None) -> Iterator[subprocess.Popen[str]]:
    """`evergrad` in a process of its own, which finds the modules in `folder`."""
    paths = os.pathsep.join([str(folder), str(ROOT / "src")])
    process = subprocess.Popen(
        [sys.executable, "-m", "evergrad", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.terminate()


def said(process: subprocess.Popen[str]) -> str:
    """The next line that it says."""
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n"):  # byte by byte: what a buffer holds back, select does not see
        assert select.select([process.stdout], [], [], 60)[0], "it says nothing"
        line += os.read(process.stdout.fileno(), 1) or b"\n"
    return line.decode()
