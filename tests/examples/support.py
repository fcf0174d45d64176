"""A trainer that publishes all the while, and judges answers by what each version would have said."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from evergrad.pytorch.publisher import Publisher

SERVING = Path(__file__).parents[2] / "examples" / "serving"
ROWS = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
ASKED, SEEN, MOST = 40, 10, 3000
TOLERANCE = 1e-5

Answer = tuple[list[list[float]], int]


def make_model() -> torch.nn.Module:
    """The model of the examples."""
    return torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Tanh(), torch.nn.Linear(64, 3)).eval()


class Training:
    """Publishes versions whose every weight moves, so that an answer by parts of two is the answer of neither."""

    def __init__(self, directory: Path) -> None:
        self.log = f"file:{directory}"
        self.model = make_model()
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=0.02)
        self._random = torch.Generator().manual_seed(7)
        self._publisher = Publisher(self.model, self._optimizer, self.log, density=1.0, values="exact")
        self.said: list[npt.NDArray[Any]] = []
        self._note()

    @property
    def digest(self) -> int:
        return self._publisher.digest

    def step(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=self._random)
        self._optimizer.step()
        self._publisher.publish()
        self._note()

    def _note(self) -> None:
        with self._publisher.deployed() as shown, torch.inference_mode():
            self.said.append(shown(torch.from_numpy(ROWS)).numpy().copy())

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Publishes in a thread, some hundred versions a second, until the block ends."""
        stop = threading.Event()

        def go_on() -> None:
            while not stop.wait(0.005):
                self.step()

        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def judge(self, answers: list[Answer]) -> None:
        """Each answer is that of the version which it names, and of no other."""
        for y, version in answers:
            found = np.abs(np.array(self.said) - np.array(y)).max(axis=(1, 2)) < TOLERANCE
            assert np.flatnonzero(found).tolist() == [version]


def ask_while_publishing(training: Training, ask: Callable[[], Answer]) -> list[Answer]:
    """Asks until answers of several versions are there; judges them all, and that the last update arrives."""
    answers: list[Answer] = []
    with training.publishing():
        while len(answers) < MOST and (len(answers) < ASKED or len({version for _, version in answers}) < SEEN):
            answers.append(ask())
    newest = len(training.said) - 1
    for _ in range(MOST):
        answers.append(ask())
        if answers[-1][1] == newest:
            break
    assert answers[-1][1] == newest
    assert len({version for _, version in answers}) >= SEEN
    training.judge(answers)
    return answers


@contextmanager
def example(arguments: list[str], folder: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """One of the examples in a process of its own, in the folder of the examples; ended with the block."""
    errors = folder / "stderr"
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=SERVING,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        except BaseException as error:
            error.add_note(errors.read_text()[-4000:])
            raise
        finally:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
            with suppress(ProcessLookupError):  # servers start processes of their own, which may outlive them
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=10)


@contextmanager
def by_lines(arguments: list[str], folder: Path, **environment: str) -> Iterator[Callable[[], Answer]]:
    """What asks an example that reads rows and writes answers, line by line."""
    with example(arguments, folder, **environment) as process:
        assert process.stdin
        assert process.stdout
        question, ended = json.dumps(ROWS.tolist()) + "\n", threading.Timer(60, process.kill)
        ended.start()

        def ask() -> Answer:
            process.stdin.write(question)  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            answer = json.loads(process.stdout.readline())  # type: ignore[union-attr]
            return answer["y"], answer["version"]

        try:
            yield ask
        finally:
            ended.cancel()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def post(url: str, body: Any = None) -> tuple[int, Any]:
    """Status and body, by POST where there is one to send."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error) if error.headers.get_content_subtype() == "json" else None


def until(condition: Callable[[], Any], process: subprocess.Popen[str], tries: int = 1000) -> Any:
    """What `condition` gives once that is true and raises no OSError; gives up after so many tries, 50 ms apart."""
    pause = threading.Event()
    for _ in range(tries):
        assert process.poll() is None, "the example has ended"
        try:
            found = condition()
        except OSError:  # nobody listens yet
            found = None
        if found:
            return found
        pause.wait(0.05)
    raise AssertionError("the condition never came true")
