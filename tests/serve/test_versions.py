"""Older versions out of the undo ring: asked for by path, told in the metadata, refused clearly once they are gone."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from evergrad.errors import ServerError
from evergrad.pytorch.bridge import ReplicaModule
from evergrad.replica import Replica
from evergrad.serve.client import InferenceClient
from tests.serve.support import BATCH, Array, Training, ask_json, make_model, request_of, serving, until


def _history(training: Training, steps: int, client: InferenceClient) -> list[tuple[int, Array]]:
    """Digest and outputs of each version, the server having seen them all one by one."""
    found = [(training.publisher.digest, training.outputs().copy())]
    until(client.ready)
    for version in range(1, steps + 1):
        training.step()
        found.append((training.publisher.digest, training.outputs().copy()))
        until(lambda version=version: client.info()["version"] == version)
    return found


def test_each_version_in_the_ring_answers_as_it_did(tmp_path: Path) -> None:
    training = Training(tmp_path)
    with serving(training.servable()) as (server, client):
        history = _history(training, 5, client)
        for version in (0, 5, 2, 4, 1, 3):
            answer = client.infer(BATCH, version)
            assert (answer.version, answer.digest) == (version, history[version][0])
            assert np.array_equal(answer.outputs, history[version][1])
            head = client.infer(BATCH)
            assert (head.version, head.digest) == (5, history[5][0])
        assert ask_json(server.url, "GET", "/v2/models/model")[1]["versions"] == ["0", "1", "2", "3", "4", "5"]
        assert ask_json(server.url, "GET", "/v2/models/model/versions/3/ready")[0] == 200
        assert ask_json(server.url, "GET", "/v2/models/model/versions/3")[1]["name"] == "model"


def test_a_version_that_has_left_the_ring_is_a_clear_404(tmp_path: Path) -> None:
    training = Training(tmp_path)
    servable = ReplicaModule(make_model(), Replica(training.url, undo_bytes=600))
    with serving(servable) as (server, client):
        _history(training, 6, client)
        held = servable.replica.versions
        assert 0 not in held
        for path in ("/versions/0/infer", "/versions/7/infer"):
            status, answer = ask_json(server.url, "POST", f"/v2/models/model{path}", request_of(BATCH))
            assert status == 404
            assert f"is not held, only {held[0]} to 6" in answer["error"]
        with pytest.raises(ServerError, match="404"):
            client.infer(BATCH, 0)
        assert client.infer(BATCH).version == 6


def test_older_versions_are_asked_for_while_updates_arrive(tmp_path: Path) -> None:
    training = Training(tmp_path)
    with serving(training.servable()) as (server, client):
        history = _history(training, 3, client)
        stop, wrong = threading.Event(), []

        def ask_old(version: int) -> None:
            with InferenceClient(server.url, timeout_s=60) as other:
                while not stop.is_set():
                    answer = other.infer(BATCH, version)
                    if answer.digest != history[version][0] or not np.array_equal(answer.outputs, history[version][1]):
                        wrong.append(answer)

        threads = [threading.Thread(target=ask_old, args=(version,)) for version in (1, 3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(40):
                training.step()
                answer = client.infer(BATCH)
                assert answer.version <= training.publisher.version
            until(lambda: client.info()["version"] == training.publisher.version)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not wrong
        assert client.infer(BATCH).digest == training.publisher.digest
