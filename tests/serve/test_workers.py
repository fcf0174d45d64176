"""Several workers behind one port: all serve, one that dies comes back, and all end with their parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from evergrad.errors import ServerError
from evergrad.serve.client import InferenceClient
from evergrad.serve.workers import supervise
from tests.serve.support import BATCH, Training, ask, command, said, until


def children(parent: int) -> list[int]:
    found = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(child) for child in found.read_text().split()]


def alive(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts processes in /proc")
def test_two_workers_share_a_port_one_dies_and_all_end_with_their_parent(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.step()
    with command(
        "serve", training.url, "--model", "tests.serve.support:make_model", "--port", "0", "--workers", "2"
    ) as parent:
        url = said(parent).split(" on ")[1].strip()
        assert said(parent).endswith(f"{url}\n")
        workers = children(parent.pid)
        assert len(workers) == 2
        answered = set()

        def all_answer() -> bool:
            with InferenceClient(url, timeout_s=60) as client:  # a connection each: the kernel spreads them
                assert client.infer(BATCH).digest == training.publisher.digest
            text = ask(url, "GET", "/metrics")[2].decode()
            answered.add(
                next(line.split('worker="')[1][0] for line in text.splitlines() if "evergrad_version{" in line)
            )
            return answered == {"1", "2"}

        until(all_answer)
        text = ask(url, "GET", "/metrics")[2].decode()
        total = next(line for line in text.splitlines() if line.startswith("evergrad_requests_total{"))
        assert float(total.rsplit(" ", 1)[1]) >= 2, "summed over the workers"
        os.kill(workers[0], signal.SIGKILL)
        until(lambda: len(children(parent.pid)) == 2 and workers[0] not in children(parent.pid))
        assert said(parent).endswith(f"{url}\n")
        training.step()
        workers = children(parent.pid)
        parent.kill()
        until(lambda: not any(alive(worker) for worker in workers))


def test_a_worker_that_cannot_start_is_told() -> None:
    with pytest.raises(ServerError, match="ended 3 times as soon as it was started, last with 3"):
        supervise([[sys.executable, "-c", "raise SystemExit(3)"]], dict(os.environ), lambda: False)


def test_stopped_workers_are_ended(tmp_path: Path) -> None:
    stop = threading.Event()
    code = f"import pathlib, time; pathlib.Path({str(tmp_path / 'up')!r}).touch(); time.sleep(600)"
    thread = threading.Thread(
        target=supervise, args=([[sys.executable, "-c", code]], dict(os.environ), stop.is_set), daemon=True
    )
    thread.start()
    until((tmp_path / "up").exists)
    stop.set()
    thread.join(30)
    assert not thread.is_alive()


def test_not_ready_until_the_log_is_begun(tmp_path: Path) -> None:
    place = tmp_path / "log"
    options = ("--model", "tests.serve.support:make_model", "--port", "0", "--input", "x:FP32:-1,4", "--grpc-port", "0")
    with command("serve", f"file:{place}", *options) as process:
        line = said(process)
        assert "no version yet" in line
        assert "and gRPC on port " in line
        url = line.split(" on ")[1].split()[0]
        assert ask(url, "GET", "/v2/health/ready")[0] == 503
        assert ask(url, "GET", "/v2/models/model")[0] == 200
        training = Training(place)
        with InferenceClient(url, timeout_s=60, input_name="x") as client:
            until(client.ready)
            assert client.infer(BATCH).digest == training.publisher.digest
        told = json.loads(ask(url, "GET", "/v2/models/model")[2])
        assert (told["inputs"][0]["name"], told["outputs"][0]["shape"]) == ("x", [-1, 3])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--workers", "2", "--candidate", "other"], "needs one worker"),
        (["--tls-cert", "a.pem"], "needs --tls-key"),
        (["--input", "nonsense"], "must look like image:FP32"),
        (["--max-staleness", "0"], "must be above 0"),
        (["--batch-rows", "0"], "must be 1 or more"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, options: list[str], problem: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "evergrad", "serve", Training(tmp_path).url, *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert problem in done.stderr
