"""A real server process: killed in mid-stream, restarted, and again where its trainer is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from evergrad.serve.client import InferenceClient
from tests.serve.support import BATCH, Training, until

ROOT = Path(__file__).parents[2]
SERVER = """
import sys
from evergrad.pytorch.bridge import ReplicaModule
from evergrad.replica import Replica
from evergrad.serve.server import Settings, serve
from tests.serve.support import make_model

servable = ReplicaModule(make_model(), Replica(sys.argv[1]))
serve(servable, Settings(port=int(sys.argv[2])), on_start=lambda url: print(url, flush=True))
print("ended", flush=True)
"""


@contextmanager
def server_process(log: str, port: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, log, str(port)],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_killed_in_mid_stream_and_restarted(tmp_path: Path) -> None:
    training = Training(tmp_path)
    with server_process(training.url, 0) as (process, url):
        client = InferenceClient(url)
        for version in range(1, 40):
            training.step()
            if version == 20:
                until(lambda: client.ready() and client.info()["version"] > 0)
                process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not client.ready()
    with server_process(training.url, urlsplit(url).port or 0) as (process, again), client:
        assert again == url
        until(lambda: client.ready() and client.info()["version"] == training.publisher.version)
        training.step()
        head = training.publisher.version, training.publisher.digest
        until(lambda: client.info()["version"] == head[0])
        answer = client.infer(BATCH)
        assert (answer.version, answer.digest) == head
        assert np.array_equal(answer.outputs, training.outputs())
        process.send_signal(signal.SIGTERM)
        assert process.communicate() == ("ended\n", "")
        assert process.returncode == 0
