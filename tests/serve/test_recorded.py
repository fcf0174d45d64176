"""Servers of logs that carry how their model computes: no code of it, and the real names and shapes from the start."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import evergrad
from evergrad.demo.server import ServerProcess
from evergrad.log.signature import Signature, TensorInfo, read_signature
from evergrad.pytorch.bridge import ReplicaModule, load_weights
from evergrad.pytorch.module_of import module_of
from evergrad.replica import Replica
from evergrad.serve.signature import TensorType, recorded_types
from tests.pipeline.tasks import make_examples, make_model
from tests.serve.support import BATCH, Training, ask_json, request_of, serving

ROOT = Path(__file__).parents[2]
CONFIG = """
model = "tests.pipeline.tasks:make_model"
loss = "torch.nn.functional:cross_entropy"
log = "file:updates"
batch_size = 16
density = 0.1
optimizer = {factory = "torch.optim:SGD", lr = 0.05}
stream = {path = "stream.npz", batch = 8}
trigger = {kind = "every_n", n = 8}
sampler = {kind = "uniform"}
"""


def evergrad_command(folder: Path, *arguments: str, paths: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *filter(None, [paths])])}
    command = [sys.executable, "-m", "evergrad", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=170, check=False
    )


def test_a_server_of_a_log_that_run_made_needs_no_code_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = make_examples(80)
    np.savez(tmp_path / "stream.npz", x=x, y=y)
    (tmp_path / "config.toml").write_text(CONFIG)
    done = evergrad_command(tmp_path, "run", "config.toml", paths=str(ROOT))
    assert done.returncode == 0, done.stderr
    shown = " ".join(evergrad_command(tmp_path, "log", "show", "file:updates").stdout.split())
    assert re.search(r"built by the program [0-9a-f]{32}, [\d,]+ bytes, or the import path tests", shown), shown
    assert "takes and gives input F32 [-1, 8] -> output-0 F32 [-1, 4]" in shown
    log = f"file:{tmp_path / 'updates'}"
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))  # the server finds evergrad, and not `tests`
    monkeypatch.chdir(tmp_path)
    model = make_model().eval()
    with ServerProcess(log) as server:
        status, told = ask_json(f"http://127.0.0.1:{server._port}", "GET", "/v2/models/model")
        assert (status, told["inputs"]) == (200, [{"name": "input", "datatype": "FP32", "shape": [-1, 8]}])
        assert told["outputs"] == [{"name": "output-0", "datatype": "FP32", "shape": [-1, 4]}]
        for step in range(2):
            if step:  # another trainer goes on with the log, BatchNorm and all
                optimizer = torch.optim.SGD(model.parameters(), 0.5)
                with evergrad.Publisher(model, optimizer, log, density=1.0):
                    model.train()
                    model(torch.from_numpy(x)).square().mean().backward()
                    optimizer.step()
            replica = Replica(log)
            server.wait_for(replica.sync(), timeout_s=30)
            load_weights(model.eval(), replica)
            with torch.inference_mode():
                assert np.array_equal(server.predict(x[:5]), model(torch.from_numpy(x[:5])).numpy())


def test_an_import_path_in_a_log_is_not_followed_unasked(tmp_path: Path) -> None:
    (tmp_path / "trap.py").write_text("open('sprung', 'w').close()\n")
    training = Training(tmp_path / "updates")
    training.publisher.detach()
    optimizer = torch.optim.SGD(training.model.parameters(), 0.1)
    with evergrad.Publisher(training.model, optimizer, f"file:{tmp_path / 'other'}", density=1.0, factory="trap:make"):
        training.model(torch.from_numpy(BATCH)).sum().backward()
        optimizer.step()
    done = evergrad_command(tmp_path, "serve", "file:other")
    assert done.returncode == 1
    assert "FactoryNotTrusted" in done.stderr
    assert "--trust-factory" in done.stderr
    assert not (tmp_path / "sprung").exists()
    done = evergrad_command(tmp_path, "serve", "file:other", "--trust-factory")
    assert "ConfigError: model: 'trap:make' cannot be imported" in done.stderr
    assert (tmp_path / "sprung").exists()


def test_metadata_tells_what_is_recorded_until_somebody_says_otherwise(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.publisher.record(BATCH)
    signature = read_signature(training.publisher.log)
    assert signature is not None
    recorded = recorded_types(signature)
    servable = ReplicaModule(module_of(training.url), Replica(training.url))
    servable.replica.sync()
    with serving(servable, recorded=recorded) as (server, client):
        _, told = ask_json(server.url, "GET", "/v2/models/model")
        assert told["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 4]}]
        assert told["outputs"] == [{"name": "output-0", "datatype": "FP32", "shape": [-1, 3]}]
        assert np.array_equal(client.infer(BATCH).outputs, training.outputs())
        for name in ("input", "any"):
            status, _ = ask_json(server.url, "POST", "/v2/models/model/infer", request_of(BATCH, name=name))
            assert status == 200
        status, _ = ask_json(server.url, "POST", "/v2/models/model/infer", request_of(BATCH.reshape(4, 2)))
        assert status == 400
    servable = ReplicaModule(module_of(training.url), Replica(training.url))
    servable.replica.sync()
    said = TensorType.parse("mine:FP32:-1,4")
    with serving(servable, recorded=recorded, input=said) as (server, _):
        _, told = ask_json(server.url, "GET", "/v2/models/model")
        assert told["inputs"][0]["name"] == "mine"


def test_types_that_the_protocol_cannot_tell_are_not_told() -> None:
    fine = TensorInfo("x", "BOOL", (-1, 2))
    given = TensorInfo("y", "U8", (-1,))
    assert recorded_types(Signature(1, (fine,), (given,))) == (
        TensorType("x", "BOOL", (-1, 2)),
        TensorType("y", "UINT8", (-1,)),
    )
    assert recorded_types(Signature(1, (TensorInfo("x", "BF16", (2,)),), (fine,))) is None
    assert recorded_types(Signature(1, (fine, fine), (fine,))) is None
    assert recorded_types(Signature(1)) is None
