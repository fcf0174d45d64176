"""A loop: two copies of the weights, a gradient taken at a point of both, and a publisher that moves one to the other.

    master      what the optimizer steps
    shown       a module of its own that forward and backward passes run on; its weights are set before each
    followed    what the publisher follows: the master, or an average of it
    deployed    the publisher's, and by updates in a log the replicas'

The publisher is the library's in all of them, so bytes are those of real updates. `forward="master"` and
`forward="deployed"` of a `Publisher` are two of the loops here, bit for bit; the others exist only for this study.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from evergrad import Publisher, Replica
from evergrad.errors import NonFiniteWeights
from evergrad.pytorch.learner import Loss
from evergrad.pytorch.select import LayerTopK, RandomK, Saliency, Selector
from evergrad.pytorch.settings import Selection
from experiments.prapas2021.masking import GradientMemory
from experiments.sparsity.choice import Always, ByLag, ByScore, Choice, EitherAtRandom, Pace, Paced, Unmasked
from experiments.sparsity.lag import Lag
from experiments.sparsity.methods import Method

Array = npt.NDArray[Any]
Tensors = Sequence[torch.Tensor]
_MOMENTA = ("exp_avg", "momentum_buffer")


class Loop:
    """Trains one model and deploys it.

    Args:
        start: the model and its optimizer as the initial training left them; they belong to the loop from here on.
        density: of a step; None where the whole model is sent.
        folder: where the log goes. steps: of the whole stream.
        scored: new examples a step that both copies are scored on.
    """

    def __init__(
        self,
        method: Method,
        start: tuple[nn.Module, torch.optim.Optimizer],
        loss: Loss,
        *,
        density: float | None,
        folder: Path,
        seed: int,
        steps: int,
        scored: int = 8,
    ) -> None:
        self.method, self._loss, self._url = method, loss, f"file:{folder}"
        self.master, self._optimizer = start
        self._scored, self._shown = scored, copy.deepcopy(self.master)
        self._followed = self.master if method.average is None else copy.deepcopy(self.master)
        self._masters = [each.detach() for each in self.master.parameters()]
        self._pace, self._choice = Pace(steps), _choice(method, seed)
        self._memory = None
        self._publisher: Publisher | None = None
        if method.deploy == "masked":
            self._memory = GradientMemory(self._shown.parameters(), density or 1.0)
        if method.has_density:
            self._publisher = Publisher(
                self._followed, None, self._url, density=density, forward="master", selector=self._selector(seed),
                values="exact" if method.deploy == "masked" else method.values,
            )  # fmt: skip
            live = self._publisher.state_dict()["deployed"]
            self._deployed = [live[name] for name, _ in self.master.named_parameters()]
        else:
            self._deployed = [each.detach() for each in self._followed.parameters()]
        self.lag = Lag(self._masters, self._deployed)

    def _selector(self, seed: int) -> Selector | Selection:
        method = self.method
        if method.deploy == "masked":
            return Unmasked()
        if method.pace != "fixed":
            return Paced(getattr(self._pace, method.pace))
        ways: dict[str, Selector | Selection] = {
            "top": "distance",
            "random": RandomK(seed),
            "layer": LayerTopK(),
            "saliency": Saliency(self._optimizer),
        }
        return ways[method.select]

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """The deployed model's outputs."""
        if self._publisher is None:
            return _outputs(self._followed, x)
        with self._publisher.deployed():
            return _outputs(self._followed, x)

    def scored(self, x: torch.Tensor, y: torch.Tensor, outputs: torch.Tensor) -> None:
        """Takes note of what the deployed model said about fresh examples, and asks the master where that is needed."""
        loss = float(self._loss(outputs, y).mean())
        self._pace.stepped(loss)
        if isinstance(self._choice, ByScore) and self._choice.wants_score():
            x, y, outputs = (each[-self._scored :] for each in (x, y, outputs))
            losses = (float(self._loss(each, y).mean()) for each in (outputs, _outputs(self.master, x)))
            self._choice.scored(*losses)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Takes one optimizer step, and sends what is due of it.

        Raises:
            NonFiniteWeights: the master holds NaN or infinity; deployed weights are as they were.
        """
        self._backward(x, y)
        self._optimizer.step()
        if not all(bool(each.isfinite().all()) for each in self._masters):
            raise NonFiniteWeights("the master", self.lag.step)
        with torch.no_grad():
            if self.method.average is not None:
                torch._foreach_lerp_(list(self._followed.parameters()), self._masters, 1 - self.method.average)
            for module in {id(self.master): self.master, id(self._followed): self._followed}.values():
                for own, live in zip(module.buffers(), self._shown.buffers(), strict=True):
                    own.copy_(live)
            before = [each.clone() for each in self._deployed] if self._needs_before else []
            if self._publisher is not None:
                self._publisher.publish()
            if before:
                self._after(before)
        self.lag.look()

    def _backward(self, x: torch.Tensor, y: torch.Tensor) -> None:
        part = self._choice.deployed_part()
        shown = [each.detach() for each in self._shown.parameters()]
        torch._foreach_copy_(shown, self._deployed if part == 1 else self._masters)
        if 0 < part < 1:
            torch._foreach_lerp_(shown, self._deployed, part)
        self._shown.train()
        if self._memory is None:
            self._shown.zero_grad()
        else:
            self._memory.restore()
        loss = self._loss(self._shown(x), y).mean()
        torch.autograd.backward(loss)
        if self._memory is not None:
            self._memory.sparsify()
        for own, shown_one in zip(self.master.parameters(), self._shown.parameters(), strict=True):
            own.grad = shown_one.grad

    @property
    def _needs_before(self) -> bool:
        method = self.method
        lags = isinstance(self._choice, ByLag) or method.pace == "memory"
        forgets = method.keep < 1 or method.let_go > 0 or method.clip is not None
        return lags or forgets or method.mask_momentum

    def _after(self, before: Tensors) -> None:
        """What a method does to memory and momentum once the deployed weights have moved."""
        method = self.method
        if method.mask_momentum:
            for parameter, old, new in zip(self.master.parameters(), before, self._deployed, strict=True):
                for name in _MOMENTA:
                    momentum = self._optimizer.state[parameter].get(name)
                    if momentum is not None:
                        momentum.masked_fill_(old != new, 0)
        memory, size = _distance(self._masters, self._deployed), _size(self._masters)
        keep = method.keep * (self._choice.keep() if isinstance(self._choice, ByScore) else 1.0)
        if keep < 1:
            torch._foreach_lerp_(self._masters, self._deployed, 1 - keep)
        if method.clip is not None and memory > method.clip * size:
            torch._foreach_lerp_(self._masters, self._deployed, 1 - method.clip * size / memory)
        if isinstance(self._choice, ByLag):
            self._choice.lagged(self.lag.in_steps(before))
        self._pace.lagged(memory / size)

    def finish(self) -> dict[str, Any]:
        """Bytes and updates; a replica has followed all of them, and is the deployed model.

        Raises:
            RuntimeError: it is not.
        """
        if self._publisher is None:
            return {"updates": None, "sent_bytes": None}
        replica, stats = Replica(self._url), self._publisher.stats()
        replica.sync()
        if (replica.version, replica.digest) != (self._publisher.version, self._publisher.digest):
            raise RuntimeError("the replica is not the deployed model")
        self._publisher.detach()
        return {"updates": stats.updates, "sent_bytes": stats.update_bytes, "digest": f"{replica.digest:016x}"}


def _choice(method: Method, seed: int) -> Choice:
    if method.forward == "random":
        return EitherAtRandom(seed)
    if method.forward == "by-score":
        return ByScore(method.margin, method.let_go)
    if method.forward == "by-lag":
        return ByLag()
    return Always({"master": 0.0, "deployed": 1.0, "between": 0.5}[method.forward])


def _outputs(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(x)


def _size(tensors: Tensors) -> float:
    return float(np.sqrt(sum(float(each.square().sum()) for each in tensors)))


def _distance(some: Tensors, others: Tensors) -> float:
    return _size(torch._foreach_sub(list(some), list(others)))
