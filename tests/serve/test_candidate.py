"""A canary answers its share, a shadow is only compared; both are promoted or dropped while requests are under way."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evergrad.errors import ConfigError
from evergrad.serve.candidate import agreeing_rows
from evergrad.serve.client import InferenceClient
from evergrad.serve.server import Candidate, Server
from tests.serve.support import BATCH, Training, ask, ask_json, request_of, serving, until

AT = "/v2/models/model/candidate"


class Pair:
    """A served model, and a candidate from another log that is one version ahead."""

    def __init__(self, place: Path) -> None:
        self.stable, self.head = Training(place / "stable"), Training(place / "head")
        self.head.step()

    def candidate(self, **settings: Any) -> Candidate:
        return Candidate(servable=self.head.servable(), **settings)


def _infer(server: Server, request_id: str) -> dict[str, Any]:
    status, answer = ask_json(server.url, "POST", "/v2/models/model/infer", {"id": request_id, **request_of(BATCH)})
    assert status == 200
    return dict(answer)


def _ready(server: Server) -> None:
    until(lambda: (ask_json(server.url, "GET", AT)[1]["candidate"] or {}).get("version") == 1)


def _metric(server: Server, name: str, **labels: str) -> float:
    text = ask(server.url, "GET", "/metrics")[2].decode()
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    lines = [line for line in text.splitlines() if line.startswith(f"{name}{{") and all(w in line for w in wanted)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def test_a_canary_answers_its_share_and_requests_of_one_id_go_one_way(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    with serving(pair.stable.servable(), candidate=pair.candidate(share=0.5)) as (server, client):
        until(client.ready)
        _ready(server)
        tracks = {}
        for number in range(60):
            answer = _infer(server, f"request-{number}")
            tracks[number] = answer["parameters"].get("track", "stable")
            training = pair.head if tracks[number] == "candidate" else pair.stable
            assert answer["parameters"]["digest"] == f"{training.publisher.digest:016x}"
            assert answer["model_version"] == str(training.publisher.version)
        assert 10 < list(tracks.values()).count("candidate") < 50
        for number in range(10):
            assert _infer(server, f"request-{number}")["parameters"].get("track", "stable") == tracks[number]
        counts = [_metric(server, "evergrad_requests_total", track=track) for track in ("stable", "candidate")]
        assert sum(counts) == 70
        assert min(counts) > 10
        assert _metric(server, "evergrad_version", track="candidate") == 1
        assert client.infer(BATCH, 0).digest == pair.stable.publisher.digest, "versions are the stable model's"


@pytest.mark.parametrize(("share", "track"), [(0.0, "stable"), (1.0, "candidate")])
def test_a_share_is_set_while_it_serves(tmp_path: Path, share: float, track: str) -> None:
    pair = Pair(tmp_path)
    with serving(pair.stable.servable(), candidate=pair.candidate(share=0.5)) as (server, client):
        until(client.ready)
        _ready(server)
        status, told = ask_json(server.url, "PUT", AT, {"share": share})
        assert (status, told["candidate"]["share"]) == (200, share)
        assert {_infer(server, str(n))["parameters"].get("track", "stable") for n in range(20)} == {track}
        for body in ({"share": 2}, {"share": "x"}, {}, [1]):
            assert ask_json(server.url, "PUT", AT, body)[0] == 400


def test_a_shadow_computes_and_says_nothing(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    with serving(pair.stable.servable(), candidate=pair.candidate(share=1.0, shadow=True)) as (server, client):
        until(client.ready)
        _ready(server)
        for number in range(10):
            assert _infer(server, str(number))["parameters"]["digest"] == f"{pair.stable.publisher.digest:016x}"
        until(lambda: _metric(server, "evergrad_shadow_rows_total") == 20)
        assert _metric(server, "evergrad_requests_total", track="candidate") == 10
        agreed = agreeing_rows(pair.stable.outputs(), pair.head.outputs())[0]
        assert _metric(server, "evergrad_shadow_rows_total", agreed="yes") == 10 * agreed


def test_promoted_under_load_nothing_is_refused(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    with serving(pair.stable.servable(), candidate=pair.candidate(share=0.5)) as (server, client):
        until(client.ready)
        _ready(server)
        stop, errors, digests = threading.Event(), [], set()

        def keep_asking() -> None:
            try:
                with InferenceClient(server.url, timeout_s=60) as other:
                    while not stop.is_set():
                        digests.add(other.infer(BATCH).digest)
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=keep_asking) for _ in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: len(digests) == 2)
        assert ask_json(server.url, "POST", f"{AT}/promote") == (200, {"candidate": None})
        answers = [client.infer(BATCH) for _ in range(20)]
        stop.set()
        for thread in threads:
            thread.join()
        assert not errors
        assert {answer.digest for answer in answers} == {pair.head.publisher.digest}
        pair.head.step()
        until(lambda: client.info()["version"] == 2)
        assert np.array_equal(client.infer(BATCH).outputs, pair.head.outputs())
        assert _metric(server, "evergrad_version", track="stable") == 2
        assert ask_json(server.url, "POST", f"{AT}/promote")[0] == 404


def test_dropped_it_is_gone(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    with serving(pair.stable.servable(), candidate=pair.candidate(share=1.0)) as (server, client):
        until(client.ready)
        _ready(server)
        assert ask_json(server.url, "POST", f"{AT}/drop") == (200, {"candidate": None})
        assert client.infer(BATCH).digest == pair.stable.publisher.digest
        assert ask_json(server.url, "GET", AT) == (200, {"candidate": None})
        assert _metric(server, "evergrad_version", track="candidate") == 0
        assert ask_json(server.url, "PUT", AT, {"share": 0.5})[0] == 404


class Broken:
    """A candidate with a defect."""

    def __init__(self, replica: Any) -> None:
        self.replica = replica

    def predict(self, x: Any) -> Any:
        raise KeyError("secret")


def test_a_broken_shadow_is_counted_and_never_heard(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    candidate = Candidate(servable=Broken(pair.head.servable().replica), share=1.0, shadow=True)
    with serving(pair.stable.servable(), candidate=candidate) as (server, client):
        until(client.ready)
        _ready(server)
        client.infer(BATCH)
        until(lambda: _metric(server, "evergrad_requests_total", track="candidate", code="500") == 1)
        assert client.infer(BATCH).digest == pair.stable.publisher.digest


def test_a_version_of_now_against_newer_ones(tmp_path: Path) -> None:
    training = Training(tmp_path)
    stable = training.servable()
    stable.replica.sync()
    stable.replica.rollback(0)
    with serving(stable, candidate=Candidate(servable=training.servable(), share=1.0)) as (server, client):
        until(client.ready)
        training.step()
        _ready(server)
        assert client.info()["version"] == 0
        assert client.infer(BATCH).version == 1
        assert ask_json(server.url, "POST", f"{AT}/promote")[0] == 200
        assert client.info()["version"] == 1


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_a_fraction(tmp_path: Path, share: float) -> None:
    with pytest.raises(ConfigError, match="share"):
        Candidate(servable=Training(tmp_path).servable(), share=share)


def test_rows_that_agree() -> None:
    one = np.array([[0.1, 0.9], [0.8, 0.2]])
    assert agreeing_rows(one, one[:, ::-1]) == (0, 2)
    assert agreeing_rows(one, one[:1]) == (0, 2)
    assert agreeing_rows(np.array([1.0, 2.0]), np.array([1.0, 3.0])) == (1, 2)
    assert agreeing_rows(np.float32(1), np.float32(1)) == (1, 1)
