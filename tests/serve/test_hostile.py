"""Requests that are not what they claim to be: one per refusal, a protocol's error each, and the server stays up."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from evergrad.replica import Replica
from evergrad.serve.client import InferenceClient
from evergrad.serve.server import Server
from tests.serve.support import BATCH, Array, FromNothing, Training, ask, request_of, serving, until

INFER = "/v2/models/model/infer"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, InferenceClient]]:
    with serving(Training(tmp_path_factory.mktemp("log")).servable()) as (server, client):
        until(client.ready)
        yield server, client


def _two() -> dict[str, Any]:
    (tensor,) = request_of(BATCH)["inputs"]
    return {"inputs": [tensor, tensor]}


def _without(key: str) -> dict[str, Any]:
    request = request_of(BATCH)
    del request["inputs"][0][key]
    return request


JSON: dict[str, tuple[object, str]] = {
    "no inputs": ({}, "inputs"),
    "an empty list of inputs": ({"inputs": []}, "one input tensor, found 0"),
    "several inputs": (_two(), "one input tensor, found 2"),
    "not an object": ([1], "object"),
    "no data": (_without("data"), "either data or binary_data_size"),
    "no shape": (_without("shape"), "shape"),
    "no datatype": (_without("datatype"), "datatype"),
    "no name": (_without("name"), "name"),
    "data and a binary size": (request_of(BATCH, parameters={"binary_data_size": 4}), "either data"),
    "a binary size and no bytes": ({**request_of(BATCH, data=None, parameters={"binary_data_size": 4})}, "0 bytes"),
    "a shape that lies": (request_of(BATCH, shape=[3, 4]), "takes 12 values, found 8"),
    "a negative shape": (request_of(BATCH, shape=[-1, 4]), "sides"),
    "a shape of the universe": (request_of(BATCH, shape=[1 << 30] * 4), "values, found 8"),
    "a shape of strings": (request_of(BATCH, shape=["2", "4"]), "int"),
    "text for numbers": (request_of(BATCH, data=["x"] * 8), "not FP32"),
    "an unknown datatype": (request_of(BATCH, datatype="FP31"), "FP31"),
    "bytes": (request_of(BATCH, datatype="BYTES", data=["x"] * 8), "BYTES"),
    "a shape that the module cannot take": (request_of(BATCH, shape=[4, 2]), "does not take FP32 [4, 2]"),
    "a dtype that the module cannot take": (request_of(BATCH.astype(int), datatype="INT64"), "does not take INT64"),
    "an output that does not exist": ({**request_of(BATCH), "outputs": [{"name": "nope"}]}, "nope"),
}


@pytest.mark.parametrize("case", JSON)
def test_json_that_lies_is_a_400(server: tuple[Server, InferenceClient], case: str) -> None:
    content, problem = JSON[case]
    _refused(server, json.dumps(content).encode(), {}, problem)


@pytest.mark.parametrize("body", [b"", b"{", b"hello", b"\xff\xfe", b'{"inputs":[' + b"[" * 100_000, b"NaN"])
def test_what_is_not_json_is_a_400(server: tuple[Server, InferenceClient], body: bytes) -> None:
    _refused(server, body, {}, "not an inference request")


def _binary(size: object, shape: list[int]) -> bytes:
    request = request_of(BATCH, shape=shape, parameters={"binary_data_size": size})
    del request["inputs"][0]["data"]
    return json.dumps(request).encode()


BINARY: dict[str, tuple[bytes, int, int, str]] = {  # JSON, error in the header's length, bytes that follow, problem
    "fewer bytes than it says": (_binary(32, [2, 4]), 0, 31, "31 bytes follow"),
    "more bytes than it says": (_binary(32, [2, 4]), 0, 33, "1 bytes follow"),
    "bytes that do not fill the shape": (_binary(32, [2, 5]), 0, 32, "takes 40 bytes, found 32"),
    "a negative size": (_binary(-1, [2, 4]), 0, 32, "-1"),
    "a size of text": (_binary("32", [2, 4]), 0, 32, "'32'"),
    "a size of true": (_binary(True, [1]), 0, 1, "True"),
    "a header longer than the body": (_binary(32, [2, 4]), 1000, 32, "the body has"),
    "a header that ends early": (_binary(32, [2, 4]), -1, 32, "not an inference request"),
}


@pytest.mark.parametrize("case", BINARY)
def test_binary_lengths_that_lie_are_a_400(server: tuple[Server, InferenceClient], case: str) -> None:
    header, error, follow, problem = BINARY[case]
    length = {"Inference-Header-Content-Length": str(len(header) + error)}
    _refused(server, header + bytes(follow), length, problem)


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "9" * 30, "\u0661"])
def test_a_header_length_that_is_none(server: tuple[Server, InferenceClient], length: str) -> None:
    length = length.encode().decode("latin-1")
    _refused(server, b"{}", {"Inference-Header-Content-Length": length}, "Inference-Header-Content-Length")


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/v2/models/other/infer", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/other/ready", 404),
        ("GET", "/v2/models/other/weights_info", 404),
        ("GET", "/v2/models/model/versions/1", 404),
        ("GET", "/v2/models/model/versions/x", 404),
        ("POST", "/v2/models/model/versions/1/infer", 404),
        ("POST", "/v2/models/model/versions/-1/infer", 404),
        ("GET", "/v2/models/model/versions/1/ready", 404),
        ("GET", "/v2/models/other/versions/0", 404),
        ("POST", "/v2/models/model/candidate/promote", 404),
        ("POST", "/v2/models/model/candidate/drop", 404),
        ("GET", "/nothing", 404),
        ("GET", INFER, 405),
    ],
)
def test_what_is_not_there(server: tuple[Server, InferenceClient], method: str, path: str, expected: int) -> None:
    status, _, answer = ask(server[0].url, method, path, json.dumps(request_of(BATCH)).encode())
    assert status == expected
    assert list(json.loads(answer)) == ["error"]


def test_a_connection_that_stops_in_mid_request(server: tuple[Server, InferenceClient]) -> None:
    address = urlsplit(server[0].url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as raw:
        raw.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{".encode())
    with socket.create_connection((address.hostname, address.port), timeout=60) as raw:
        raw.sendall(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 400")
    assert server[1].infer(BATCH).version == 0


def test_a_request_that_is_too_large_is_refused_before_it_is_read(server: tuple[Server, InferenceClient]) -> None:
    address = urlsplit(server[0].url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as raw:
        raw.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {1 << 40}\r\n\r\n{{".encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 413")
    assert server[1].ready()


class Broken:
    """A servable with a defect of its own."""

    def __init__(self, url: str) -> None:
        self.replica = Replica(url)

    def predict(self, x: Array) -> tuple[Array, int]:
        raise KeyError("secret")


def test_a_defect_in_the_model_is_a_500_that_tells_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(Broken(Training(tmp_path).url)) as (server, client):
        until(client.ready)
        status, _, answer = ask(server.url, "POST", INFER, json.dumps(request_of(BATCH)).encode())
        assert status == 500
        assert json.loads(answer) == {"error": "KeyError in the server; its log says more"}
        until(lambda: "secret" in caplog.text)
        assert client.ready()


def test_a_refusal_is_no_defect_in_the_server_s_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(FromNothing(f"file:{tmp_path}")) as (server, _):
        for path in ("/v2/health/ready", "/v2/models/model/ready", "/v2/models/other", "/v2/models/model/versions/7"):
            assert ask(server.url, "GET", path)[0] in {404, 503}
        for path in (INFER, "/v2/models/model/versions/7/infer"):
            assert ask(server.url, "POST", path, b"{}")[0] == 400
            assert ask(server.url, "POST", path, json.dumps(request_of(BATCH)).encode())[0] == 503
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def _refused(server: tuple[Server, InferenceClient], body: bytes, headers: dict[str, str], problem: str) -> None:
    status, found, answer = ask(server[0].url, "POST", INFER, body, headers)
    assert (status, found["Content-Type"]) == (400, "application/json")
    error = json.loads(answer)
    assert list(error) == ["error"]
    assert problem in error["error"]
    assert "\n" not in error["error"]
    assert np.isfinite(server[1].infer(BATCH).outputs).all()
