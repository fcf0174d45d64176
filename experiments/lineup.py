"""What is run in a cell: strategies, built through the library's public interface, and how to look at them."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evergrad import EveryN, History, Publisher, Replica, Trainer, Uniform
from evergrad.demo.lenet import make_lenet5
from evergrad.metrics import Running
from evergrad.pytorch.bridge import load_weights
from evergrad.pytorch.learner import Learned, Learner, Loss
from evergrad.pytorch.select import RandomK, Selector
from evergrad.pytorch.settings import Forward, Selection
from evergrad.pytorch.strategies import NeverUpdated, Retrained, Strategy
from evergrad.records import Record
from evergrad.sampling import Sampler
from experiments.cell import Cell
from experiments.first import Examples, Started, full_push_bytes

Parameters = list[torch.Tensor]
SERVING_BATCH = 80  # of what learns at no trigger: a divisor of 640 and of 10,000
_FORWARDS: dict[str, Forward] = {"open": "master", "closed": "deployed"}
_LOOK_EVERY = 50  # steps; a look costs a copy of the weights, outside of what is timed


@dataclass(slots=True, kw_only=True)
class Task:
    """All that cells of one seed have in common.

    Attributes:
        first: what the first model was trained on, x and y.
        batch_size, retrain_every, retrain_epochs: of a step, and of full retraining.
        start: gives the model and the optimizer as the initial training left them, each time new ones.
        fresh: gives an untrained model and its optimizer.
        trained_steps: is told how many training steps a cell has taken so far.
    """

    first: Examples
    loss: Loss
    batch_size: int
    retrain_every: int
    retrain_epochs: int
    start: Callable[[], Started]
    fresh: Callable[[], Started]
    trained_steps: Callable[[int], None]

    def learner(self, start: Started) -> Learner:
        """A learner of the task's loss."""
        return Learner(start[0], self.loss, start[1])


@dataclass(slots=True, kw_only=True)
class Lineup:
    """What is run side by side in a cell.

    Attributes:
        strategies: to be scored; those that show what another one has learned come before it.
        learner: which of them learns. batch: new examples at a time.
        deployed: copies of the parameters that serve; None: they change too seldom to be looked at after each step.
        told: what the authors of the paper count as changed, after a step.
        finish: called after the stream; gives further fields of the result.
        final: the strategies as they are to be scored on the test set; default: the same.
    """

    strategies: dict[str, Strategy]
    learner: str = ""
    batch: int
    deployed: Callable[[], Parameters] | None = None
    told: Callable[[], int] | None = None
    finish: Callable[[], Record] = dict
    final: dict[str, Strategy] = field(default_factory=dict)


class Changes:
    """Looks now and then at how many of the deployed parameters a step really changes."""

    def __init__(self, lineup: Lineup, trained_steps: Callable[[int], None]) -> None:
        self._lineup, self._trained_steps = lineup, trained_steps
        self._changed, self._told = Running(), Running()
        self._before: Parameters | None = None

    def after(self, step: int) -> None:
        """That step of the stream is done."""
        lineup = self._lineup
        if lineup.deployed is None:
            return
        self._trained_steps(step)
        if self._before is not None:
            self._changed.add([_differing(self._before, lineup.deployed())])
            self._told.add([lineup.told() if lineup.told else 0])
        self._before = lineup.deployed() if step % _LOOK_EVERY == 1 else None

    def found(self) -> Record:
        """The means, None where nothing was looked at."""
        return {
            "changed": self._changed.value if self._changed.count else None,
            "told": self._told.value if self._told.count and self._lineup.told else None,
        }


@functools.cache
def compile_publisher() -> None:
    """What a publisher compiles once in a process, seconds that no step should be charged with."""
    model = make_lenet5()
    optimizer = torch.optim.Adam(model.parameters(), amsgrad=True)
    with Publisher(model, optimizer, f"memory:compile-{os.getpid()}", density=1e-2) as publisher:
        for _ in range(2):
            model(torch.rand(2, 1, 28, 28)).sum().backward()
            optimizer.step()
            publisher.publish()


def never_updated(task: Task) -> Lineup:
    """The first model, for ever."""
    return Lineup(strategies={"": NeverUpdated(task.learner(task.start()))}, batch=SERVING_BATCH)


def trainer_of(
    cell: Cell, task: Task, folder: Path, stack: contextlib.ExitStack, start: Started, **options: Any
) -> Trainer:
    """Trains `start` on each `cell.trigger` new examples and draws from all before: uniform ones, by default."""
    model, optimizer = start
    history = stack.enter_context(History(folder))
    x, y = task.first
    history.append({"x": x, "y": y}, arrived_s=1.0)
    batch_size = cell.trigger if cell.kind == "online" else task.batch_size
    sampler: Sampler = options.pop("sampler", None) or Uniform(seed=cell.seed)
    trainer = Trainer(
        model=model, loss=task.loss, optimizer=optimizer, history=history, sampler=sampler,
        trigger=EveryN(cell.trigger), batch_size=batch_size, **options,
    )  # fmt: skip
    return stack.enter_context(trainer)


def dense(
    cell: Cell, task: Task, folder: Path, stack: contextlib.ExitStack, *, sampler: Sampler | None = None
) -> Lineup:
    """Online or proactive training; an update is a full push."""
    start = task.start()
    trainer = trainer_of(cell, task, folder, stack, start, sampler=sampler)
    return Lineup(
        strategies={"": trainer},
        batch=cell.trigger,
        deployed=lambda: copies(start[0]),
        finish=lambda: {"steps": trainer.steps, "updates": trainer.steps, "update_bytes": full_push_bytes(start[0])},
    )


def published(
    cell: Cell, task: Task, folder: Path, stack: contextlib.ExitStack, *, sampler: Sampler | None = None
) -> Lineup:
    """Proactive training with a publisher whose log is a directory; a real replica ends up as the deployed model."""
    start = task.start()
    publisher = publisher_of(cell, start, folder / "log")
    stack.callback(publisher.detach)
    names = [name for name, _ in start[0].named_parameters()]
    trainer = trainer_of(cell, task, folder / "history", stack, start, publisher=publisher, sampler=sampler)
    served, _ = task.fresh()

    def deployed() -> Parameters:
        weights = publisher.published()
        return [weights[name] for name in names]

    def finish() -> Record:
        publisher.flush()
        replica = Replica(f"file:{folder / 'log'}")
        replica.sync()
        if (replica.version, replica.digest) != (publisher.version, publisher.digest):
            raise RuntimeError(f"the replica of {cell.name}, seed {cell.seed}, is not the deployed model")
        load_weights(served, replica)
        files = [file.stat().st_size for file in (folder / "log" / "updates").glob("*.eg")]
        return {
            "steps": trainer.steps,
            "updates": publisher.stats().updates,
            "update_bytes": sum(files) / max(1, len(files)),
            "digest": f"{publisher.digest:016x}",
            "replica_digest": f"{replica.digest:016x}",
            "version": replica.version,
        }

    return Lineup(
        strategies={"": trainer},
        batch=cell.trigger,
        deployed=deployed,
        finish=finish,
        final={"": NeverUpdated(task.learner((served, start[1])))},
    )


def publisher_of(cell: Cell, start: Started, log: Path) -> Publisher:
    """The publisher that a cell describes."""
    return Publisher(
        *start,
        f"file:{log}",
        density=cell.density,
        forward=_FORWARDS.get(cell.kind, "auto"),
        selector=_selector_of(cell),
    )


def _selector_of(cell: Cell) -> Selector | Selection:
    if cell.selection == "random":
        return RandomK(cell.seed)
    return "saliency" if cell.selection == "saliency" else "distance"


def retrained(cell: Cell, task: Task) -> Lineup:
    """Full retraining; as the paper scores it, a segment's model serves from the segment's end on."""
    model, optimizer = task.start()
    steps = _Steps(task.trained_steps)
    strategy = Retrained(
        lambda: _Counted(steps, task.learner(task.fresh())),
        task.learner((model, optimizer)),
        every=task.retrain_every,
        epochs=task.retrain_epochs,
        batch_size=task.batch_size,
        seen=task.first,
        seed=cell.seed,
        took_s=lambda _: 0.0,
    )
    return Lineup(
        strategies={"": strategy},
        batch=SERVING_BATCH,
        finish=lambda: {
            "steps": steps.count,
            "updates": strategy.trainings,
            "update_bytes": full_push_bytes(model),
        },
    )


@dataclass(slots=True)
class _Steps:
    tell: Callable[[int], None]
    count: int = 0

    def one_more(self) -> None:
        self.count += 1
        self.tell(self.count)


class _Counted(Learner):
    """Counts its steps."""

    def __init__(self, steps: _Steps, plain: Learner) -> None:
        super().__init__(plain.model, plain.loss, plain.optimizer)
        self._counter = steps

    def learn(self, x: torch.Tensor, y: torch.Tensor) -> Learned:
        learned = super().learn(x, y)
        self._counter.one_more()
        return learned


def copies(model: nn.Module) -> Parameters:
    """Of its parameters."""
    return copy.deepcopy([parameter.detach() for parameter in model.parameters()])


def _differing(before: Parameters, after: Parameters) -> int:
    return sum(int(torch.count_nonzero(old != new)) for old, new in zip(before, after, strict=True))
