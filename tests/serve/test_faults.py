"""Logs that go wrong under a server: it serves its last good version, says why, and recovers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from evergrad.codec import encode
from evergrad.errors import LogUnavailable
from evergrad.log import UpdateLog, open_log
from evergrad.pytorch.bridge import ReplicaModule
from evergrad.replica import Replica
from evergrad.serve.client import InferenceClient
from evergrad.testing import FakeClock, FaultyStore
from tests.serve.support import BATCH, Training, ask_json, make_model, serving, until

SECOND = "updates/000000000002.eg"


def _truncated(log: UpdateLog) -> bytes:
    return (log.store.read(SECOND) or b"")[:-5]


def _other_digest(log: UpdateLog) -> bytes:
    found = log.read(2)
    assert found is not None
    return encode(dataclasses.replace(found[0], digest_after=found[0].digest_after ^ 1))


@pytest.mark.parametrize(
    ("damage", "problem"), [(_truncated, "is damaged"), (_other_digest, "should have digest"), (None, "")]
)
def test_a_damaged_update_is_not_served_and_heals(tmp_path: Path, damage, problem: str) -> None:
    training = Training(tmp_path)
    training.step()
    kept, good = training.outputs(), training.publisher.digest
    training.step()
    log = open_log(training.url)
    store = FaultyStore(log.store)
    store.instead[SECOND] = None if damage is None else damage(log)
    with serving(ReplicaModule(make_model(), Replica(UpdateLog(store, training.url)))) as (_, client):
        until(lambda: client.ready() and client.info()["version"] == 1)
        until(lambda: problem in str(client.info()["error"]))
        answer = client.infer(BATCH)
        assert (answer.version, answer.digest) == (1, good)
        assert np.array_equal(answer.outputs, kept)
        store.instead.clear()
        _reaches(client, training, 2)


def test_a_snapshot_heals_a_damaged_update(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.step()
    training.step()
    log = open_log(training.url)
    (tmp_path / SECOND).write_bytes(_truncated(log))
    with serving(training.servable()) as (_, client):
        until(lambda: client.ready() and "is damaged" in str(client.info()["error"]))
        training.publisher._writer.write_snapshot()
        _reaches(client, training, 2)
        assert client.info()["snapshots"] == 2


def test_a_log_that_vanishes_and_returns(tmp_path: Path) -> None:
    place, elsewhere = tmp_path / "log", tmp_path / "elsewhere"
    training = Training(place)
    training.step()
    with serving(training.servable()) as (_, client):
        until(lambda: client.ready() and client.info()["version"] == 1)
        place.rename(elsewhere)
        until(lambda: "no update log" in str(client.info()["error"]))
        assert client.infer(BATCH).digest == training.publisher.digest
        elsewhere.rename(place)
        training.step()
        _reaches(client, training, 2)


def test_staler_than_allowed_it_answers_and_is_not_ready(tmp_path: Path) -> None:
    training, clock = Training(tmp_path), FakeClock()
    servable = ReplicaModule(make_model(), Replica(training.url, clock=clock))
    with serving(servable, max_staleness_s=60.0, grpc_port=0) as (server, client):
        until(client.ready)  # nobody knows how stale the first version is
        training.step()
        until(lambda: client.info()["version"] == 1)
        clock.now_s = servable.replica.stats().newest_us / 1e6 + 59
        assert client.ready()
        clock.advance(2)
        assert not client.ready()
        assert ask_json(server.url, "GET", "/v2/models/model/ready")[0] == 503
        answer = client.infer(BATCH)
        assert (answer.version, answer.staleness_s > 60) == (1, True)
        assert ask_json(server.url, "GET", "/v2/health/live")[0] == 200


class _Unreachable(FaultyStore):
    """A store that can be switched off."""

    off = False

    def read(self, name: str) -> bytes | None:
        if self.off:
            raise LogUnavailable("faulty:", "no route to the store")
        return super().read(name)


def test_a_store_that_cannot_be_reached(tmp_path: Path) -> None:
    training = Training(tmp_path)
    store = _Unreachable(open_log(training.url).store)
    with serving(ReplicaModule(make_model(), Replica(UpdateLog(store, training.url)))) as (_, client):
        until(client.ready)
        store.off = True
        until(lambda: "no route to the store" in str(client.info()["error"]))
        assert client.infer(BATCH).version == 0
        training.step()
        store.off = False
        _reaches(client, training, 1)


def _reaches(client: InferenceClient, training: Training, version: int) -> None:
    until(lambda: client.info()["version"] == version and client.info()["error"] is None)
    answer = client.infer(BATCH)
    assert (answer.version, answer.digest) == (version, training.publisher.digest)
    assert np.array_equal(answer.outputs, training.outputs())


def test_a_model_that_changed_is_not_served_and_the_last_version_of_the_one_before_is(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.step()
    with serving(training.servable()) as (_, client):
        until(lambda: client.ready() and client.info()["version"] == 1)
        training.step()
        kept, good = training.outputs(), training.publisher.digest
        training.grow()
        training.step()
        until(lambda: "make a new Replica" in str(client.info()["error"]))
        answer = client.infer(BATCH)
        assert (answer.version, answer.digest) == (2, good)
        assert np.array_equal(answer.outputs, kept)
        assert client.ready()
