"""The examples of servers, each as a user runs it, asked while a trainer publishes: no answer mixes two versions."""

from __future__ import annotations

import importlib.util
import json
import re
import secrets
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.examples.support import (
    ROWS,
    SERVING,
    Answer,
    Training,
    ask_while_publishing,
    by_lines,
    example,
    free_port,
    make_model,
    post,
    until,
)

DIRECTORY = "updates"


def test_fastapi_is_not_ready_before_the_first_version_and_then_always_fresh(tmp_path: Path) -> None:
    port = free_port()
    url, log = f"http://127.0.0.1:{port}", f"file:{tmp_path / DIRECTORY}"
    arguments = ["-m", "uvicorn", "fastapi_app:app", "--port", str(port)]
    with example(arguments, tmp_path, LOG=log) as server:
        status, body = until(lambda: post(f"{url}/health"), server)
        assert (status, "no version yet" in body["error"]) == (503, True)
        assert post(f"{url}/predict", {"x": ROWS.tolist()})[0] == 503
        training = Training(tmp_path / DIRECTORY)
        until(lambda: post(f"{url}/health")[0] == 200, server)

        def ask() -> Answer:
            status, body = post(f"{url}/predict", {"x": ROWS.tolist()})
            assert status == 200
            return body["y"], body["version"]

        ask_while_publishing(training, ask)
        status, body = post(f"{url}/health")
        assert (status, body["version"]) == (200, len(training.said) - 1)
        assert body["digest"] == f"{training.digest:016x}"
        assert post(f"{url}/predict", {"x": "no"})[0] == 422


def test_an_onnx_session_is_always_fresh(tmp_path: Path) -> None:
    training = Training(tmp_path / DIRECTORY)
    (tmp_path / "model.onnx").write_bytes(exported(make_model()))
    environment = {"LOG": training.log, "MODEL": str(tmp_path / "model.onnx")}
    with by_lines(["onnx_session.py"], tmp_path, **environment) as ask:
        ask_while_publishing(training, ask)


def exported(model: torch.nn.Module) -> bytes:
    """The graph that an exporter makes of the model, with the weights that it has now."""
    nodes = [
        helper.make_node("Gemm", ["x", "0.weight", "0.bias"], ["h"], transB=1),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("Gemm", ["t", "2.weight", "2.bias"], ["y"], transB=1),
    ]
    weights = [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in model.state_dict().items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 3])
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return made.SerializeToString()  # type: ignore[no-any-return]


def test_a_compiled_module_is_always_fresh(tmp_path: Path) -> None:
    training = Training(tmp_path / DIRECTORY)
    environment = {"LOG": training.log, "BACKEND": "aot_eager", "TORCH_LOGS": "recompiles"}
    with by_lines(["compiled_module.py"], tmp_path, **environment) as ask:
        ask_while_publishing(training, ask)
    assert "Recompiling" not in (tmp_path / "stderr").read_text()


def test_ray_serve_is_always_fresh(tmp_path: Path) -> None:
    training, port = Training(tmp_path / DIRECTORY), free_port()
    environment = {"LOG": training.log, "PORT": str(port), "RAY_USAGE_STATS_ENABLED": "0"}
    # A token of its own, or Ray leaves one in the user's home.
    environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    with example(["ray_serve.py"], tmp_path, **environment) as server:

        def ask() -> Answer:
            status, body = post(f"http://127.0.0.1:{port}/", {"x": ROWS.tolist()})
            assert status == 200
            return body["y"], body["version"]

        until(lambda: post(f"http://127.0.0.1:{port}/-/routes")[1], server)
        until(lambda: post(f"http://127.0.0.1:{port}/", {"x": ROWS.tolist()})[0] == 200, server)
        ask_while_publishing(training, ask)


def test_litserve_is_always_fresh(tmp_path: Path) -> None:
    training, port = Training(tmp_path / DIRECTORY), free_port()
    with (
        example(["litserve_app.py"], tmp_path, LOG=training.log, PORT=str(port)) as server,
        ThreadPoolExecutor(len(ROWS)) as users,
    ):

        def ask_one(row: list[float]) -> dict[str, Any]:
            status, body = post(f"http://127.0.0.1:{port}/predict", {"x": row})
            assert status == 200
            return body  # type: ignore[no-any-return]

        def ask() -> Answer:
            found = list(users.map(ask_one, ROWS.tolist()))
            if len({answer["version"] for answer in found}) > 1:
                return ask()  # rows that came to two batches
            return [answer["y"] for answer in found], found[0]["version"]

        until(lambda: post(f"http://127.0.0.1:{port}/predict", {"x": ROWS[0].tolist()})[0] == 200, server)
        ask_while_publishing(training, ask)


@dataclass
class Tensor:
    """Triton's: made of a name and an array."""

    name: str
    array: npt.NDArray[Any]

    def as_numpy(self) -> npt.NDArray[Any]:
        return self.array


@dataclass
class InferenceResponse:
    output_tensors: list[Tensor]
    error: Any = None
    parameters: Mapping[str, str | int | bool] = field(default_factory=dict)


def get_input_tensor_by_name(request: list[Tensor], name: str) -> Tensor | None:
    return next((tensor for tensor in request if tensor.name == name), None)


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example's module, beside a stand-in for what Triton gives it."""
    given = ModuleType("triton_python_backend_utils")
    given.__dict__.update(
        Tensor=Tensor, InferenceResponse=InferenceResponse, get_input_tensor_by_name=get_input_tensor_by_name
    )
    monkeypatch.setitem(sys.modules, given.__name__, given)
    spec = importlib.util.spec_from_file_location("model", SERVING / "triton_python_backend" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_model_of_triton_is_always_fresh_and_a_batch_of_one_version(tmp_path: Path, triton: ModuleType) -> None:
    training, model = Training(tmp_path / DIRECTORY), triton.TritonPythonModel()
    parameters = {"log": {"string_value": training.log}}
    model.initialize({"model_name": "fresh", "model_config": json.dumps({"parameters": parameters})})

    def ask() -> Answer:
        requests = [[Tensor("x", ROWS[:2])], [Tensor("x", ROWS[:0])], [Tensor("x", ROWS[2:])]]
        responses = model.execute(requests)
        assert [[t.name for t in response.output_tensors] for response in responses] == [["y"]] * 3
        (version,) = {response.parameters["evergrad_version"] for response in responses}
        arrays = [response.output_tensors[0].array for response in responses]
        assert [array.shape for array in arrays] == [(2, 3), (0, 3), (1, 3)]
        return np.concatenate(arrays).tolist(), version

    ask_while_publishing(training, ask)
    model.finalize()
    kept = ask()
    training.step()
    assert ask() == kept


def test_tritons_configuration_tells_what_the_model_takes_and_gives() -> None:
    text = (SERVING / "triton_python_backend" / "config.pbtxt").read_text()
    assert text.count("[") == text.count("]")
    assert text.count("{") == text.count("}")
    shapes = re.findall(r'name: "(\w)", data_type: TYPE_FP32, dims: \[ (\d+) \]', text)
    assert shapes == [("x", str(make_model()[0].in_features)), ("y", str(make_model()[2].out_features))]
    assert re.search(r'key: "log", value: \{ string_value: "file:', text)


def test_an_answer_of_two_versions_would_be_found(tmp_path: Path) -> None:
    training, mixed = Training(tmp_path / DIRECTORY), make_model()
    old = {name: tensor.clone() for name, tensor in training.model.state_dict().items()}
    training.step()
    training.judge([(said.tolist(), version) for version, said in enumerate(training.said)])
    mixed.load_state_dict({**training.model.state_dict(), "2.bias": old["2.bias"]})
    with torch.inference_mode():
        y = mixed(torch.from_numpy(ROWS)).tolist()
    for version in (0, 1):
        with pytest.raises(AssertionError):
            training.judge([(y, version)])
    with pytest.raises(AssertionError):
        training.judge([(training.said[1].tolist(), 0)])
