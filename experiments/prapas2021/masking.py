"""The authors' way to make training sparse, as the other side of comparisons.

Prapas, Derakhshan, Mahdiraji, Markl 2021, "Continuous Training and Deployment of Deep Learning Models", section 4, and
the experiment code that its authors published: the *gradient* is sparsified, tensor by tensor, before the optimizer
sees it; what was left out is kept in a memory and added to the next gradient (Stich, Cordonnier, Jaggi 2018,
"Sparsified SGD with Memory"). Nothing is encoded, sent or deployed.

Their optimizer is Adam, whose momentum moves the masked weights too: what a replica would be that gets the selected
weights alone is `Receiving`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from evergrad import Batch
from evergrad.pytorch.learner import Learner, Loss


class GradientMemory:
    """Leaves some elements of each tensor's gradient to the optimizer, the largest, and keeps the others for later.

        memory.restore()        gradients are what was left out so far; there is no zero_grad()
        loss.backward()         adds to them
        memory.sparsify()       the largest stay, the others become the memory
        optimizer.step()

    Args:
        parameters: dense tensors, in any memory format.
        density: of each tensor, the fraction of elements that stay, rounded down, and one at least.
        random: draws the elements that stay; None: they are the largest.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], density: float, random: torch.Generator | None = None
    ) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._density, self._random = density, random
        self._left: list[torch.Tensor | None] = [None] * len(self._parameters)

    def restore(self) -> None:
        """Makes the memory the gradients that the next backward pass adds to."""
        for parameter, left in zip(self._parameters, self._left, strict=True):
            parameter.grad = left

    def sparsify(self) -> None:
        """Splits each gradient into what stays in `grad` and what is kept; their sum is the gradient, exactly."""
        for number, parameter in enumerate(self._parameters):
            gradient = parameter.grad
            if gradient is None:
                continue
            chosen = self._chosen(_flat(gradient), max(1, int(self._density * gradient.numel())))
            left = gradient.clone()
            _flat(left)[chosen] = 0
            gradient.sub_(left)
            self._left[number] = left

    def _chosen(self, gradient: torch.Tensor, k: int) -> torch.Tensor:
        if self._random is None:
            return torch.topk(gradient.abs(), k, sorted=False).indices
        return torch.randperm(len(gradient), generator=self._random)[:k].to(gradient.device)


class MaskedStep:
    """A training step as the authors' code takes it: `step` of a `Trainer`."""

    def __init__(self, model: nn.Module, loss: Loss, optimizer: torch.optim.Optimizer, memory: GradientMemory) -> None:
        self._model, self._loss, self._optimizer, self._memory = model, loss, optimizer, memory

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self._memory.restore()
        loss = self._loss(self._model(x), y)
        loss.backward()
        self._memory.sparsify()
        self._optimizer.step()
        return loss


class Receiving:
    """A replica that gets, after each step, the new values of the weights that were selected: a strategy to score.

    Args:
        learner: of the replica's own model, equal to the trained one at the beginning.
        trained: the model that `MaskedStep` trains, whose gradients tell what was selected.
        statistics: it gets all buffers too, which the authors' code does not count.
    """

    def __init__(self, learner: Learner, trained: nn.Module, *, statistics: bool) -> None:
        self._learner, self._trained, self._statistics = learner, trained, statistics

    def predict(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The outputs, by what has arrived."""
        self._receive()
        return self._learner.predict(x)

    def learn(self, batch: Batch) -> None:
        """The trained model does that."""

    def _receive(self) -> None:
        model = self._learner.model
        with torch.no_grad():
            for own, theirs in zip(model.parameters(), self._trained.parameters(), strict=True):
                if theirs.grad is not None:
                    own.copy_(torch.where(theirs.grad != 0, theirs, own))
            if self._statistics:
                for own, theirs in zip(model.buffers(), self._trained.buffers(), strict=True):
                    own.copy_(theirs)


def selected(model: nn.Module) -> int:
    """How many gradients the last step has left: what the authors count as changed."""
    return sum(int(torch.count_nonzero(p.grad)) for p in model.parameters() if p.grad is not None)


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """All elements in the order in which memory holds them, as a view."""
    return tensor.as_strided((tensor.numel(),), (1,))
