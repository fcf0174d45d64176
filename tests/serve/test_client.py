"""The client: keeps its connection, finds a restarted server, and says what is wrong in one error."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from evergrad.errors import ServerError
from evergrad.serve.client import InferenceClient
from evergrad.serve.server import Server, Settings
from tests.serve.support import BATCH, Training, serving, until


def test_it_finds_the_server_again_after_a_restart(tmp_path: Path) -> None:
    training = Training(tmp_path)
    with serving(training.servable()) as (server, _):
        client = InferenceClient(server.url)
        until(client.ready)
        assert client.infer(BATCH).version == 0
    assert not client.ready()
    with pytest.raises(ServerError, match="does not answer"):
        client.infer(BATCH)
    training.step()
    with Server(training.servable(), Settings(port=urlsplit(server.url).port or 0)), client:
        until(lambda: client.ready() and client.info()["version"] == 1)
        assert client.infer(BATCH).digest == training.publisher.digest


def test_a_restart_between_two_requests_is_not_seen(tmp_path: Path) -> None:
    training = Training(tmp_path)
    with serving(training.servable()) as (server, _):
        client = InferenceClient(server.url)
        until(client.ready)
    with (
        Server(training.servable(), Settings(port=urlsplit(server.url).port or 0)),
        InferenceClient(server.url) as other,
        client,
    ):
        until(other.ready)
        assert client.infer(BATCH).version == 0


def test_refusals_and_unknown_models_are_errors(tmp_path: Path) -> None:
    with serving(Training(tmp_path).servable()) as (server, client):
        until(client.ready)
        with pytest.raises(ServerError, match=r"answered 400: the model does not take FP64 \[2, 4\]"):
            client.infer(BATCH.astype(float))
        with pytest.raises(ServerError, match="no datatype for"):
            client.infer(np.array(["text"]))
        with InferenceClient(server.url, "other") as other, pytest.raises(ServerError, match=r"404.*other"):
            other.info()
        assert client.infer(np.asfortranarray(BATCH).astype(">f4")).version == 0


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "127.0.0.1:80", "http://127.0.0.1:port", ""])
def test_what_is_not_a_url(url: str) -> None:
    with pytest.raises(ServerError, match="is not the URL of a server"):
        InferenceClient(url)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"this is not HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nInference-Header-Content-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
        b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n\xff\xff",
    ],
)
def test_a_server_that_talks_nonsense(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def talk() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(100_000)
                connection.sendall(answer)

        thread = threading.Thread(target=talk)
        thread.start()
        with InferenceClient(f"http://127.0.0.1:{listening.getsockname()[1]}") as client, pytest.raises(ServerError):
            client.infer(BATCH)
        thread.join()


def _python(code: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_client_and_server_are_importable_without_kserve_and_torch() -> None:
    _python(
        "import sys; sys.modules['kserve'] = None; sys.modules['torch'] = None\n"
        "import evergrad.serve.client\n"
        "from evergrad.serve.server import Server\n"
        "from evergrad.errors import MissingDependency\n"
        "assert 'fastapi' not in sys.modules and 'uvicorn' not in sys.modules\n"
        "try: Server(None)\n"
        "except MissingDependency as error: assert (error.package, error.extra) == ('kserve', 'serve')\n"
        "else: raise SystemExit('no error')"
    )


def test_kserve_does_not_read_the_program_s_arguments() -> None:
    _python(
        "import sys, evergrad.serve.sdk; assert sys.argv[1:] == ['--http_port', 'mine', '--workers'], sys.argv",
        *("--http_port", "mine", "--workers"),
    )
