"""The gRPC face: the protocol's calls, answers of one version, and refusals that are statuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from evergrad.errors import ServerError
from evergrad.serve.sdk import messages, services
from evergrad.serve.server import Server, Settings
from tests.serve.support import BATCH, Training, ask, serving, until


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(tmp_path)


@pytest.fixture
def stub(training: Training) -> Iterator[Any]:
    with serving(training.servable(), grpc_port=0, max_request_bytes=100_000) as (server, client):
        until(client.ready)
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            yield services.GRPCInferenceServiceStub(channel)


def message(raw: bytes | None = BATCH.tobytes(), **changes: Any) -> Any:
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 4], **changes}
    return messages.ModelInferRequest(
        model_name="model", inputs=[tensor], raw_input_contents=[] if raw is None else [raw]
    )


def outputs(answer: Any) -> np.ndarray:
    (tensor,) = answer.outputs
    return np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(list(tensor.shape))


def test_answers_follow_the_trainer_bit_for_bit(training: Training, stub: Any) -> None:
    for version in range(3):
        until(lambda version=version: stub.ModelInfer(message()).model_version == str(version))
        answer = stub.ModelInfer(message())
        assert np.array_equal(outputs(answer), training.outputs())
        assert answer.parameters["digest"].string_param == f"{training.publisher.digest:016x}"
        assert answer.parameters["version"].int64_param == version
        training.step()
    until(lambda: stub.ModelInfer(message()).model_version == "3")
    old = message()
    old.model_version, old.id = "1", "mine"
    answer = stub.ModelInfer(old)
    assert (answer.model_version, answer.id) == ("1", "mine")
    typed = message(None, contents={"fp32_contents": BATCH.ravel().tolist()})
    assert np.array_equal(outputs(stub.ModelInfer(typed)), training.outputs())


def test_health_and_metadata(training: Training, stub: Any) -> None:
    assert stub.ServerLive(messages.ServerLiveRequest()).live
    assert stub.ServerReady(messages.ServerReadyRequest()).ready
    assert stub.ModelReady(messages.ModelReadyRequest(name="model")).ready
    assert stub.ModelReady(messages.ModelReadyRequest(name="model", version="0")).ready
    assert list(stub.ServerMetadata(messages.ServerMetadataRequest()).extensions) == ["binary_tensor_data"]
    stub.ModelInfer(message())
    told = stub.ModelMetadata(messages.ModelMetadataRequest(name="model"))
    assert (told.platform, list(told.versions)) == ("evergrad", ["0"])
    assert [list(each.shape) for each in (*told.inputs, *told.outputs)] == [[-1, 4], [-1, 3]]


def _named(name: str = "other", version: str = "") -> Any:
    request = message()
    request.model_name, request.model_version = name, version
    return request


def _wanting(output: str) -> Any:
    request = message()
    request.outputs.add(name=output)
    return request


REFUSED: dict[str, tuple[Any, grpc.StatusCode, str]] = {
    "an unknown model": (_named(), grpc.StatusCode.NOT_FOUND, "other"),
    "an unknown version": (_named("model", "7"), grpc.StatusCode.NOT_FOUND, "version 7 is not held"),
    "a version that is no number": (_named("model", "x"), grpc.StatusCode.NOT_FOUND, "a version is a number"),
    "fewer bytes than the shape": (message(bytes(31)), grpc.StatusCode.INVALID_ARGUMENT, "takes 32 bytes, found 31"),
    "no data": (message(None), grpc.StatusCode.INVALID_ARGUMENT, "takes 8 values, found 0"),
    "data twice": (message(contents={"fp32_contents": [1.0]}), grpc.StatusCode.INVALID_ARGUMENT, "beside"),
    "a negative shape": (message(shape=[-1, 4]), grpc.StatusCode.INVALID_ARGUMENT, "sides"),
    "an unknown datatype": (message(datatype="FP31"), grpc.StatusCode.INVALID_ARGUMENT, "FP31"),
    "bytes": (message(datatype="BYTES"), grpc.StatusCode.INVALID_ARGUMENT, "BYTES"),
    "a shape that the module cannot take": (message(shape=[4, 2]), grpc.StatusCode.INVALID_ARGUMENT, "does not take"),
    "no inputs": (messages.ModelInferRequest(model_name="model"), grpc.StatusCode.INVALID_ARGUMENT, "found 0"),
    "an output that does not exist": (_wanting("nope"), grpc.StatusCode.INVALID_ARGUMENT, "nope"),
    "a message too large": (message(bytes(200_000)), grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max"),
}


def test_what_is_not_a_request_is_refused_by_status(stub: Any) -> None:
    for case, (request, status, problem) in REFUSED.items():
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(request)
        assert (case, caught.value.code()) == (case, status)
        assert problem in caught.value.details(), case
        assert "\n" not in caught.value.details()
    request = message()
    request.raw_input_contents.append(b"")
    with pytest.raises(grpc.RpcError, match="1 inputs, and 2 raw_input_contents"):
        stub.ModelInfer(request)
    with pytest.raises(grpc.RpcError) as caught:
        stub.RepositoryModelUnload(messages.RepositoryModelUnloadRequest(model_name="model"))
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert stub.ModelInfer(message()).model_version == "0"


def test_a_grpc_port_in_use_is_told(training: Training) -> None:
    with serving(training.servable(), grpc_port=0) as (server, _):
        again = Server(training.servable(), Settings(port=0, grpc_port=server.grpc_port))
        with pytest.raises(ServerError, match="another gRPC port"):
            again.start()


def test_both_faces_are_counted_together(training: Training) -> None:
    with serving(training.servable(), grpc_port=0) as (server, client):
        until(client.ready)
        client.infer(BATCH)
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            stub = services.GRPCInferenceServiceStub(channel)
            stub.ModelInfer(message())
            with pytest.raises(grpc.RpcError):
                stub.ModelInfer(message(bytes(3)))
        text = ask(server.url, "GET", "/metrics")[2].decode()
    assert 'evergrad_requests_total{code="200",model_name="model",track="stable"} 2.0' in text
    assert 'evergrad_requests_total{code="400",model_name="model",track="stable"} 1.0' in text
