"""Runs a cell: a strategy on a stream, and what its predictions were worth, in all, by group and over time."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evergrad import Batch, TimeBiased
from evergrad.pytorch.strategies import Standing, Strategy, compare
from evergrad.records import Record
from evergrad.sampling import Sampler
from experiments.cell import Cell
from experiments.first import First, Started
from experiments.lineup import Changes, Lineup, Task, compile_publisher, dense, never_updated, published, retrained
from experiments.streams.subject import Array, Subject

_POINTS_A_WINDOW = 4
_BACK_WINDOW, _BACK_STEP = 500, 20  # examples, to tell when a measure is back
_DEFAULT_CLOCK = time.process_time


@dataclass(frozen=True)
class Setup:
    """What all cells of a run share: the subject, a folder for the first models and what cells write, and a clock."""

    subject: Subject
    out: Path
    clock: Callable[[], float] = _DEFAULT_CLOCK

    def fresh(self) -> Started:
        """An untrained model and its optimizer."""
        model = self.subject.make_model()
        return model, torch.optim.Adam(model.parameters(), lr=self.subject.lr, amsgrad=True)

    @property
    def first(self) -> First:
        """The outcomes of the initial trainings."""
        return First(self.out / "first", self.fresh)


class Recorded:
    """A strategy, and all that it has predicted."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy, self._outputs = strategy, list[Array]()

    def predict(self, x: Array) -> Array:
        """As `Strategy`."""
        outputs = self._strategy.predict(x)
        self._outputs.append(outputs)
        return outputs

    def learn(self, batch: Batch) -> object:
        """As `Strategy`."""
        return self._strategy.learn(batch)

    @property
    def outputs(self) -> Array:
        """Of the whole stream [examples, ...]."""
        return np.concatenate(self._outputs)


def run_cell(setup: Setup, cell: Cell, trained_steps: Callable[[int], None]) -> Record:
    """All that is to be known of one cell; see README.md for the fields."""
    subject = setup.subject
    if cell.density is not None:
        compile_publisher()
    torch.manual_seed(cell.seed)
    begin = {"cell": cell.name, "seed": cell.seed}
    first = subject.first.x, subject.first.y
    if cell.kind == "first":
        epochs, size = subject.first_epochs, subject.batch_size
        how: dict[str, Any] = {"epochs": epochs, "batch_size": size, "clock": setup.clock}
        return {**begin, **setup.first.train(cell.seed, first, subject.loss, **how, trained_steps=trained_steps)}
    task = Task(
        first=first,
        loss=subject.loss,
        batch_size=subject.batch_size,
        retrain_every=subject.retrain_every,
        retrain_epochs=subject.retrain_epochs,
        start=functools.partial(setup.first.start, cell.seed),
        fresh=setup.fresh,
        trained_steps=trained_steps,
    )
    with (
        tempfile.TemporaryDirectory(dir=setup.out, prefix="cell-") as folder,
        contextlib.ExitStack() as stack,
    ):
        newer = TimeBiased(half_life_s=subject.half_life, seed=cell.seed) if cell.kind == "recent" else None
        lineup = _built(cell, task, Path(folder), stack, newer)
        return {**begin, **_on_stream(lineup, setup, trained_steps)}


def _built(cell: Cell, task: Task, folder: Path, stack: contextlib.ExitStack, sampler: Sampler | None) -> Lineup:
    if cell.density is not None:
        return published(cell, task, folder, stack, sampler=sampler)
    if cell.kind == "retrained":
        return retrained(cell, task)
    if cell.kind == "never-updated":
        return never_updated(task)
    return dense(cell, task, folder, stack, sampler=sampler)


def _on_stream(lineup: Lineup, setup: Setup, trained_steps: Callable[[int], None]) -> Record:
    subject = setup.subject
    recorded = Recorded(lineup.strategies[""])
    changes = Changes(lineup, trained_steps)
    compared = compare({"": recorded}, _batches(subject, lineup.batch), {"score": subject.score}, clock=setup.clock)
    ended: dict[str, Standing] = {}
    for step, standings in enumerate(compared, 1):
        changes.after(step)
        ended = standings
    outputs, standing = recorded.outputs, ended[""]
    points = range(subject.window, len(subject.stream) + 1, subject.window // _POINTS_A_WINDOW)
    return {
        "measures": measured(subject, outputs),
        "groups": {name: measured(subject, outputs, flags) for name, flags in subject.groups.items()},
        "last": measured(subject, outputs, slice(-subject.window, None))[subject.main],
        "back_after": [back_after(subject, outputs, where) for where, _ in subject.marks],
        "points": list(points),
        "curve": [measured(subject, outputs, slice(end - subject.window, end))[subject.main] for end in points],
        "score": standing.scores["score"],
        "learn_s": standing.learn_s,
        "predict_s": standing.predict_s,
        **changes.found(),
        **lineup.finish(),
    }


def _batches(subject: Subject, size: int) -> Iterator[Batch]:
    """An example comes each second, whatever its time was, so that samplers count examples."""
    stream = subject.stream
    for start in range(0, len(stream), size):
        part = stream[start : start + size]
        yield Batch(part.x, part.y, arrived_s=float(len(subject.first) + start + len(part)))


def measured(subject: Subject, outputs: Array, rows: slice | Array = slice(None)) -> dict[str, float]:
    """All measures of some of the stream's examples."""
    return {name: each.of(outputs[rows], subject.stream.y[rows]) for name, each in subject.measures.items()}


def back_after(subject: Subject, outputs: Array, where: int) -> int | None:
    """Examples from a break until the leading measure is within its tolerance of what it was; None: never, or untold.

    Of the last 500 examples, all of them from after the break.
    """
    measure = subject.measures[subject.main]
    if measure.tolerance is None or where < _BACK_WINDOW:
        return None
    sign = 1 if measure.higher_is_better else -1

    def worth(end: int) -> float:
        return sign * measured(subject, outputs, slice(end - _BACK_WINDOW, end))[subject.main]

    wanted = worth(where) - measure.tolerance
    ends = range(where + _BACK_WINDOW, len(outputs) + 1, _BACK_STEP)
    return next((end - where for end in ends if worth(end) >= wanted), None)
