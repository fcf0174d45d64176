"""Which strategies a cell runs: the shared ones, and those of the authors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from evergrad import LossPrioritised
from evergrad.pytorch.strategies import Strategy
from evergrad.records import Record
from experiments.cell import LOOPS, Cell
from experiments.first import Started
from experiments.lineup import (
    Lineup,
    Task,
    copies,
    dense,
    never_updated,
    published,
    publisher_of,
    retrained,
    trainer_of,
)  # fmt: skip
from experiments.prapas2021.masking import GradientMemory, MaskedStep, Receiving, selected

_BYTES_OF_A_SELECTED = 8  # a 4-byte index beside each 4-byte value


@contextlib.contextmanager
def built(cell: Cell, task: Task, folder: Path) -> Iterator[Lineup]:
    """What a cell runs; what it writes goes to `folder`."""
    with contextlib.ExitStack() as stack:
        if cell.kind in LOOPS:
            yield published(cell, task, folder, stack)
        elif cell.kind == "prioritised":
            run = published if cell.density else dense
            yield run(cell, task, folder, stack, sampler=LossPrioritised(seed=cell.seed))
        elif cell.kind == "masked":
            yield _masked(cell, task, folder, stack)
        elif cell.kind == "overhead":
            yield _side_by_side(cell, task, folder, stack)
        elif cell.kind == "retrained":
            yield retrained(cell, task)
        elif cell.kind == "never-updated":
            yield never_updated(task)
        else:
            yield dense(cell, task, folder, stack)


def _masked(cell: Cell, task: Task, folder: Path, stack: contextlib.ExitStack) -> Lineup:
    start = task.start()
    model = start[0]
    strategies: dict[str, Strategy] = {"replica": _receiving(task, model, statistics=False)}
    if any(True for _ in model.buffers()):
        strategies["replica with statistics"] = _receiving(task, model, statistics=True)
    trainer = strategies["trained"] = trainer_of(cell, task, folder, stack, start, step=_masked_step(cell, start))

    def finish() -> Record:
        update_bytes = _BYTES_OF_A_SELECTED * selected(model)
        return {"steps": trainer.steps, "updates": trainer.steps, "update_bytes": update_bytes}

    return Lineup(
        strategies=strategies,
        learner="trained",
        batch=cell.trigger,
        deployed=lambda: copies(model),
        told=lambda: selected(model),
        finish=finish,
    )


def _masked_step(cell: Cell, start: Started) -> MaskedStep:
    model, optimizer = start
    random = torch.Generator().manual_seed(cell.seed) if cell.selection == "random" else None
    memory = GradientMemory(model.parameters(), cell.density or 1.0, random)
    return MaskedStep(model, cross_entropy, optimizer, memory)


def _receiving(task: Task, trained: nn.Module, *, statistics: bool) -> Receiving:
    return Receiving(task.learner(task.start()), trained, statistics=statistics)


def _side_by_side(cell: Cell, task: Task, folder: Path, stack: contextlib.ExitStack) -> Lineup:
    ours, theirs = task.start(), task.start()
    publisher = publisher_of(cell, ours, folder / "log")
    stack.callback(publisher.detach)
    strategies: dict[str, Strategy] = {
        "dense": trainer_of(cell, task, folder / "dense", stack, task.start()),
        "masked": trainer_of(cell, task, folder / "masked", stack, theirs, step=_masked_step(cell, theirs)),
        "published": trainer_of(cell, task, folder / "published", stack, ours, publisher=publisher),
    }
    return Lineup(strategies=strategies, learner="dense", batch=cell.trigger)
