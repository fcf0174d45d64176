"""One optimizer step on one batch: what a torch loop does between its `for` and its next line."""

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

from evergrad.errors import ConfigError, LossRefused, NonFiniteLoss
from evergrad.pytorch.bridge import tensor_over
from evergrad.stateful import Stateful

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""`loss(model(x), y)`: the mean over the batch, or one value for each example, whose mean is then minimised."""
StepFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""`step(x, y)`: a step of the user's own, from `zero_grad` to `optimizer.step()`; gives the loss as `Loss` does."""

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True, slots=True)
class Learned:
    """The loss of a batch, before the step: the mean, and, where the loss tells it, each example's (float64)."""

    mean: float
    each: npt.NDArray[np.float64] | None


class Learner:
    """Takes optimizer steps on batches, on the device where the model is.

    Where the model lies in memory with channels last, batches are laid so, too: with its deployed weights, which lie
    row-major, convolutions of row-major batches would take twice as long (MobileNetV2 on a CPU).

    Args:
        model: a module, or a compiled one.
        loss: see `Loss`.
        optimizer: any; LBFGS and others that call a closure take a `step` of the user's own.
        autocast: forward and loss run in this dtype where that is safe (`torch.autocast`), for example
            `torch.bfloat16`; None: in the model's own.
        scaler: a `torch.amp.GradScaler`, for float16. It leaves out steps whose gradients overflow.
        clip_norm: gradients are scaled down to this 2-norm, over all parameters, where theirs is larger.
        scheduler: its `step()` follows each optimizer step.
        step: instead of all of that: see `StepFunction`.
        tell_each: each example's loss is told even where `loss` gives means: it is then asked for one at a time.

    Raises:
        ConfigError: `clip_norm` is not above 0.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        *,
        autocast: torch.dtype | None = None,
        scaler: torch.amp.GradScaler | None = None,
        clip_norm: float | None = None,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        step: StepFunction | None = None,
        tell_each: bool = False,
    ) -> None:
        if clip_norm is not None and not clip_norm > 0:
            raise ConfigError("clip_norm", f"must be above 0, not {clip_norm}")
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self._layouts = _layouts_of(model)
        self._autocast, self._scaler, self._clip_norm = autocast, scaler, clip_norm
        self._scheduler, self._step, self._tell_each = scheduler, step or self._plain_step, tell_each
        self.steps = 0

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        first = next(self.model.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    def learn(self, x: torch.Tensor, y: torch.Tensor) -> Learned:
        """Takes one step.

        Raises:
            NonFiniteLoss, LossRefused: no step was taken; what the forward pass wrote to buffers stays.
        """
        device = self.device
        if not self.model.training:  # parts that are kept in evaluation mode stay so
            self.model.train()
        loss = self._step(self._there(x), y.to(device, non_blocking=True)).detach()
        each = loss.double().cpu().numpy() if loss.ndim else None
        self.steps += 1
        return Learned(float(loss.mean() if loss.ndim else loss), each)

    def _plain_step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.optimizer.zero_grad()
        with self._casting(x.device):
            outputs = self.model(x)
            loss = self._loss_of(outputs, y)
        mean = loss.mean() if loss.ndim else loss
        value = float(mean.detach())
        if not math.isfinite(value):
            raise NonFiniteLoss(self.steps + 1, value)
        if self._scaler is None:
            torch.autograd.backward(mean)
            self._clip()
            self.optimizer.step()
        else:
            torch.autograd.backward(self._scaler.scale(mean))
            if self._clip_norm is not None:
                self._scaler.unscale_(self.optimizer)
            self._clip()
            self._scaler.step(self.optimizer)
            self._scaler.update()
        if self._scheduler is not None:
            self._scheduler.step()
        return self._each(outputs.detach(), y) if self._tell_each and not loss.ndim else loss

    def _loss_of(self, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        try:
            return self.loss(outputs, y)
        except (IndexError, RuntimeError, ValueError, TypeError) as error:  # whatever torch and users raise there
            span = f" from {y.min()} to {y.max()}" if y.numel() and not y.is_complex() else ""
            told = f"{y.dtype} {list(y.shape)}{span}"
            raise LossRefused(f"{outputs.dtype} {list(outputs.shape)}", told, str(error)) from error

    def _each(self, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.stack([self.loss(outputs[i : i + 1], y[i : i + 1]) for i in range(len(outputs))])

    def _casting(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, self._autocast)

    def _clip(self) -> None:
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self._clip_norm)

    def predict(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The model's outputs for a batch of inputs, in evaluation mode."""
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            with torch.inference_mode():
                outputs = self.forward(tensor_over(x))
                found: npt.NDArray[Any] = outputs.float().cpu().numpy() if self._autocast else outputs.cpu().numpy()
                return found
        finally:
            for module in training:
                module.training = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The outputs for a batch that may be elsewhere than the model, in whatever mode the model is."""
        with self._casting(self.device):
            outputs: torch.Tensor = self.model(self._there(x))
            return outputs

    def _there(self, x: torch.Tensor) -> torch.Tensor:
        """A batch where the model is, and as that lies."""
        x = x.to(self.device, non_blocking=True)
        layout = self._layouts.get(x.dim())
        return x if layout is None else x.contiguous(memory_format=layout)

    def losses_of(
        self, outputs: npt.NDArray[Any], y: npt.NDArray[Any], *, each: bool = False
    ) -> npt.NDArray[np.float64]:
        """The loss of given outputs [examples, ...] against labels: float64, of each example or the mean, as [1].

        Args:
            each: of each example, even where the loss gives means: it is then asked for one example at a time.
        """
        with torch.inference_mode():
            given, labels = tensor_over(outputs), tensor_over(y)
            loss = self._loss_of(given, labels)
            if each and not loss.ndim and len(given) > 1:
                loss = self._each(given, labels)
        found: npt.NDArray[np.float64] = loss.double().reshape(-1).numpy()
        return found

    def parts(self) -> dict[str, Stateful]:
        """All that remembers, but for the model."""
        named = {"optimizer": self.optimizer, "scheduler": self._scheduler, "scaler": self._scaler}
        return {name: part for name, part in named.items() if part is not None}


def _layouts_of(model: nn.Module) -> dict[int, torch.memory_format]:
    """By number of dimensions: channels last, where weights lie so and not row-major."""
    found = {}
    for parameter in model.parameters():
        layout = _CHANNELS_LAST.get(parameter.dim())
        if layout is not None and not parameter.is_contiguous() and parameter.is_contiguous(memory_format=layout):
            found[parameter.dim()] = layout
    return found
