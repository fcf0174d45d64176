"""Runs a cell: a stream, what strategies made of it, and what they are worth on the test set."""

from __future__ import annotations

import functools
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from evergrad import Batch, Publisher
from evergrad.demo.lenet import train_dense
from evergrad.metrics import Running, accuracy
from evergrad.pytorch.checkpoint import Checkpoints
from evergrad.pytorch.strategies import Standing, Strategy, compare
from experiments.data import Images, normalising
from experiments.models import MODELS, load_pretrained
from experiments.prapas2021.grid import OVERHEAD_STEPS, Cell
from experiments.prapas2021.protocol import LOADERS, Protocol
from experiments.prapas2021.subjects import Parameters, Subject, Task, built, full_push_bytes

_LOOK_EVERY = 50  # steps; a look costs a copy of the weights, outside of what is timed
_BLOCK = 32  # steps of a ratio: whole folds of the log
_TEST_BATCH, _LAST = 500, 1000
Record = dict[str, Any]


@dataclass
class Setup:
    """What all cells of a run share.

    Args:
        data: the folder that holds the data sets. out: where the first models, and what a cell needs for itself, go.
        device: of the models. weights: what every model begins with (ImageNet's); None: random.
        clock: see `compare`.
    """

    protocol: Protocol
    data: Path
    out: Path
    device: str = "cpu"
    weights: Path | None = None
    clock: Callable[[], float] = time.process_time

    @cached_property
    def images(self) -> Images:
        """The data set."""
        return LOADERS[self.protocol.data](self.data)

    def fresh(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        """An untrained model and its optimizer."""
        model = MODELS[self.protocol.model]()
        if self.weights is not None:
            load_pretrained(model, self.weights)
        model = normalising(model, self.images.mean, self.images.sd)
        model = model.to(device=self.device, memory_format=torch.channels_last)
        return model, torch.optim.Adam(model.parameters(), lr=self.protocol.lr, amsgrad=True)

    def start(self, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The model and its optimizer as the initial training left them."""
        found = self.first(seed).newest()
        if found is None:
            raise RuntimeError(f"no initial training of seed {seed} in {self.out}")
        model, optimizer = self.fresh()
        model.load_state_dict(found[1]["model"])
        optimizer.load_state_dict(found[1]["optimizer"])
        return model, optimizer

    def first(self, seed: int) -> Checkpoints:
        """Where the initial training's outcome is."""
        return Checkpoints(self.out / "first" / f"seed-{seed}", background=False)


def run_cell(cell: Cell, setup: Setup, trained_steps: Callable[[int], None]) -> Record:
    """All that is to be known of one cell; see README.md for the fields."""
    if cell.kind in ("closed", "open", "overhead"):
        _compile()
    torch.manual_seed(cell.seed)
    begin = {"cell": cell.name, "seed": cell.seed}
    if cell.kind == "first":
        return {**begin, **_train_first(setup, cell.seed, trained_steps)}
    task = Task(setup.protocol, setup.images, lambda: setup.start(cell.seed), setup.fresh, trained_steps)
    with (
        tempfile.TemporaryDirectory(dir=setup.out, prefix="cell-") as folder,
        built(cell, task, Path(folder)) as subject,
    ):
        if cell.kind == "overhead":
            return {**begin, **_overhead(subject, setup, trained_steps)}
        return {**begin, **_on_stream(subject, setup, trained_steps)}


@functools.cache
def _compile() -> None:
    """What a publisher compiles once in a process, seconds that no step should be charged with."""
    model = MODELS["lenet5"]()
    optimizer = torch.optim.Adam(model.parameters(), amsgrad=True)
    with Publisher(model, optimizer, f"memory:compile-{os.getpid()}", density=1e-2) as publisher:
        for _ in range(2):
            model(torch.rand(2, 1, 28, 28)).sum().backward()
            optimizer.step()
            publisher.publish()


def _train_first(setup: Setup, seed: int, trained_steps: Callable[[int], None]) -> Record:
    protocol, images = setup.protocol, setup.images
    model, optimizer = setup.fresh()
    x, y = (torch.tensor(part[: protocol.first]).to(setup.device) for part in (images.x, images.y))
    begun = setup.clock()
    for epoch in range(1, protocol.first_epochs + 1):
        train_dense(model, optimizer, x, y, epochs=1, batch_size=protocol.batch_size)
        trained_steps(epoch * -(-protocol.first // protocol.batch_size))
    setup.first(seed).save(0, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    return {
        "learn_s": setup.clock() - begun,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "full_push_bytes": full_push_bytes(model),
    }


def _on_stream(subject: Subject, setup: Setup, trained_steps: Callable[[int], None]) -> Record:
    protocol = setup.protocol
    curves: dict[str, list[float]] = {name: [] for name in subject.strategies}
    points: list[int] = []
    changed, told, before = Running(), Running(), None
    standings: dict[str, Standing] = {}
    for number, standings in enumerate(_compared(subject, setup), 1):
        seen = standings[subject.learner].examples
        if seen % protocol.point == 0 or seen == protocol.stream:
            points.append(seen)
            for name, curve in curves.items():
                curve.append(standings[name].scores["accuracy"])
        if subject.deployed is not None:
            trained_steps(number)
            if before is not None:
                changed.add([_differing(before, subject.deployed())])
                told.add([subject.told() if subject.told else 0])
            before = subject.deployed() if number % _LOOK_EVERY == 1 else None
    learned = standings[subject.learner]
    finished = subject.finish()
    return {
        "scores": {
            name: {
                "accuracy": standings[name].scores["accuracy"],
                "last": standings[name].scores["accuracy_windowed"],
                "test": _test_accuracy((subject.final or subject.strategies)[name], setup),
                "curve": curves[name],
            }
            for name in subject.strategies
        },
        "points": points,
        "learn_s": learned.learn_s,
        "predict_s": learned.predict_s,
        "changed": changed.value if changed.count else None,
        "told": told.value if told.count and subject.told else None,
        **finished,
    }


def _overhead(subject: Subject, setup: Setup, trained_steps: Callable[[int], None]) -> Record:
    names = list(subject.strategies)
    times: dict[str, list[float]] = {name: [] for name in names}
    before = dict.fromkeys(names, 0.0)
    batches = itertools.islice(_compared(subject, setup), OVERHEAD_STEPS)
    for number, standings in enumerate(batches, 1):
        trained_steps(len(names) * number)
        if number % _BLOCK == 0:
            for name in names:
                times[name].append((standings[name].learn_s - before[name]) / _BLOCK)
                before[name] = standings[name].learn_s
    times = {name: found[1:] or found for name, found in times.items()}  # the first block warms up
    ratios = {name: np.divide(found, times["dense"]) for name, found in times.items() if name != "dense"}
    return {
        "ratios": {name: float(np.median(found)) for name, found in ratios.items()},
        "quartiles": {name: np.quantile(found, (0.25, 0.75)).tolist() for name, found in ratios.items()},
        "step_ms": {name: 1000 * float(np.median(found)) for name, found in times.items()},
        "blocks": len(times["dense"]),
    }


def _compared(subject: Subject, setup: Setup) -> Iterator[dict[str, Standing]]:
    stream = _stream(setup, subject.batch)
    return compare(subject.strategies, stream, {"accuracy": accuracy}, window=_LAST, clock=setup.clock)


def _stream(setup: Setup, size: int) -> Iterator[Batch]:
    protocol, images = setup.protocol, setup.images
    end = protocol.first + protocol.stream
    for start in range(protocol.first, end, size):
        rows = slice(start, min(start + size, end))
        yield Batch(images.x[rows], images.y[rows], arrived_s=float(rows.stop))


def _test_accuracy(strategy: Strategy, setup: Setup) -> float:
    found = Running()
    for start in range(0, setup.protocol.test, _TEST_BATCH):
        rows = slice(start, min(start + _TEST_BATCH, setup.protocol.test))
        found.add(accuracy(strategy.predict(setup.images.test_x[rows]), setup.images.test_y[rows]))
    return found.value


def _differing(before: Parameters, after: Parameters) -> int:
    return sum(int(torch.count_nonzero(old != new)) for old, new in zip(before, after, strict=True))
