"""Proactive training: each few new examples, mixed with sampled history, make one training step.

Prapas et al. 2021 (doi 10.1007/s13222-021-00386-8), after Derakhshan et al. 2019. Deployment is the publisher's part,
which hangs on the optimizer; without one this is plain proactive training.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from evergrad.errors import ConfigError, NonFiniteLoss
from evergrad.history import History
from evergrad.pytorch.bridge import batch_tensors
from evergrad.pytorch.publisher import Publisher
from evergrad.pytorch.writer import Published
from evergrad.sampling import Sampler
from evergrad.stream import Batch
from evergrad.trigger import Trigger

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One training step.

    Attributes:
        number: 1 for the first.
        loss: of its batch, before the step.
        new, old: how many new and how many historical examples were in its batch.
        published: the update that it led to; None where there is no publisher, or updates are held.
    """

    number: int
    loss: float
    new: int
    old: int
    published: Published | None


class Trainer:
    """Learns from a stream, batch by batch.

    Args:
        model, loss, optimizer: as in any torch loop; `loss(model(x), y)` gives the mean over the batch.
        history: where all examples go; its columns are x and y.
        sampler: which old examples join a batch.
        trigger: when a step is due.
        batch_size: new and old examples together; new ones always join, even where they are more.
        publisher: of this model and optimizer, or None to train alone.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        history: History,
        sampler: Sampler,
        trigger: Trigger,
        batch_size: int,
        publisher: Publisher | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError("batch_size", f"must be 1 or more, not {batch_size}")
        self._model, self._loss, self._optimizer = model, loss, optimizer
        self._history, self._sampler, self._trigger = history, sampler, trigger
        self._batch_size, self._publisher = batch_size, publisher
        self._learned = len(history)
        self.steps = 0

    def predict(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The outputs of the deployed model (of the model itself where there is no publisher) for a batch of inputs."""
        shown = self._publisher.deployed() if self._publisher else contextlib.nullcontext()
        training = self._model.training
        self._model.eval()
        try:
            with shown, torch.inference_mode():
                outputs: npt.NDArray[Any] = self._model(torch.from_numpy(np.ascontiguousarray(x))).numpy()
                return outputs
        finally:
            self._model.train(training)

    def loss_of(self, outputs: npt.NDArray[Any], y: npt.NDArray[Any]) -> float:
        """The loss of given outputs against labels."""
        with torch.inference_mode():
            return float(self._loss(torch.from_numpy(outputs), torch.from_numpy(np.ascontiguousarray(y))))

    def learn(self, batch: Batch, *, publish: bool = True) -> Step | None:
        """Takes in new examples, and takes a training step where one is due; None where none is.

        Args:
            publish: False holds the update back; it goes out with the next one that is let through.

        Raises:
            HistoryMismatch: the batch differs from the ones before; nothing was taken in.
            NonFiniteLoss, NonFiniteWeights: the examples are in the history; no update was published.
            WriterConflict, LogUnavailable: from the publisher; the step was taken, its update waits.
        """
        self._history.append({"x": batch.x, "y": batch.y})
        if not self._trigger.inform(len(batch), batch.arrived_s):
            return None
        first, last = self._learned, len(self._history)
        new = np.arange(first, last, dtype=np.int64)
        old = self._sampler.draw(first, max(0, self._batch_size - len(new)))
        x, y = batch_tensors(self._history.gather(np.concatenate((new, old))))
        loss = self._step(x, y)
        self._learned = last
        told = (first, last)
        published = self._publisher.publish(batch.arrived_s, told, hold=not publish) if self._publisher else None
        return Step(number=self.steps, loss=loss, new=len(new), old=len(old), published=published)

    def _step(self, x: torch.Tensor, y: torch.Tensor) -> float:
        self._model.train()
        self._optimizer.zero_grad()
        loss = self._loss(self._model(x), y)
        value = float(loss.detach())
        if not math.isfinite(value):
            if self._publisher:  # the forward pass has put what it saw into BatchNorm's statistics
                self._publisher.restore_buffers()
            raise NonFiniteLoss(self.steps + 1, value)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self.steps += 1
        return value
