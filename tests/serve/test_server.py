"""The server over real HTTP: the protocol's routes, and answers that know their version."""

from __future__ import annotations

import json
import math
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from evergrad.errors import ConfigError, ServerError
from evergrad.pytorch.bridge import ReplicaModule
from evergrad.pytorch.publisher import Publisher
from evergrad.replica import Replica
from evergrad.serve.server import Server, Settings, serve
from tests.serve.support import BATCH, FromNothing, Training, ask, ask_json, request_of, serving, until


def test_answers_follow_the_trainer_bit_for_bit(tmp_path: Path) -> None:
    training = Training(tmp_path)
    with serving(training.servable()) as (_, client):
        for version in range(4):
            until(lambda version=version: client.info()["version"] == version)
            answer = client.infer(BATCH)
            assert np.array_equal(answer.outputs, training.outputs())
            assert (answer.version, answer.digest) == (version, training.publisher.digest)
            assert (answer.staleness_s < math.inf) == (version > 0)
            assert (client.info()["staleness_s"] is None) == (version == 0)
            training.step()


def test_a_json_answer_carries_its_version(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.step()
    with serving(training.servable(), "digits-2") as (server, client):
        until(client.ready)
        status, answer = ask_json(server.url, "POST", "/v2/models/digits-2/infer", {"id": "a", **request_of(BATCH)})
    assert status == 200
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("a", "digits-2", "1")
    (output,) = answer["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("output-0", "FP32", [2, 3])
    assert np.array_equal(np.array(output["data"], np.float32).reshape(2, 3), training.outputs())
    facts = answer["parameters"]
    assert (facts["version"], facts["digest"]) == (1, f"{training.publisher.digest:016x}")
    assert facts["staleness_s"] >= 0


def test_binary_in_json_out_and_the_other_way_round(tmp_path: Path) -> None:
    training = Training(tmp_path)
    with serving(training.servable()) as (server, client):
        until(client.ready)
        binary: dict[str, Any] = request_of(BATCH, parameters={"binary_data_size": BATCH.nbytes})
        del binary["inputs"][0]["data"]
        header = json.dumps(binary).encode()
        status, headers, answer = ask(
            server.url,
            "POST",
            "/v2/models/model/infer",
            header + BATCH.tobytes(),
            {"Inference-Header-Content-Length": str(len(header))},
        )
        assert (status, headers["Content-Type"]) == (200, "application/json")
        assert json.loads(answer)["outputs"][0]["shape"] == [2, 3]
        wanted = {"outputs": [{"name": "output-0", "parameters": {"binary_data": True}}]}
        status, headers, answer = ask(
            server.url, "POST", "/v2/models/model/infer", json.dumps({**request_of(BATCH), **wanted}).encode()
        )
        length = int(headers["Inference-Header-Content-Length"])
        assert status == 200
        assert np.array_equal(np.frombuffer(answer[length:], np.float32).reshape(2, 3), training.outputs())


def test_metadata_and_health(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.step()
    with serving(training.servable()) as (server, client):
        until(lambda: client.info()["version"] == 1)
        assert ask_json(server.url, "GET", "/v2/health/live") == (200, {"live": True})
        assert ask_json(server.url, "GET", "/v2/health/ready") == (200, {"ready": True})
        assert ask_json(server.url, "GET", "/v2/models") == (200, {"models": ["model"]})
        assert ask_json(server.url, "GET", "/v2/models/model/ready") == (200, {"name": "model", "ready": True})
        _, metadata = ask_json(server.url, "GET", "/v2/models/model")
        assert metadata["versions"] == ["0", "1"]
        assert metadata["inputs"] == metadata["outputs"] == [], "nobody said, and nothing was answered yet"
        client.infer(BATCH)
        _, metadata = ask_json(server.url, "GET", "/v2/models/model")
        assert metadata["inputs"] == [{"name": "input-0", "datatype": "FP32", "shape": [-1, 4]}]
        assert metadata["outputs"] == [{"name": "output-0", "datatype": "FP32", "shape": [-1, 3]}]
        _, about = ask_json(server.url, "GET", "/v2")
        assert "model_repository_extension" not in about["extensions"]
        status, openapi = ask_json(server.url, "GET", "/openapi.json")
        assert status == 200
        assert "/v2/models/{model_name}/infer" in openapi["paths"]


def test_nobody_can_unload_the_model(tmp_path: Path) -> None:
    with serving(Training(tmp_path).servable()) as (server, client):
        for verb in ("load", "unload"):
            assert ask_json(server.url, "POST", f"/v2/repository/models/model/{verb}", {})[0] == 404
        until(client.ready)


def test_not_ready_before_the_first_version(tmp_path: Path) -> None:
    with serving(FromNothing(f"file:{tmp_path}")) as (server, client):
        until(lambda: client.info()["error"])
        assert client.info()["version"] is None
        assert ask_json(server.url, "GET", "/v2/health/ready")[0] == 503
        assert ask_json(server.url, "GET", "/v2/health/live")[0] == 200
        assert ask_json(server.url, "GET", "/v2/models/model")[1]["versions"] == []
        for _ in range(2):  # asking does not make it ready
            status, answer = ask_json(server.url, "POST", "/v2/models/model/infer", request_of(BATCH))
            assert (status, list(answer)) == (503, ["error"])
        assert ask_json(server.url, "GET", "/v2/models/model/ready")[0] == 503
        assert b"evergrad_version{" not in ask(server.url, "GET", "/metrics")[2]
        training = Training(tmp_path)
        until(client.ready)
        assert client.infer(BATCH).digest == training.publisher.digest


def test_metrics_say_what_is_served(tmp_path: Path) -> None:
    training = Training(tmp_path)
    with serving(training.servable()) as (server, client), serving(training.servable(), "second") as (_, second):
        until(lambda: second.ready() and client.ready())
        training.step()
        training.step()
        until(lambda: client.info()["version"] == 2)
        client.infer(BATCH)
        status, headers, text = ask(server.url, "GET", "/metrics")
        assert status == 200
        assert headers["Content-Type"].startswith("text/plain")
        found = dict(line.rsplit(" ", 1) for line in text.decode().splitlines() if line and line[0] != "#")
        info = client.info()
        assert float(found['evergrad_version{model_name="model",track="stable"}']) == 2
        assert float(found['evergrad_updates_total{model_name="model",track="stable"}']) == 2
        assert float(found['evergrad_snapshots_total{model_name="model",track="stable"}']) == 1
        assert (
            float(found['evergrad_update_bytes_total{model_name="model",track="stable"}']) == info["update_bytes"] > 0
        )
        assert 0 <= float(found['evergrad_staleness_seconds{model_name="model",track="stable"}']) < math.inf
        assert 'request_predict_seconds_count{model_name="model"}' in found
        _, headers, text = ask(server.url, "GET", "/metrics", headers={"Accept": "application/openmetrics-text"})
        assert text.count(b"# EOF") == 1


class Weights(nn.Module):
    """Answers with its own memory."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(1))
        self.register_buffer("table", torch.tensor([1.0, float("nan"), float("inf")]))

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.table


def test_values_that_json_does_not_have_are_null_and_binary_exact(tmp_path: Path) -> None:
    url = f"file:{tmp_path}"
    Publisher(module := Weights(), torch.optim.SGD(module.parameters()), url).detach()
    with serving(ReplicaModule(Weights(), Replica(url))) as (server, client):
        until(client.ready)
        status, answer = ask_json(server.url, "POST", "/v2/models/model/infer", request_of(BATCH))
        assert (status, answer["outputs"][0]["data"]) == (200, [1.0, None, None])
        assert np.array_equal(client.infer(BATCH).outputs, [1.0, np.nan, np.inf], equal_nan=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_serve_and_closes_the_replica(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    servable, told = Training(tmp_path).servable(), []

    def on_start(url: str) -> None:
        told.append(url)
        signal.raise_signal(number)

    serve(servable, Settings(port=0), on_start=on_start)
    assert told[0].startswith("http://127.0.0.1:")
    assert signal.getsignal(number) is before
    assert "evergrad-replica" not in [thread.name for thread in threading.enumerate()]


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    servable = Training(tmp_path).servable()
    taken = pytest.raises(ServerError, match="choose another host or port")
    with socket.create_server(("127.0.0.1", 0)) as other, taken:
        Server(servable, Settings(port=other.getsockname()[1]))
    with pytest.raises(ServerError, match="cannot listen there"):
        Server(servable, Settings(host="host.invalid", port=0))


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="port"):
        Settings(port=65536)
    with pytest.raises(ConfigError, match="name"):
        Settings(name="a/b")


def test_the_url_is_known_before_it_serves(tmp_path: Path) -> None:
    server = Server(Training(tmp_path).servable(), Settings(port=0))
    assert int(server.url.rsplit(":", 1)[1]) > 0
    server.close()
