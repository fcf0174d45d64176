"""The first models: trained once for each seed, kept in a folder, and what all strategies of that seed begin with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from evergrad.pytorch.checkpoint import Checkpoints
from evergrad.pytorch.learner import Learner, Loss
from evergrad.records import Record

Started = tuple[nn.Module, torch.optim.Optimizer]
Examples = tuple[npt.NDArray[Any], npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class First:
    """Args: folder: where they are. fresh: gives an untrained model and its optimizer."""

    folder: Path
    fresh: Callable[[], Started]

    def train(
        self,
        seed: int,
        examples: Examples,
        loss: Loss,
        *,
        epochs: int,
        batch_size: int,
        clock: Callable[[], float],
        trained_steps: Callable[[int], None],
    ) -> Record:
        """Trains one, shuffled by torch's generator, and keeps it; what the cell `first` is about."""
        model, optimizer = self.fresh()
        learner = Learner(model, loss, optimizer)
        x, y = (torch.tensor(part).to(learner.device) for part in examples)
        begun = clock()
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(x)), batch_size):
                learner.learn(x[rows], y[rows])
            trained_steps(learner.steps)
        self._of(seed).save(0, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
        return {
            "learn_s": clock() - begun,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "full_push_bytes": full_push_bytes(model),
        }

    def start(self, seed: int) -> Started:
        """The model and its optimizer as the initial training left them, each time new ones."""
        found = self._of(seed).newest()
        if found is None:
            raise RuntimeError(f"no initial training of seed {seed} in {self.folder}")
        model, optimizer = self.fresh()
        model.load_state_dict(found[1]["model"])
        optimizer.load_state_dict(found[1]["optimizer"])
        return model, optimizer

    def _of(self, seed: int) -> Checkpoints:
        return Checkpoints(self.folder / f"seed-{seed}", background=False)


def full_push_bytes(model: nn.Module) -> int:
    """What all its tensors take."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())
