"""Servers that are started before their log says how its model computes, or before there is any log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from evergrad.errors import FactoryNotTrusted, ModuleUnknown, NotSynced
from evergrad.log.signature import write_signature
from evergrad.pytorch.bridge import ReplicaModule
from evergrad.pytorch.module_of import module_of
from evergrad.pytorch.publisher import Publisher
from evergrad.replica import Replica
from evergrad.serve.client import InferenceClient
from evergrad.serve.servable import Candidate, Late
from evergrad.serve.signature import TensorType
from tests.pipeline.tasks import make_examples
from tests.serve.support import BATCH, Training, ask_json, command, make_model, request_of, said, serving, until
from tests.serve.test_recorded import CONFIG, ROOT, evergrad_command

TYPES = TensorType("mine", "FP32", (-1, 4)), TensorType("output-0", "FP32", (-1, 3))


@contextmanager
def served(log: str, folder: Path, *options: str) -> Iterator[tuple[str, Path]]:
    """`evergrad serve`: its URL, and a file of what it says on stderr."""
    words = folder / "words"
    with words.open("w") as file, command("serve", log, "--port", "0", *options, folder=ROOT, stderr=file) as process:
        yield said(process).split(" on ")[1].strip(), words


def refused(url: str, reason: str) -> None:
    """It lives, is not ready, and says why."""
    assert ask_json(url, "GET", "/v2/health/live")[0] == 200
    assert ask_json(url, "GET", "/v2/health/ready")[0] == 503
    for method, path, body in (
        ("GET", "/v2/models/model/ready", None),
        ("POST", "/v2/models/model/infer", request_of(BATCH)),
        ("GET", "/v2/models/model/versions/0", None),
    ):
        status, answer = ask_json(url, method, path, body)
        assert status == 503
        assert reason in answer["error"]
    with InferenceClient(url) as client:
        info = client.info()
    assert info["version"] is None
    assert info["digest"] is None


def test_serve_first_and_run_second_on_an_empty_folder(tmp_path: Path) -> None:
    x, y = make_examples(80)
    np.savez(tmp_path / "stream.npz", x=x, y=y)
    (tmp_path / "config.toml").write_text(CONFIG)
    with served(f"file:{tmp_path / 'updates'}", tmp_path) as (url, words), InferenceClient(url) as client:
        assert "waiting for the first version: no update log at" in words.read_text()
        refused(url, "waiting for the first version of")
        done = evergrad_command(tmp_path, "run", "config.toml", paths=str(ROOT))
        assert done.returncode == 0, done.stderr
        until(client.ready)
        until(lambda: client.info()["version"] == 10)
        _, told = ask_json(url, "GET", "/v2/models/model")
        assert told["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 8]}]
        assert told["outputs"] == [{"name": "output-0", "datatype": "FP32", "shape": [-1, 4]}]
        assert client.infer(x[:5].astype(np.float32)).outputs.shape == (5, 4)


def test_two_workers_may_be_started_before_the_log_too(tmp_path: Path) -> None:
    url = f"file:{tmp_path / 'updates'}"
    with command("serve", url, "--port", "0", "--workers", "2") as process:
        address = said(process).split(" on ")[1].strip()
        assert "no version yet" in said(process)
        Training(tmp_path / "updates").publisher.record(BATCH)
        with InferenceClient(address) as client:
            until(client.ready)
            assert client.infer(BATCH).version == 0


def test_a_log_at_its_first_version_is_waited_for(tmp_path: Path) -> None:
    training = Training(tmp_path / "updates")
    with served(training.url, tmp_path) as (url, words), InferenceClient(url) as client:
        assert "waiting for the trainer's first batch; so far the log at" in words.read_text()
        refused(url, "waiting for the trainer's first batch")
        assert "--model" in client.info()["error"]
        training.publisher.record(BATCH)
        until(client.ready)
        _, told = ask_json(url, "GET", "/v2/models/model")
        assert told["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 4]}]
        training.step()
        until(lambda: client.info()["version"] == 1)
        assert np.array_equal(client.infer(BATCH).outputs, training.outputs())


def test_updates_without_a_program_are_told_as_an_error_and_one_that_comes_late_heals(tmp_path: Path) -> None:
    training = Training(tmp_path / "updates")
    with served(training.url, tmp_path) as (url, words), InferenceClient(url) as client:
        training.step()
        until(lambda: "nothing can be served yet: ModuleUnknown" in words.read_text())
        refused(url, "does not say how to build its module")
        training.publisher.record(BATCH)
        until(client.ready)
        assert client.infer(BATCH).digest == training.publisher.digest


def test_a_program_that_is_missing_ends_the_command(tmp_path: Path) -> None:
    training = Training(tmp_path / "updates")
    signature = write_signature(training.publisher.log, (), (), b"{}")
    (tmp_path / "updates" / "programs" / f"{signature.program}.json").unlink()
    done = evergrad_command(tmp_path, "serve", "file:updates")
    assert done.returncode == 1
    assert "ProgramRefused" in done.stderr


def late(url: str) -> Late:
    replica = Replica(url)
    return Late(replica, lambda: (ReplicaModule(module_of(replica.log), replica), TYPES))


def track(url: str) -> str | None:
    status, answer = ask_json(url, "POST", "/v2/models/model/infer", request_of(BATCH))
    assert status == 200
    found: str | None = answer["parameters"].get("track")
    return found


def test_a_candidate_may_be_late_and_brings_its_own_types_when_promoted(tmp_path: Path) -> None:
    training, other = Training(tmp_path / "stable"), Training(tmp_path / "other")
    candidate = late(other.url)
    with serving(training.servable(), candidate=Candidate(servable=candidate, share=1.0)) as (server, client):
        until(client.ready)
        assert track(server.url) is None
        status, _ = ask_json(server.url, "POST", "/v2/models/model/candidate/promote", {})
        assert status == 503
        other.publisher.record(BATCH)
        until(lambda: candidate.missing is None)
        assert track(server.url) == "candidate"
        assert ask_json(server.url, "POST", "/v2/models/model/candidate/promote", {})[0] == 200
        assert ask_json(server.url, "GET", "/v2/models/model")[1]["inputs"][0]["name"] == "mine"


def test_looking_tells_waiting_from_failing(tmp_path: Path) -> None:
    training = Training(tmp_path)
    servable = late(training.url)
    assert servable.look() == f"waiting for the first version of {training.url}"
    servable.replica.sync()
    assert "first batch" in (servable.look() or "")
    with pytest.raises(NotSynced):
        servable.predict(BATCH)
    training.step()
    servable.replica.sync()
    with pytest.raises(ModuleUnknown):
        servable.look()
    training.publisher.record(BATCH)
    assert servable.look() is None
    assert (servable.missing, servable.recorded) == (None, TYPES)
    assert np.array_equal(servable.predict(BATCH)[0], training.outputs())


def test_a_log_with_an_untrusted_factory_is_waited_for_at_its_first_version_alone(tmp_path: Path) -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Publisher(model, optimizer, f"file:{tmp_path}", density=1.0, factory="trap:make"):
        servable = late(f"file:{tmp_path}")
        servable.replica.sync()
        assert "--trust-factory" in (servable.look() or "")
        model(torch.from_numpy(BATCH)).sum().backward()
        optimizer.step()
    servable.replica.sync()
    with pytest.raises(FactoryNotTrusted):
        servable.look()


def test_what_cannot_be_built_is_told_once_and_ends_with_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training = Training(tmp_path)

    def build() -> None:
        raise RuntimeError("no such device")

    servable = Late(Replica(training.url), build)  # type: ignore[arg-type]
    with serving(servable) as (server, _):
        until(lambda: servable.missing == "no such device")
        refused(server.url, "no such device")
    told = [record for record in caplog.records if "nothing can be served yet: RuntimeError" in record.message]
    assert len(told) == 1
