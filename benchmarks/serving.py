"""What hot updates cost the requests: requests a second and latencies with 0, 10 and 100 updates a second.

    python -m benchmarks.serving [--model lenet5|resnet18] [--density D] [--rounds N] [--block-s S] [--clients N]

A server process (`Server`, one compute thread) answers `--clients` closed-loop clients, threads of a process of their
own, one image a request. Updates at `--density` were published before, and are released into the served log at the
rate of each block, so that no training runs beside. Blocks of `--block-s` seconds take turns, there and back, with a
block without updates beside each: ratios are of neighbours, and other work on the machine falls on both.

What is asked is what the *server* loses by its updates. So the third process, which releases them, does the same in the
blocks without: it releases the same files at the same rate into a folder that nobody serves (and saves the same whole
states, where those are pushed). On two cores that server and clients keep busy, its own work would else be charged to
the server. What a real writer costs the machine is for `benchmarks.overhead` to say.

- `throughput_ratio`, `p99_ratio`: by updates per second, medians over the blocks of requests a second and of the 99th
  percentile of latency against the block without beside it. `*_quartiles`: 25 and 75%.
- `cpu_ratio`: the same of the server's processor time a request, all its threads together: other work on the machine
  makes it wait, and this does not count that. `update_cpu_ms`: what that comes to for each update.
- `requests_s`, `p50_ms`, `p99_ms`, `cpu_ms`: by updates per second, medians over blocks; "0": of the blocks without.
- `applied_s`: by updates per second, versions that the server went through a second. Below the rate it folded several
  into one step, or could not keep up.
- `push`: the same figures where each update is a push of the whole state: the server reads a file of all tensors and
  calls `load_state_dict` between two batches, at the same rates. `applied_s`: what it reached.
- `restart`: `down_s`, seconds without an answer where the server is stopped and started again for the newest version,
  and `failed`, requests that failed in that time.
- `versions`: milliseconds to answer one request by the version so many versions back, out of the undo ring.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from experiments.machine import machine
from experiments.models import ResNet18
from torch import nn

from evergrad import Publisher, Replica
from evergrad.demo.lenet import make_lenet5
from evergrad.errors import ServerError
from evergrad.pytorch.bridge import ReplicaModule
from evergrad.serve.client import InferenceClient

MODELS = {"lenet5": (make_lenet5, (1, 28, 28)), "resnet18": (ResNet18, (3, 32, 32))}
RATES = (10, 100)
BACK = (1, 10, 100)
LOAD_S = 0.5  # at the beginning of a block, and not counted


class Pushed(ReplicaModule):
    """What people do without updates: the whole state comes as a file, and is loaded between two batches."""

    def __init__(self, module: nn.Module, replica: Replica, place: Path) -> None:
        super().__init__(module, replica)
        self._target, self._place, self._lock = module, place, threading.Lock()
        self.pushes = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def predict(self, x: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], int]:
        with self._lock:
            return super().predict(x)

    def _watch(self) -> None:
        while True:
            if not self._place.exists():
                time.sleep(0.001)
                continue
            taken = self._place.with_suffix(".taken")
            os.replace(self._place, taken)
            state = torch.load(taken, weights_only=True)
            with self._lock, torch.no_grad():
                self._target.load_state_dict(state)
            self.pushes += 1
            counting = self._place.with_suffix(".counting")
            counting.write_text(str(self.pushes))
            os.replace(counting, self._place.with_suffix(".count"))


def serve_here(model: str, log: str, port: int, pushed: str | None, feedback: str | None) -> None:
    """The server's process."""
    from evergrad.serve.feedback import Feedback
    from evergrad.serve.server import Settings, serve

    torch.set_num_threads(1)
    torch.manual_seed(0)
    module, replica = MODELS[model][0](), Replica(log)
    replica.sync()
    servable = ReplicaModule(module, replica) if pushed is None else Pushed(module, replica, Path(pushed))
    settings = Settings(port=port, feedback=None if feedback is None else Feedback(path=Path(feedback)))
    serve(servable, settings, on_start=lambda url: print(url, flush=True))


def load_here(url: str, model: str, clients: int) -> None:
    """The clients' process: for each number of seconds on stdin, a line of JSON.

    That is latencies in ms, how many requests were answered, those of the beginning included, and how many failed.
    """
    x = np.random.default_rng(0).standard_normal((1, *MODELS[model][1])).astype(np.float32)
    for line in sys.stdin:
        begin = time.perf_counter() + LOAD_S
        end, found, failed, early = begin + float(line), [], [], []

        def ask(
            begin: float = begin,
            end: float = end,
            found: list[float] = found,
            failed: list[float] = failed,
            early: list[float] = early,
        ) -> None:
            with InferenceClient(url, timeout_s=60) as client:
                while (start := time.perf_counter()) < end:
                    try:
                        client.infer(x)
                    except ServerError:
                        failed.append(time.perf_counter())
                        time.sleep(0.005)
                        continue
                    (found if start >= begin else early).append(1000 * (time.perf_counter() - start))

        threads = [threading.Thread(target=ask) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        answered = len(found) + len(early)
        print(json.dumps({"ms": found, "answered": answered, "failed": len(failed)}), flush=True)


@contextmanager
def process(*arguments: str, module: str = "benchmarks.serving") -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", module, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as running:
        try:
            yield running
        finally:
            running.terminate()


@contextmanager
def server(
    model: str, log: str, port: int = 0, pushed: str | None = None, feedback: str | None = None
) -> Iterator[tuple[str, int]]:
    """Its URL, once it is ready, and its process's number."""
    extra = [] if pushed is None else ["--pushed", pushed]
    extra += [] if feedback is None else ["--feedback", feedback]
    with process("--serve", log, "--model", model, "--port", str(port), *extra) as running:
        url = running.stdout.readline().strip()  # type: ignore[union-attr]
        with InferenceClient(url) as client:
            while not client.ready():
                time.sleep(0.01)
        yield url, running.pid


class Load:
    """The clients."""

    def __init__(self, running: subprocess.Popen[str]) -> None:
        self._in, self._out = running.stdin, running.stdout

    def start(self, seconds: float) -> None:
        print(seconds, file=self._in, flush=True)

    def wait(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._out.readline())  # type: ignore[union-attr]
        return found


class Released:
    """Updates that were published before, linked into another log one by one."""

    def __init__(self, source: Path, target: Path) -> None:
        self._waiting = sorted((source / "updates").iterdir())
        self._target = target / "updates"
        self._next = 0

    def __call__(self) -> None:
        path = self._waiting[self._next]
        os.link(path, self._target / path.name)
        self._next += 1


class Push:
    """The whole state, put in the place where the other server looks for it."""

    def __init__(self, module: nn.Module, place: Path) -> None:
        self._module, self._place = module, place

    def __call__(self) -> None:
        beside = self._place.with_suffix(".part")
        torch.save(self._module.state_dict(), beside)
        os.replace(beside, self._place)


def publish(model: str, density: float, count: int, place: Path) -> nn.Module:
    """A log with so many updates, of a model whose weights move at random; gives the model."""
    torch.manual_seed(0)
    module = MODELS[model][0]()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    settings: dict[str, Any] = {"density": density, "snapshot_every_bytes": 1 << 40}
    with Publisher(module, optimizer, f"file:{place}", **settings) as publisher:
        noise = [torch.randn_like(p) for p in module.parameters()]
        for step in range(count):
            for parameter, each in zip(module.parameters(), noise, strict=True):
                parameter.grad = each.roll(step)
            optimizer.step()
            publisher.publish()
    return module


def cpu_s(process: int) -> float:
    """Seconds of processor time that a process has used, to the nanosecond: Linux's clock of another process."""
    return time.clock_gettime(~process << 3 | 2)


def block(load: Load, seconds: float, rate: float, release: Any, used_s: Any) -> dict[str, float]:
    """One block: requests a second, latencies in ms, the server's processor time, and what was answered and released.

    Args:
        used_s: the processor time that the server has used so far, in seconds.
    """
    before_s = used_s()
    load.start(seconds)
    start, released = time.perf_counter(), 0
    while rate and (due := start + released / rate) < start + LOAD_S + seconds > time.perf_counter():
        time.sleep(max(0.0, due - time.perf_counter()))
        release()
        released += 1
    found = load.wait()
    ms, cpu_ms = np.array(found["ms"]), 1000 * (used_s() - before_s)
    return {
        "requests_s": len(ms) / seconds,
        "p50_ms": float(np.median(ms)),
        "p99_ms": float(np.quantile(ms, 0.99)),
        "cpu_ms": cpu_ms / found["answered"],
        "answered": found["answered"],
        "released": released,
    }


def update_cpu_ms(without: dict[str, float], updated: dict[str, float]) -> float:
    """Processor time that the server used more in the second of two blocks, for each update."""
    return (updated["cpu_ms"] - without["cpu_ms"]) * updated["answered"] / updated["released"]


def compare(
    load: Load, rounds: int, seconds: float, release: Any, aside: Any, count: Any, used_s: Any
) -> dict[str, Any]:
    """All blocks against one server.

    Args:
        release, aside: release an update where it is served, and where it is not.
        count: the updates that it applied so far.
        used_s: as in `block`.
    """
    block(load, seconds, 0, release, used_s)  # a warm-up
    pairs: dict[int, list[tuple[dict[str, float], dict[str, float]]]] = {rate: [] for rate in RATES}
    applied: dict[int, list[float]] = {rate: [] for rate in RATES}
    for number in range(rounds):
        for rate in RATES if number % 2 == 0 else reversed(RATES):
            pair: dict[bool, dict[str, float]] = {}
            for updated in (False, True) if number % 2 == 0 else (True, False):
                before = count()
                pair[updated] = block(load, seconds, rate, release if updated else aside, used_s)
                if updated:
                    applied[rate].append((count() - before) / (LOAD_S + seconds))
            pairs[rate].append((pair[False], pair[True]))
    found: dict[str, Any] = {}
    for key in ("requests_s", "p50_ms", "p99_ms", "cpu_ms"):
        found[key] = {"0": statistics.median(without[key] for each in pairs.values() for without, _ in each)}
        found[key] |= {str(rate): statistics.median(updated[key] for _, updated in pairs[rate]) for rate in RATES}
    for key, of in (("throughput_ratio", "requests_s"), ("p99_ratio", "p99_ms"), ("cpu_ratio", "cpu_ms")):
        ratios = {str(rate): [updated[of] / without[of] for without, updated in pairs[rate]] for rate in RATES}
        found[key] = {rate: statistics.median(each) for rate, each in ratios.items()}
        found[f"{key}_quartiles"] = {rate: np.quantile(each, (0.25, 0.75)).tolist() for rate, each in ratios.items()}
    found["update_cpu_ms"] = {str(r): statistics.median(update_cpu_ms(*pair) for pair in pairs[r]) for r in RATES}
    found["applied_s"] = {str(rate): statistics.median(each) for rate, each in applied.items()}
    return found


def back_ms(url: str, model: str) -> dict[str, float]:
    """Milliseconds of a request by the version so many versions back; "0": the newest."""
    x = np.zeros((1, *MODELS[model][1]), np.float32)
    found = {}
    with InferenceClient(url) as client:
        head = client.info()["version"]
        for back in (0, *(each for each in BACK if each <= head)):
            times = []
            for _ in range(10):
                start = time.perf_counter()
                try:
                    client.infer(x, head - back if back else None)
                except ServerError:
                    break
                times.append(1000 * (time.perf_counter() - start))
            if times:
                found[str(back)] = statistics.median(times)
    return found


def restart(model: str, log: str, clients: int) -> dict[str, float]:
    """What clients see of a server that is started again."""
    arguments = ("--model", model, "--clients", str(clients))
    with server(model, log) as (url, _), process("--load", url, *arguments) as running:
        port = int(url.rpartition(":")[2])
        load = Load(running)
        load.start(0.0)  # the processes are warm after it
        load.wait()
    with process("--load", url, *arguments) as running:
        load = Load(running)
        with server(model, log, port):
            load.start(20.0)
            time.sleep(1.0)
        start = time.perf_counter()
        with server(model, log, port):
            down_s = time.perf_counter() - start
            failed = load.wait()["failed"]
    return {"down_s": down_s, "failed": failed}


def measure(model: str, *, density: float, rounds: int, block_s: float, clients: int) -> dict[str, Any]:
    """All figures of one model."""
    with tempfile.TemporaryDirectory() as folder:
        source, served, whole, unserved = (Path(folder, name) for name in ("source", "served", "whole", "unserved"))
        count = int(rounds * sum(RATES) * (block_s + LOAD_S + 1)) + 10
        module = publish(model, density, count, source)
        for place in (served, whole):
            shutil.copytree(source, place, ignore=shutil.ignore_patterns("*.eg"))
            (place / "updates").mkdir(exist_ok=True)
            (place / "latest.json").unlink()  # it names a snapshot that comes after the updates to release
            for path in sorted((place / "snapshots").iterdir())[1:]:
                path.unlink()
        (unserved / "updates").mkdir(parents=True)
        update_bytes = statistics.median(path.stat().st_size for path in (source / "updates").iterdir())
        arguments = ("--model", model, "--clients", str(clients))
        with server(model, f"file:{served}") as (url, pid), process("--load", url, *arguments) as running:
            with InferenceClient(url) as client:
                places = Released(source, served), Released(source, unserved)
                version = lambda: client.info()["version"]  # noqa: E731
                found = compare(Load(running), rounds, block_s, *places, version, lambda: cpu_s(pid))
            found["versions"] = back_ms(url, model)
        states = Path(folder, "state.pt"), Path(unserved, "state.pt")
        counted = states[0].with_suffix(".count")
        pushes = (Push(module, state) for state in states)
        with (
            server(model, f"file:{whole}", pushed=str(states[0])) as (url, pid),
            process("--load", url, *arguments) as running,
        ):
            pushed = lambda: int(counted.read_text()) if counted.exists() else 0  # noqa: E731
            found["push"] = compare(Load(running), rounds, block_s, *pushes, pushed, lambda: cpu_s(pid))
        found["restart"] = restart(model, f"file:{served}", clients)
        settings = {"model": model, "density": density, "rounds": rounds, "block_s": block_s, "clients": clients}
        return {**settings, "update_bytes": update_bytes, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, help="default: both")
    parser.add_argument("--density", type=float, default=1e-3)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--block-s", type=float, default=3.0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    for hidden in ("--serve", "--pushed", "--feedback", "--load"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve_here(given.model, given.serve, given.port, given.pushed, given.feedback)
        return
    if given.load:
        load_here(given.load, given.model, given.clients)
        return
    found = []
    for model in [given.model] if given.model else MODELS:
        settings = {"density": given.density, "rounds": given.rounds}
        found.append(measure(model, **settings, block_s=given.block_s, clients=given.clients))
        if not given.json:
            keys = ("throughput_ratio", "p99_ratio", "update_cpu_ms", "requests_s", "p99_ms", "versions", "restart")
            print(model, json.dumps({key: found[-1][key] for key in keys}))
    today = dt.datetime.now(dt.UTC).date().isoformat()
    print(json.dumps({"results": found, "machine": machine(), "date": today}))


if __name__ == "__main__":
    main()
