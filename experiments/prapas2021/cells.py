"""Runs a cell: a stream, what strategies made of it, and what they are worth on the test set."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from evergrad import Batch
from evergrad.metrics import Running, accuracy
from evergrad.pytorch.strategies import Standing, Strategy, compare
from evergrad.records import Record
from experiments.cell import Cell
from experiments.data import Images, normalising
from experiments.first import First, Started
from experiments.lineup import Changes, Lineup, Task, compile_publisher
from experiments.models import MODELS, load_pretrained
from experiments.prapas2021.grid import OVERHEAD_STEPS
from experiments.prapas2021.protocol import LOADERS, Protocol
from experiments.prapas2021.subjects import built

_BLOCK = 32  # steps of a ratio: whole folds of the log
_TEST_BATCH, _LAST = 500, 1000


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

    def fresh(self) -> Started:
        """An untrained model and its optimizer."""
        model = MODELS[self.protocol.model]()
        if self.weights is not None:
            load_pretrained(model, self.weights)
        model = normalising(model, self.images.mean, self.images.sd)
        model = model.to(device=self.device, memory_format=torch.channels_last)
        return model, torch.optim.Adam(model.parameters(), lr=self.protocol.lr, amsgrad=True)

    @property
    def first(self) -> First:
        """The outcomes of the initial trainings."""
        return First(self.out / "first", self.fresh)


def run_cell(setup: Setup, cell: Cell, trained_steps: Callable[[int], None]) -> Record:
    """All that is to be known of one cell; see README.md for the fields."""
    if cell.density is not None:
        compile_publisher()
    torch.manual_seed(cell.seed)
    begin = {"cell": cell.name, "seed": cell.seed}
    protocol, images = setup.protocol, setup.images
    first = images.x[: protocol.first], images.y[: protocol.first]
    if cell.kind == "first":
        epochs, size = protocol.first_epochs, protocol.batch_size
        how: dict[str, Any] = {"epochs": epochs, "batch_size": size, "clock": setup.clock}
        return {**begin, **setup.first.train(cell.seed, first, cross_entropy, **how, trained_steps=trained_steps)}
    task = Task(
        first=first,
        loss=cross_entropy,
        batch_size=protocol.batch_size,
        retrain_every=protocol.retrain_every,
        retrain_epochs=protocol.retrain_epochs,
        start=lambda: setup.first.start(cell.seed),
        fresh=setup.fresh,
        trained_steps=trained_steps,
    )
    with (
        tempfile.TemporaryDirectory(dir=setup.out, prefix="cell-") as folder,
        built(cell, task, Path(folder)) as lineup,
    ):
        if cell.kind == "overhead":
            return {**begin, **_overhead(lineup, setup, trained_steps)}
        return {**begin, **_on_stream(lineup, setup, trained_steps)}


def _on_stream(lineup: Lineup, setup: Setup, trained_steps: Callable[[int], None]) -> Record:
    protocol = setup.protocol
    curves: dict[str, list[float]] = {name: [] for name in lineup.strategies}
    points: list[int] = []
    changes = Changes(lineup, trained_steps)
    standings: dict[str, Standing] = {}
    for number, standings in enumerate(_compared(lineup, setup), 1):
        seen = standings[lineup.learner].examples
        if seen % protocol.point == 0 or seen == protocol.stream:
            points.append(seen)
            for name, curve in curves.items():
                curve.append(standings[name].scores["accuracy"])
        changes.after(number)
    learned = standings[lineup.learner]
    finished = lineup.finish()
    return {
        "scores": {
            name: {
                "accuracy": standings[name].scores["accuracy"],
                "last": standings[name].scores["accuracy_windowed"],
                "test": _test_accuracy((lineup.final or lineup.strategies)[name], setup),
                "curve": curves[name],
            }
            for name in lineup.strategies
        },
        "points": points,
        "learn_s": learned.learn_s,
        "predict_s": learned.predict_s,
        **changes.found(),
        **finished,
    }


def _overhead(lineup: Lineup, setup: Setup, trained_steps: Callable[[int], None]) -> Record:
    names = list(lineup.strategies)
    times: dict[str, list[float]] = {name: [] for name in names}
    before = dict.fromkeys(names, 0.0)
    batches = itertools.islice(_compared(lineup, setup), OVERHEAD_STEPS)
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


def _compared(lineup: Lineup, setup: Setup) -> Iterator[dict[str, Standing]]:
    stream = _stream(setup, lineup.batch)
    return compare(lineup.strategies, stream, {"accuracy": accuracy}, window=_LAST, clock=setup.clock)


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
