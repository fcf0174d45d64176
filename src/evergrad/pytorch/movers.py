"""Which mover a publisher needs."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from evergrad.pytorch.cast import CastMover
from evergrad.pytorch.cuda import make_device_mover
from evergrad.pytorch.mover import Mover, ValuesAs, make_mover
from evergrad.pytorch.select import Selector
from evergrad.pytorch.weights import Weights
from evergrad.update import State


def mover_for(
    model: nn.Module, weights: Weights, state: State, selector: Selector, values: ValuesAs, step: Callable[[], int]
) -> Mover:
    """The fastest mover of these weights; `step` gives the number of the optimizer's step, for errors."""
    if values == "bf16":
        return CastMover(weights.floating, weights.deployed, state, step)
    check = lambda: weights.check_finite(step())  # noqa: E731
    if weights.mirror is not None:
        flat = weights.mirror.flat.get("F32")
        return make_device_mover(weights.pairs, state, flat, check, selector, values)
    return make_mover(weights.pairs, state, check, selector, values, model)
