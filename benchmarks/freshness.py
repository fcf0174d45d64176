"""How soon a served model has learned: from labels' arrival to the first answer by a model that learned from them.

    python -m benchmarks.freshness [--model lenet5|resnet18] [--updates N] [--restarts N] [--density D] [--json]

Three processes and a log in a local directory: a server that takes feedback, a trainer (`run`) that follows it and
publishes at `--density`, and a client. The client asks for 8 answers, tells their labels, and then asks for one answer
after the other, 2 ms apart, until one is by a version that has learned from them: a step on 128 examples is due with
each 8 new ones, so each feedback makes one version. Times are from just before the labels are sent until that answer
is there; the first tenth, at least five, is a warm-up.

- `p50_ms`, `p99_ms`: of that.
- `parts_ms`: medians of its parts: `join` (until the labels are on the server's disk), `follow` (until the trainer has
  them), `learn` (scoring and keeping them, the step and its publishing), `serve` (until the answer). `learn_cpu` is
  the trainer's processor time in `learn`: what is beyond that is waiting, for a processor mostly.
- `full_push_p50_ms`, `full_push_p99_ms`: the same, where the trainer writes the whole state to a file instead, and the
  server calls `load_state_dict` between two batches.
- `restart_p50_ms`: the same, where the server is stopped and started again for the new version, once it is published.
"""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments.machine import machine
from torch import nn

from benchmarks.serving import MODELS, Push, process, server
from evergrad import EveryN, History, Publisher, Replica, Uniform
from evergrad.pipeline import Progress, run
from evergrad.serve.client import InferenceClient
from evergrad.stream import Batch
from evergrad.stream.feedback import FeedbackStream

NEW, BATCH, OLD = 8, 128, 2_000
PAUSE_S = 0.002  # between two answers: a client that asks without one would take the processor from the trainer
PARTS = ("join", "follow", "learn", "serve", "learn_cpu")


class Noted(FeedbackStream):
    """Notes when the trainer has got each batch."""

    def starting_at(self, number: int) -> Iterator[Batch]:
        for batch in super().starting_at(number):
            noted = {"arrived": batch.arrived_s, "got": time.time(), "got_cpu": time.process_time()}
            print(json.dumps(noted), flush=True)
            yield batch


def train_here(model: str, log: str, feedback: str, density: float, pushed: str | None) -> None:
    """The trainer's process; two lines of JSON for each batch."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = MODELS[model][0]()
    push = None if pushed is None else Push(module, Path(pushed))

    def observe(_: Progress) -> None:
        if push is not None:
            push()
        print(json.dumps({"done": time.time(), "done_cpu": time.process_time()}), flush=True)

    with tempfile.TemporaryDirectory() as folder, History(folder) as history:
        rng = np.random.default_rng(1)
        history.append({"x": images(rng, model, OLD), "y": rng.integers(0, 10, OLD)})
        run(
            model=module,
            loss=nn.functional.cross_entropy,
            optimizer=torch.optim.Adam(module.parameters(), lr=1e-3, amsgrad=True),
            stream=Noted(path=feedback),
            trigger=EveryN(NEW),
            sampler=Uniform(),
            batch_size=BATCH,
            history=history,
            observe=observe,
            **({"log": log, "density": density} if push is None else {}),
        )


def images(rng: np.random.Generator, model: str, count: int) -> np.ndarray:
    return rng.standard_normal((count, *MODELS[model][1])).astype(np.float32)


class Trainer:
    """The trainer's process, as the client hears of it."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines

    def times(self) -> dict[str, float]:
        """When the next batch arrived, was got, and was done with."""
        return {**json.loads(next(self._lines)), **json.loads(next(self._lines))}


@contextmanager
def trainer(model: str, log: str, feedback: str, density: float, pushed: str | None = None) -> Iterator[Trainer]:
    arguments = ["--train", log, "--model", model, "--feedback", feedback, "--density", str(density)]
    arguments += [] if pushed is None else ["--pushed", pushed]
    with process(*arguments, module="benchmarks.freshness") as running:
        yield Trainer(iter(running.stdout))  # type: ignore[arg-type]


def tell(client: InferenceClient, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Asks, and tells the labels: when they are sent, and when that is answered."""
    answer = client.infer(x)
    sent = time.time()
    client.label({answer.id: y})
    return sent, time.time()


def rounds(url: str, model: str, told: Trainer, count: int, fresh: Callable[[InferenceClient, int], Any]) -> Any:
    """Milliseconds of so many pieces of feedback, and their parts. `fresh`: asks until an answer knows the n-th."""
    rng, found = np.random.default_rng(2), []
    warm = max(5, count // 10)
    with InferenceClient(url, timeout_s=60) as client:
        for number in range(1, warm + count + 1):
            sent, _ = tell(client, images(rng, model, NEW), rng.integers(0, 10, NEW))
            fresh(client, number)
            end = time.time()
            at = told.times()
            marks = (sent, at["arrived"], at["got"], at["done"], end)
            learned_s = at["done_cpu"] - at["got_cpu"]
            parts = [later - earlier for earlier, later in itertools.pairwise(marks)]
            found.append([1000 * seconds for seconds in (end - sent, *parts, learned_s)])
    return np.array(found[warm:])


def restarts(model: str, log: str, feedback: str, told: Trainer, count: int) -> list[float]:
    """Milliseconds where the server is started again for each version."""
    rng, found = np.random.default_rng(3), []
    for _ in range(count):
        with server(model, log, feedback=feedback) as (url, _), InferenceClient(url, timeout_s=60) as client:
            before = client.infer(images(rng, model, 1)).version
            sent, _ = tell(client, images(rng, model, NEW), rng.integers(0, 10, NEW))
            told.times()
        with server(model, log) as (url, _), InferenceClient(url, timeout_s=60) as client:
            if client.infer(images(rng, model, 1)).version <= before:
                raise RuntimeError("the new server does not know the new version")
            found.append(1000 * (time.time() - sent))
    return found


def measure(model: str, *, density: float, updates: int, restarted: int) -> dict[str, Any]:
    """All figures of one model."""
    one = np.zeros((1, *MODELS[model][1]), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        log, told, pushed = f"file:{folder}/log", f"{folder}/told", Path(folder, "state.pt")
        counted = pushed.with_suffix(".count")
        torch.manual_seed(0)
        module = MODELS[model][0]()
        with Publisher(module, torch.optim.SGD(module.parameters(), lr=0.0), log, density=density):
            pass

        def by_version(client: InferenceClient, number: int) -> None:
            while client.infer(one).version < number:
                time.sleep(PAUSE_S)

        def by_count(client: InferenceClient, number: int) -> None:
            while not counted.exists() or int(counted.read_text()) < number:
                time.sleep(PAUSE_S)
            client.infer(one)

        with trainer(model, log, told, density) as training:
            with server(model, log, feedback=told) as (url, _):
                ms = rounds(url, model, training, updates, by_version)
            replica = Replica(log)
            versions = replica.sync()
            if versions != len(ms) + max(5, updates // 10):
                raise RuntimeError(f"{versions} versions are not one for each feedback")
            again = restarts(model, log, told, training, restarted)
        with (
            server(model, log, pushed=str(pushed), feedback=f"{told}-pushed") as (url, _),
            trainer(model, log, f"{told}-pushed", density, str(pushed)) as training,
        ):
            whole = rounds(url, model, training, updates, by_count)
    return {
        "model": model, "density": density, "updates": updates, "restarts": restarted,
        "p50_ms": float(np.median(ms[:, 0])), "p99_ms": float(np.quantile(ms[:, 0], 0.99)),
        "parts_ms": {part: float(np.median(ms[:, at])) for at, part in enumerate(PARTS, 1)},
        "full_push_p50_ms": float(np.median(whole[:, 0])), "full_push_p99_ms": float(np.quantile(whole[:, 0], 0.99)),
        "restart_p50_ms": statistics.median(again),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="lenet5")
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--density", type=float, default=1e-3)
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    for hidden in ("--train", "--feedback", "--pushed"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        train_here(given.model, given.train, given.feedback, given.density, given.pushed)
        return
    found = measure(given.model, density=given.density, updates=given.updates, restarted=given.restarts)
    if not given.json:
        for key, value in found.items():
            print(f"{key:20} {value}")
    today = dt.datetime.now(dt.UTC).date().isoformat()
    print(json.dumps({**found, "machine": machine(), "date": today}))


if __name__ == "__main__":
    main()
