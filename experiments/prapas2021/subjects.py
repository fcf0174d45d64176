"""What is run in a cell: strategies, built through the library's public interface, and how to look at them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from evergrad import EveryN, History, Publisher, Replica, Trainer, Uniform
from evergrad.pytorch.bridge import load_weights
from evergrad.pytorch.learner import Learned, Learner
from evergrad.pytorch.select import RandomK
from evergrad.pytorch.strategies import NeverUpdated, Retrained, Strategy
from experiments.data import Images
from experiments.prapas2021.grid import SERVING_BATCH, Cell
from experiments.prapas2021.masking import GradientMemory, MaskedStep, Receiving, selected
from experiments.prapas2021.protocol import Protocol

Parameters = list[torch.Tensor]
_BYTES_OF_A_SELECTED = 8  # a 4-byte index beside each 4-byte value


@dataclass(slots=True)
class Task:
    """All that cells of one seed have in common.

    Attributes:
        start: gives the model and the optimizer as the initial training left them, each time new ones.
        fresh: gives an untrained model and its optimizer.
        trained_steps: is told how many training steps a cell has taken so far.
    """

    protocol: Protocol
    images: Images
    start: Callable[[], tuple[nn.Module, torch.optim.Optimizer]]
    fresh: Callable[[], tuple[nn.Module, torch.optim.Optimizer]]
    trained_steps: Callable[[int], None]


@dataclass(slots=True, kw_only=True)
class Subject:
    """What is run side by side in a cell.

    Attributes:
        strategies: to be scored; those that show what another one has learned come before it.
        learner: which of them learns. batch: new examples at a time.
        deployed: copies of the parameters that serve; None: they change too seldom to be looked at after each step.
        told: what the authors count as changed, after a step.
        finish: called after the stream; gives further fields of the result.
        final: the strategies as they are to be scored on the test set; default: the same.
    """

    strategies: dict[str, Strategy]
    learner: str
    batch: int
    deployed: Callable[[], Parameters] | None = None
    told: Callable[[], int] | None = None
    finish: Callable[[], dict[str, Any]] = dict
    final: dict[str, Strategy] = field(default_factory=dict)


@contextlib.contextmanager
def built(cell: Cell, task: Task, folder: Path) -> Iterator[Subject]:
    """The subject of a cell; what it writes goes to `folder`."""
    with contextlib.ExitStack() as stack:
        if cell.kind in ("closed", "open"):
            yield _published(cell, task, folder, stack)
        elif cell.kind == "masked":
            yield _masked(cell, task, folder, stack)
        elif cell.kind == "overhead":
            yield _side_by_side(cell, task, folder, stack)
        elif cell.kind == "retrained":
            yield _retrained(cell, task)
        elif cell.kind == "never-updated":
            model, optimizer = task.start()
            yield Subject(
                strategies={"": NeverUpdated(Learner(model, cross_entropy, optimizer))},
                learner="",
                batch=SERVING_BATCH,
            )
        else:
            yield _dense(cell, task, folder, stack)


def _trainer(
    cell: Cell,
    task: Task,
    folder: Path,
    stack: contextlib.ExitStack,
    start: tuple[nn.Module, torch.optim.Optimizer],
    **options: Any,
) -> Trainer:
    """Trains `start` on each `cell.trigger` new examples and uniform draws from all before."""
    model, optimizer = start
    history = stack.enter_context(History(folder))
    first, images = task.protocol.first, task.images
    history.append({"x": images.x[:first], "y": images.y[:first]}, arrived_s=1.0)
    batch_size = cell.trigger if cell.kind == "online" else task.protocol.batch_size
    trainer = Trainer(
        model=model, loss=cross_entropy, optimizer=optimizer, history=history, sampler=Uniform(seed=cell.seed),
        trigger=EveryN(cell.trigger), batch_size=batch_size, **options,
    )  # fmt: skip
    return stack.enter_context(trainer)


def _dense(cell: Cell, task: Task, folder: Path, stack: contextlib.ExitStack) -> Subject:
    start = task.start()
    trainer = _trainer(cell, task, folder, stack, start)
    return Subject(
        strategies={"": trainer},
        learner="",
        batch=cell.trigger,
        deployed=lambda: _copies(start[0]),
        finish=lambda: {"steps": trainer.steps, "updates": trainer.steps, "update_bytes": full_push_bytes(start[0])},
    )


def _published(cell: Cell, task: Task, folder: Path, stack: contextlib.ExitStack) -> Subject:
    start = task.start()
    publisher = _publisher(cell, start, folder / "log")
    stack.callback(publisher.detach)
    names = [name for name, _ in start[0].named_parameters()]
    trainer = _trainer(cell, task, folder / "history", stack, start, publisher=publisher)
    served, _ = task.fresh()
    final: dict[str, Strategy] = {"": NeverUpdated(Learner(served, cross_entropy, start[1]))}

    def deployed() -> Parameters:
        weights = publisher.published()
        return [weights[name] for name in names]

    def finish() -> dict[str, Any]:
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

    return Subject(
        strategies={"": trainer}, learner="", batch=cell.trigger, deployed=deployed, finish=finish, final=final
    )


def _publisher(cell: Cell, start: tuple[nn.Module, torch.optim.Optimizer], log: Path) -> Publisher:
    return Publisher(
        *start,
        f"file:{log}",
        density=cell.density,
        forward="master" if cell.kind == "open" else "deployed",
        selector=RandomK(cell.seed) if cell.selection == "random" else None,
    )


def _masked(cell: Cell, task: Task, folder: Path, stack: contextlib.ExitStack) -> Subject:
    start = task.start()
    model = start[0]
    strategies: dict[str, Strategy] = {"replica": _receiving(task, model, statistics=False)}
    if any(True for _ in model.buffers()):
        strategies["replica with statistics"] = _receiving(task, model, statistics=True)
    trainer = strategies["trained"] = _trainer(cell, task, folder, stack, start, step=_masked_step(cell, start))

    def finish() -> dict[str, Any]:
        update_bytes = _BYTES_OF_A_SELECTED * selected(model)
        return {"steps": trainer.steps, "updates": trainer.steps, "update_bytes": update_bytes}

    return Subject(
        strategies=strategies,
        learner="trained",
        batch=cell.trigger,
        deployed=lambda: _copies(model),
        told=lambda: selected(model),
        finish=finish,
    )


def _masked_step(cell: Cell, start: tuple[nn.Module, torch.optim.Optimizer]) -> MaskedStep:
    model, optimizer = start
    random = torch.Generator().manual_seed(cell.seed) if cell.selection == "random" else None
    memory = GradientMemory(model.parameters(), cell.density or 1.0, random)
    return MaskedStep(model, cross_entropy, optimizer, memory)


def _receiving(task: Task, trained: nn.Module, *, statistics: bool) -> Receiving:
    model, optimizer = task.start()
    return Receiving(Learner(model, cross_entropy, optimizer), trained, statistics=statistics)


def _side_by_side(cell: Cell, task: Task, folder: Path, stack: contextlib.ExitStack) -> Subject:
    ours, theirs = task.start(), task.start()
    publisher = _publisher(cell, ours, folder / "log")
    stack.callback(publisher.detach)
    strategies: dict[str, Strategy] = {
        "dense": _trainer(cell, task, folder / "dense", stack, task.start()),
        "masked": _trainer(cell, task, folder / "masked", stack, theirs, step=_masked_step(cell, theirs)),
        "published": _trainer(cell, task, folder / "published", stack, ours, publisher=publisher),
    }
    return Subject(strategies=strategies, learner="dense", batch=cell.trigger)


def _retrained(cell: Cell, task: Task) -> Subject:
    protocol, images = task.protocol, task.images
    model, optimizer = task.start()
    steps = _Steps(task.trained_steps)
    retrained = Retrained(
        lambda: _Counted(steps, *task.fresh()),
        Learner(model, cross_entropy, optimizer),
        every=protocol.retrain_every,
        epochs=protocol.retrain_epochs,
        batch_size=protocol.batch_size,
        seen=(images.x[: protocol.first], images.y[: protocol.first]),
        seed=cell.seed,
        took_s=lambda _: 0.0,  # as the authors score it: a segment's model serves from the segment's end on
    )
    return Subject(
        strategies={"": retrained},
        learner="",
        batch=SERVING_BATCH,
        finish=lambda: {
            "steps": steps.count,
            "updates": retrained.trainings,
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

    def __init__(self, steps: _Steps, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(model, cross_entropy, optimizer)
        self._counter = steps

    def learn(self, x: torch.Tensor, y: torch.Tensor) -> Learned:
        learned = super().learn(x, y)
        self._counter.one_more()
        return learned


def full_push_bytes(model: nn.Module) -> int:
    """What all its tensors take."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def _copies(model: nn.Module) -> Parameters:
    return copy.deepcopy([parameter.detach() for parameter in model.parameters()])
