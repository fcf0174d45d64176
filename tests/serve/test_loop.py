"""Serving, labelling and training as one loop of three processes: it learns, and a kill of either loses nothing."""

from __future__ import annotations

import signal
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from evergrad.history import History
from evergrad.serve.client import InferenceClient
from tests.pipeline.tasks import make_examples
from tests.serve.support import command, said, until

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
    with command(*serve, "0", folder=tmp_path) as server:
        url = said(server).split(" on ")[1].strip()
        with command("run", "run.toml", folder=tmp_path) as trainer:
            use(url, 30)
            learned(url, 25)
            trainer.send_signal(signal.SIGKILL)
            trainer.wait()
        use(url, 10)  # nobody learns meanwhile
        server.send_signal(signal.SIGKILL)
        server.wait()
    with (
        command(*serve, str(urlsplit(url).port), folder=tmp_path) as server,
        command("run", "run.toml", folder=tmp_path),
    ):
        assert said(server).split(" on ")[1].strip() == url
        learned(url, 40)
        use(url, 30)
        learned(url, 70)
    with History(tmp_path / "history", read_only=True) as history:
        assert history.end == sent
        assert np.array_equal(history.gather(np.arange(sent), ["x"])["x"], x[:sent])
    assert np.mean(right[-20:]) > max(0.8, np.mean(right[:5]) + 0.2)
