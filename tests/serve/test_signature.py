"""What the model takes: said on the command line, checked, and told; or shown by what was answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evergrad.errors import ConfigError
from evergrad.serve.client import InferenceClient
from evergrad.serve.signature import TensorType
from tests.serve.support import BATCH, Training, ask_json, request_of, serving, until

IMAGE = TensorType("image", "FP32", (-1, 4))


def test_metadata_tells_real_names_and_shapes_before_any_request(tmp_path: Path) -> None:
    with serving(Training(tmp_path).servable(), input=IMAGE) as (server, client):
        until(client.ready)
        _, told = ask_json(server.url, "GET", "/v2/models/model")
        assert told["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 4]}]
        assert told["outputs"] == [{"name": "output-0", "datatype": "FP32", "shape": [-1, 3]}]
        with InferenceClient(server.url, input_name="image") as named:
            assert named.infer(BATCH).version == 0


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, "this model's input is 'image', found 'input-0'"),
        ({"name": "image", "shape": [4, 2]}, "expected FP32 [-1, 4], found FP32 [4, 2]"),
        ({"name": "image", "shape": [8]}, "expected FP32 [-1, 4], found FP32 [8]"),
        ({"name": "image", "datatype": "FP64"}, "expected FP32 [-1, 4], found FP64 [2, 4]"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    with serving(Training(tmp_path).servable(), input=IMAGE) as (server, client):
        until(client.ready)
        status, answer = ask_json(server.url, "POST", "/v2/models/model/infer", request_of(BATCH, **changes))
        assert (status, problem in answer["error"]) == (400, True)


def test_a_declared_input_that_the_model_cannot_take_shows_no_output(tmp_path: Path) -> None:
    with serving(Training(tmp_path).servable(), input=TensorType("x", "FP32", (-1, 9))) as (server, client):
        until(client.ready)
        _, told = ask_json(server.url, "GET", "/v2/models/model")
        assert (len(told["inputs"]), told["outputs"]) == (1, [])


@pytest.mark.parametrize("text", ["", "x", "x:FP32", "x:FP32:", "x:FP31:1", ":FP32:1", "x:FP32:-2", "x:FP32:a"])
def test_what_is_no_input(text: str) -> None:
    with pytest.raises(ConfigError, match="must look like image:FP32"):
        TensorType.parse(text)


def test_types_and_arrays() -> None:
    assert TensorType.of("y", np.zeros((5, 2), np.int64)) == TensorType("y", "INT64", (-1, 2))
    assert TensorType.of("y", np.float32(1).reshape(())).shape == ()
    assert IMAGE.example().shape == (1, 4)
    assert IMAGE.problem("image", np.zeros((7, 4), np.float32)) is None
