"""Clients that others wrote, against a server that applies updates meanwhile: tritonclient, KServe's, and curl."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from evergrad.serve.sdk import InferInput, InferRequest
from evergrad.serve.server import Server
from tests.serve.support import BATCH, Array, Training, request_of, serving, until

Found = tuple[str, Array]  # the version that answered, and its outputs
UPDATES = 30


class Live:
    """A server, and a trainer that keeps publishing until a client has seen enough."""

    def __init__(self, server: Server, training: Training) -> None:
        self.server, self.place = server, urlsplit(server.url).netloc
        self.grpc = f"127.0.0.1:{server.grpc_port}"
        self._training = training
        self._outputs = {"0": training.outputs().copy()}

    def check(self, infer: Callable[[], Found]) -> None:
        """Asks while updates arrive: every answer must be that of the version that it names."""
        done = threading.Event()

        def train() -> None:
            try:
                for _ in range(UPDATES):
                    self._training.step()
                    self._outputs[str(self._training.publisher.version)] = self._training.outputs().copy()
            finally:
                done.set()

        thread = threading.Thread(target=train)
        thread.start()
        found, finished = [], False
        while not finished:
            finished = done.is_set()
            found.append(infer())
        thread.join()
        last = str(self._training.publisher.version)
        until(lambda: infer()[0] == last)
        found.append(infer())
        for version, outputs in found:
            assert np.array_equal(outputs, self._outputs[version]), version


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    training = Training(tmp_path)
    with serving(training.servable(), grpc_port=0) as (server, client):
        until(client.ready)
        client.infer(BATCH)
        yield Live(server, training)


def test_tritonclient_http(live: Live) -> None:
    http = pytest.importorskip("tritonclient.http")
    client = http.InferenceServerClient(live.place)
    tensor = http.InferInput("input-0", list(BATCH.shape), "FP32")
    for binary in (True, False):
        tensor.set_data_from_numpy(BATCH, binary_data=binary)
        wanted = [http.InferRequestedOutput("output-0", binary_data=binary)]

        def infer(wanted: list[object] = wanted) -> Found:
            answer = client.infer("model", [tensor], outputs=wanted, request_id="mine")
            assert answer.get_response()["id"] == "mine"
            return answer.get_response()["model_version"], answer.as_numpy("output-0")

        live.check(infer)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("model")
    assert client.is_model_ready("model", "0")
    told = client.get_model_metadata("model")
    assert told["inputs"] == [{"name": "input-0", "datatype": "FP32", "shape": [-1, 4]}]
    assert client.infer("model", [tensor], model_version="1").get_response()["model_version"] == "1"
    refused = pytest.importorskip("tritonclient.utils").InferenceServerException
    with pytest.raises(refused, match="not held"):
        client.infer("model", [tensor], model_version="9999")
    client.close()


# In a process of its own: the protocol's messages can be loaded once, and the server's SDK has them already.
TRITON_GRPC = """
import json, sys
import numpy as np
import tritonclient.grpc as rpc

client = rpc.InferenceServerClient(sys.argv[1])
x = np.array(json.loads(sys.argv[2]), np.float32)
tensor = rpc.InferInput("input-0", list(x.shape), "FP32")
tensor.set_data_from_numpy(x)
assert client.is_server_ready() and client.is_model_ready("model", "0")
assert list(client.get_model_metadata("model").inputs[0].shape) == [-1, 4]
for line in sys.stdin:
    try:
        answer = client.infer("model", [tensor], model_version=line.strip())
        found = [answer.get_response().model_version, answer.as_numpy("output-0").tolist()]
    except rpc.InferenceServerException as error:
        found = ["refused", error.message()]
    print(json.dumps(found), flush=True)
"""


def test_tritonclient_grpc(live: Live) -> None:
    if importlib.util.find_spec("tritonclient") is None:
        pytest.skip("no tritonclient here")
    command = [sys.executable, "-c", TRITON_GRPC, live.grpc, json.dumps(BATCH.tolist())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def infer(version: str = "") -> Found:
            print(version, file=process.stdin, flush=True)
            found, outputs = json.loads(process.stdout.readline())
            return found, np.array(outputs, np.float32) if found != "refused" else outputs

        live.check(infer)
        assert infer("1")[0] == "1"
        assert "not held" in infer("9999")[1]
        process.stdin.close()


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_kserve(live: Live, protocol: str) -> None:
    import kserve  # the SDK's seam has read the program's arguments already

    with asyncio.Runner() as runner:

        async def make() -> object:
            if protocol == "rest":
                return kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2", retries=1))
            return kserve.InferenceGRPCClient(live.grpc, retries=0)

        client = runner.run(make())

        def infer() -> Found:
            tensor = InferInput("input-0", list(BATCH.shape), "FP32")
            tensor.set_data_from_numpy(BATCH)
            request = InferRequest("model", [tensor])
            place = (live.server.url, request, "model") if protocol == "rest" else (request,)
            answer = runner.run(client.infer(*place))
            version = answer.parameters["version"]  # its REST client forgets model_version
            if protocol == "grpc":
                version = version.int64_param
                assert answer.model_version == str(version)
            return str(version), answer.outputs[0].as_numpy().astype(np.float32)

        live.check(infer)
        runner.run(client.close())


def test_curl(live: Live) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl here")

    def infer() -> Found:
        url = f"{live.server.url}/v2/models/model/infer"
        command = [curl, "--silent", "--fail", "--json", json.dumps(request_of(BATCH)), url]
        answer = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        (output,) = answer["outputs"]
        return answer["model_version"], np.array(output["data"], np.float32).reshape(output["shape"])

    live.check(infer)
