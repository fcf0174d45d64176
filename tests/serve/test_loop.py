"""Serving, labelling and training as one loop of three processes: it learns, and a kill of either loses nothing."""

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

from evergrad.history import History
from evergrad.serve.client import InferenceClient
from tests.pipeline.tasks import make_examples
from tests.serve.support import until
from tests.serve.test_workers import ROOT, said

MODEL = """
from torch import nn

def make():
    return nn.Linear(8, 4)
"""
CONFIG = """
model = "mine:make"
loss = "torch.nn.functional:cross_entropy"
log = "file:updates"
batch_size = 32
density = 0.5
history = "history"
checkpoints = {path = "checkpoints", every = 4}
score = "accuracy"

[optimizer]
factory = "torch.optim:Adam"
lr = 0.05

[stream]
kind = "feedback"
path = "feedback"

[trigger]
kind = "every_n"
n = 8

[sampler]
kind = "uniform"
"""


@contextmanager
def evergrad(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    paths = os.pathsep.join([str(folder), str(ROOT / "src")])
    process = subprocess.Popen(
        [sys.executable, "-m", "evergrad", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_what_is_served_learns_from_its_labels_and_kills_lose_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODEL)
    (tmp_path / "run.toml").write_text(CONFIG)
    x, y = make_examples(800)
    x = x.astype(np.float32)
    right: list[float] = []
    sent = 0

    def use(url: str, requests: int) -> None:
        nonlocal sent
        with InferenceClient(url, timeout_s=60) as client:
            until(client.ready)
            for _ in range(requests):
                part = slice(sent, sent + 8)
                answer = client.infer(x[part])
                right.append(float((answer.outputs.argmax(1) == y[part]).mean()))
                assert client.label({answer.id: y[part]})["joined"] == 1
                sent += 8

    def learned(url: str, version: int) -> None:
        with InferenceClient(url, timeout_s=60) as client:
            until(lambda: client.info()["version"] >= version)

    serve = ("serve", "file:updates", "--model", "mine:make", "--feedback", "feedback", "--port")
    with evergrad(tmp_path, *serve, "0") as server:
        url = said(server).split(" on ")[1].strip()
        with evergrad(tmp_path, "run", "run.toml") as trainer:
            use(url, 30)
            learned(url, 25)
            trainer.send_signal(signal.SIGKILL)
            trainer.wait()
        use(url, 10)  # nobody learns meanwhile
        server.send_signal(signal.SIGKILL)
        server.wait()
    with (
        evergrad(tmp_path, *serve, str(urlsplit(url).port)) as server,
        evergrad(tmp_path, "run", "run.toml"),
    ):
        assert said(server).split(" on ")[1].strip() == url
        learned(url, 40)
        use(url, 30)
        learned(url, 70)
    with History(tmp_path / "history", read_only=True) as history:
        assert history.end == sent
        assert np.array_equal(history.gather(np.arange(sent), ["x"])["x"], x[:sent])
    assert np.mean(right[-20:]) > max(0.8, np.mean(right[:5]) + 0.2)
