"""The paper's way to make training sparse, as the other side of comparisons.

Prapas, Derakhshan, Mahdiraji, Markl 2021, "Continuous Training and Deployment of Deep Learning Models", section 4, and
the experiment code that its authors published: the *gradient* is sparsified, tensor by tensor, before the optimizer
sees it; what was left out is kept in a memory and added to the next gradient (Stich, Cordonnier, Jaggi 2018,
"Sparsified SGD with Memory"). Nothing is encoded, sent or deployed.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class GradientMemory:
    """Leaves the largest elements of each tensor's gradient to the optimizer, and keeps the others for later.

        memory.restore()        gradients are what was left out so far; there is no zero_grad()
        loss.backward()         adds to them
        memory.sparsify()       the largest stay, the others become the memory
        optimizer.step()

    Args:
        parameters: dense tensors, in any memory format.
        density: of each tensor, the fraction of elements that stay, rounded down, and one at least.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], density: float) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._density = density
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
            k = max(1, int(self._density * gradient.numel()))
            chosen = torch.topk(_flat(gradient).abs(), k, sorted=False).indices
            left = gradient.clone()
            _flat(left)[chosen] = 0
            gradient.sub_(left)
            self._left[number] = left


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """All elements in the order in which memory holds them, as a view."""
    return tensor.as_strided((tensor.numel(),), (1,))
