"""No answer mixes two versions, and none lies about its own, while hundreds or thousands of updates are applied."""

from __future__ import annotations

import itertools
import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from evergrad.log import UpdateLog, open_log
from evergrad.pytorch.bridge import ReplicaModule
from evergrad.pytorch.publisher import Publisher
from evergrad.replica import Replica
from evergrad.serve.client import Answer, InferenceClient
from evergrad.serve.servable import Servable
from evergrad.testing import FaultyStore
from tests.serve.support import Array, Training, serving, until

# `make torn-reads` takes the long way: 10,000 updates under 8 clients.
UPDATES, CLIENTS = int(os.environ.get("EVERGRAD_TORN_UPDATES", "300")), 8
ONE = np.zeros((1, 1), np.float32)


class Level(nn.Module):
    """All weights are one number, minus the version: the smallest and the largest tell any mix, and any lie."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(20_000))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.weight.min(), self.weight.max()]).expand(len(x), 2)


class Slow:
    """Reads one weight, lets the replica's thread run, reads another: only the server's own pin keeps it whole."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica

    def predict(self, x: Array) -> tuple[Array, int]:
        weight, pause = self.replica.weights["weight"], threading.Event()
        version, first = self.replica.version, weight[0]
        pause.wait(0.001)
        return np.array([[first, weight[-1]]] * len(x)), version


@pytest.mark.parametrize("make", [lambda replica: ReplicaModule(Level(), replica), Slow], ids=["module", "slow"])
def test_no_answer_is_torn(tmp_path: Path, make: Callable[[Replica], Servable]) -> None:
    url, module = f"file:{tmp_path}", Level()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    answers: queue.SimpleQueue[Answer | Exception] = queue.SimpleQueue()
    stop = threading.Event()

    def keep_asking(server_url: str) -> None:
        try:
            with InferenceClient(server_url, timeout_s=60) as client:
                for number in itertools.count():
                    if stop.is_set():
                        return
                    rows = 1 + number % 3
                    answer = client.infer(np.zeros((rows, 1), np.float32))
                    assert len(answer.outputs) == rows
                    answers.put(answer)
        except Exception as error:
            answers.put(error)

    with Publisher(module, optimizer, url, density=1.0) as publisher, serving(make(Replica(url))) as (server, client):
        digests = {0: publisher.digest}
        until(client.ready)
        threads = [threading.Thread(target=keep_asking, args=(server.url,)) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        seen: list[Answer | Exception] = []
        try:
            for _ in range(UPDATES):
                optimizer.zero_grad()
                module.weight.sum().backward()
                optimizer.step()
                published = publisher.publish()
                assert published is not None
                digests[published.version] = publisher.digest
                seen.append(answers.get(timeout=60))
            until(lambda: client.info()["version"] == UPDATES)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        while not answers.empty():
            seen.append(answers.get())
        versions = set()
        for answer in seen:
            assert isinstance(answer, Answer), answer
            assert np.array_equal(answer.outputs, np.full((len(answer.outputs), 2), -answer.version, np.float32))
            assert answer.digest == digests[answer.version]
            versions.add(answer.version)
        assert len(versions) > 10
        assert client.infer(ONE).digest == publisher.digest


class Impatient(Replica):
    """The next version is written in at the very moment that a pin is released."""

    def __init__(self, url: str, hidden: str) -> None:
        self.store = FaultyStore(open_log(url).store, instead={hidden: None})
        super().__init__(UpdateLog(self.store, url))

    @contextmanager
    def pin(self) -> Iterator[int]:
        with super().pin() as version:
            yield version
        self.store.instead.clear()
        self.sync()


class Bias:
    """Answers with a view of the weights themselves."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica

    def predict(self, x: Array) -> tuple[Array, int]:
        return self.replica.weights["bias"], self.replica.version


def test_an_answer_is_of_one_version_even_if_the_next_follows_at_once(tmp_path: Path) -> None:
    training = Training(tmp_path)
    digest, bias = training.publisher.digest, training.model.bias.detach().numpy().copy()
    training.step()
    assert not np.array_equal(training.model.bias.detach().numpy(), bias)
    with serving(Bias(Impatient(training.url, "updates/000000000001.eg"))) as (_, client):
        until(client.ready)
        first, second = client.infer(ONE), client.infer(ONE)
    assert (first.version, first.digest) == (0, digest)
    assert np.array_equal(first.outputs, bias)
    assert (second.version, second.digest) == (1, training.publisher.digest)
    assert first.staleness_s == float("inf") > second.staleness_s
