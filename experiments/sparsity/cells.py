"""Runs a cell: an initial training, which cells of one optimizer, rate and seed share, then the stream."""

from __future__ import annotations

import copy
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from evergrad.errors import NonFiniteWeights
from evergrad.pytorch.choice import examples_to_score
from evergrad.records import Record
from experiments.sparsity.loops import Array, Loop
from experiments.sparsity.methods import METHODS, Cell
from experiments.sparsity.subjects import Ground

POINTS = 20
Started = tuple[nn.Module, torch.optim.Optimizer]


def make_optimizer(name: str, model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """adam (amsgrad), adamw (a weight decay of 0.01), or sgd (a momentum of 0.9)."""
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    if name == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=rate, amsgrad=True)
    return torch.optim.Adam(model.parameters(), lr=rate, amsgrad=True)


class Setup:
    """What cells share: the ground, the optimizer's name, and the initial trainings."""

    def __init__(self, ground: Ground, optimizer: str) -> None:
        self.ground, self.optimizer = ground, optimizer
        subject = ground.subject
        self._x = np.concatenate((subject.first.x, subject.stream.x))
        self._y = np.concatenate((subject.first.y, subject.stream.y))
        self._first: dict[tuple[float, int], Started] = {}

    def start(self, rate: float, seed: int) -> Started:
        """The model and its optimizer as the initial training left them, each time new ones."""
        if (rate, seed) not in self._first:
            self._first[rate, seed] = self._train_first(rate, seed)
        model, optimizer = self._first[rate, seed]
        mine = copy.deepcopy(model)
        again = make_optimizer(self.optimizer, mine, rate)
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        return mine, again

    def _train_first(self, rate: float, seed: int) -> Started:
        subject = self.ground.subject
        torch.manual_seed(seed)
        model = subject.make_model()
        optimizer = make_optimizer(self.optimizer, model, rate)
        x, y = torch.tensor(subject.first.x), torch.tensor(subject.first.y)
        model.train()
        for _ in range(subject.first_epochs):
            for rows in torch.split(torch.randperm(len(x)), subject.batch_size):
                optimizer.zero_grad()
                torch.autograd.backward(subject.loss(model(x[rows]), y[rows]).mean())
                optimizer.step()
        return model, optimizer

    def fresh(self, step: int) -> slice:
        """The rows of what step `step` of the stream has that is new."""
        begin = len(self.ground.subject.first) + step * self.ground.trigger
        return slice(begin, begin + self.ground.trigger)

    def tensors(self, rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """x and y of these rows."""
        return torch.from_numpy(self._x[rows]), torch.from_numpy(self._y[rows])


def run_cell(cell: Cell, setup: Setup, out: Path) -> Record:
    """All that is to be known of one cell; see README.md for the fields.

    What is drawn depends on the seed alone, so that methods differ in nothing else. Where training ends in weights that
    are not finite, nothing more is learned or sent, and what was deployed last is scored to the end, as users have it.
    """
    method, ground = METHODS[cell.method], setup.ground
    subject, begun = ground.subject, time.process_time()
    start = setup.start(cell.rate, cell.seed)
    full_bytes = sum(tensor.nbytes for tensor in start[0].state_dict().values())
    elements = sum(parameter.numel() for parameter in start[0].parameters())
    torch.manual_seed(cell.seed)
    random = np.random.default_rng(cell.seed)
    outputs: list[Array] = []
    diverged: int | None = None
    with tempfile.TemporaryDirectory(dir=out, prefix="cell-") as folder:
        loop = Loop(
            method, start, subject.loss, density=cell.density, folder=Path(folder) / "log", seed=cell.seed,
            steps=ground.steps, scored=examples_to_score(subject.batch_size),
        )  # fmt: skip
        for step in range(ground.steps):
            new = setup.fresh(step)
            x, y = setup.tensors(new)
            told = loop.predict(x)
            outputs.append(told.numpy())
            loop.scored(x, y, told)
            old = random.choice(new.start, max(0, subject.batch_size - ground.trigger), replace=False, shuffle=False)
            if diverged is None:
                try:
                    loop.step(*setup.tensors(np.concatenate((np.arange(new.start, new.stop), old))))
                except NonFiniteWeights:
                    diverged = step
        finished = loop.finish()
    if finished["updates"] is None:
        finished |= {"updates": ground.steps, "sent_bytes": ground.steps * full_bytes}
    return {
        "cell": cell.name,
        "method": cell.method,
        "density": cell.density,
        "rate": cell.rate,
        "seed": cell.seed,
        **_scores(np.concatenate(outputs), ground),
        **finished,
        "steps": ground.steps,
        "elements": elements,
        "diverged": diverged,
        "lag": loop.lag.found(),
        "seconds": time.process_time() - begun,
    }


def _scores(outputs: Array, ground: Ground) -> Record:
    """The leading measure: of all, of the second half, and of each twentieth; the others of all."""
    subject = ground.subject
    labels = subject.stream.y[: len(outputs)]
    of = subject.measures[subject.main].of
    edges = np.linspace(0, len(outputs), POINTS + 1).astype(int)
    return {
        "score": of(outputs, labels),
        "late": of(outputs[edges[POINTS // 2] :], labels[edges[POINTS // 2] :]),
        "curve": [of(outputs[a:b], labels[a:b]) for a, b in itertools.pairwise(edges)],
        "measures": {name: measure.of(outputs, labels) for name, measure in subject.measures.items()},
    }
