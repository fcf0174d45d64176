"""Several server processes behind one port: the kernel spreads connections, and a worker that dies is started again.

    parent: keeps the ports, starts the workers, waits      worker 1..N: `evergrad serve ... --worker i`, on those ports
                                                            log far away: one download for all (`log.shared`)

Each worker holds the model in its own memory and follows the log by itself. Workers end with their parent, however it
ends: their standard input closes.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from evergrad.errors import ServerError
from evergrad.serve.server import bind
from evergrad.serve.settings import Settings

_PAUSE_S, _LOOK_S, _ENDING_S = 1.0, 0.1, 15.0
_QUICK_S, _MOST_QUICK = 10.0, 3


def run_workers(arguments: Sequence[str], count: int, settings: Settings) -> None:
    """Runs `evergrad` with `arguments`, so many times on the same ports, until SIGINT or SIGTERM.

    Raises:
        ServerError: a port cannot be used, or workers end as soon as they are started.
    """
    ports = {"--port": settings.port, "--grpc-port": settings.grpc_port}
    with tempfile.TemporaryDirectory(prefix="evergrad-") as folder, _stopping() as stopped:
        shared, metrics = Path(folder, "log"), Path(folder, "metrics")
        shared.mkdir()
        metrics.mkdir()
        command = [sys.executable, "-m", "evergrad", *arguments, "--workers", "1", "--share", str(shared)]
        held: list[socket.socket] = []
        try:
            for option, port in ports.items():
                if port is not None:
                    held.append(bind(settings.host, port, shared=True))
                    command += [option, str(held[-1].getsockname()[1])]
            environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(metrics)}
            commands = [[*command, "--worker", str(number)] for number in range(1, count + 1)]
            supervise(commands, environment, stopped)
        finally:
            for each in held:
                each.close()


def supervise(commands: Sequence[Sequence[str]], environment: dict[str, str], stopped: Callable[[], bool]) -> None:
    """Keeps one process of each command alive until `stopped`; then ends them in order.

    Raises:
        ServerError: one has ended three times within seconds of its start.
    """
    running = [_start(command, environment) for command in commands]
    started_s, quick = [time.monotonic()] * len(running), [0] * len(running)
    try:
        while not stopped():
            time.sleep(_LOOK_S)
            for number, process in enumerate(running):
                if process.poll() is None or stopped():
                    continue
                quick[number] = quick[number] + 1 if time.monotonic() - started_s[number] < _QUICK_S else 0
                if quick[number] >= _MOST_QUICK:
                    problem = f"ended {_MOST_QUICK} times as soon as it was started, last with {process.returncode}"
                    raise ServerError(f"worker {number + 1}", f"{problem}; its own words are above")
                time.sleep(_PAUSE_S)
                started_s[number] = time.monotonic()
                _end([process])
                running[number] = _start(commands[number], environment)
    finally:
        _end(running)


def _start(command: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)  # noqa: S603 - our own command line


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + _ENDING_S
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()


@contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Tells whether SIGINT or SIGTERM came; the handlers from before are back after it."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        came.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
