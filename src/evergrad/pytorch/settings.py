"""What a publisher may be asked for, and what it is not."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from evergrad.budget import Amount, amount_of
from evergrad.errors import ConfigError
from evergrad.pytorch.mover import ValuesAs
from evergrad.pytorch.select import GlobalTopK, Saliency, Selector

Forward = Literal["auto", "master", "deployed"]
Selection = Literal["distance", "saliency"]


def check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer | None, forward: Forward) -> None:
    if optimizer is None:
        if forward == "deployed":
            raise ConfigError("forward", "must not be 'deployed' where no optimizer steps the model")
    elif not {*model.parameters()} & {p for group in optimizer.param_groups for p in group["params"]}:
        raise ConfigError("optimizer", "holds no parameter of the model; make it from model.parameters()")


def selector_of(
    selector: Selector | Selection | None, optimizer: torch.optim.Optimizer | None, quality: float | None = None
) -> Selector:
    """None: by what a move is worth, where that is known, and where nearness is not what is asked for."""
    if selector is None:
        selector = "distance" if optimizer is None or quality is not None else "saliency"
    if not isinstance(selector, str):
        return selector
    if selector not in ("distance", "saliency"):
        raise ConfigError("selector", f"must be 'distance', 'saliency' or a selector, not {selector!r}")
    if selector == "distance":
        return GlobalTopK()
    if optimizer is None:
        raise ConfigError("selector", "must not be 'saliency' where no optimizer steps the model")
    return Saliency(optimizer)


def amount_for(model: nn.Module, values: ValuesAs, **settings: Any) -> Amount:
    given = {name: value for name, value in settings.items() if value is not None} or {"density": 1e-3}
    if values == "bf16" and "density" not in given:
        raise ConfigError(" and ".join(given), "has no place with values='bf16', which sends all that has changed")
    elements = sum(parameter.numel() for parameter in model.parameters() if parameter.is_floating_point())
    return amount_of(max(1, elements), **given)


def amount_again(before: Amount, model: nn.Module, values: ValuesAs, pace: dict[str, Any]) -> Amount:
    """What goes on from `before` where the model has other elements: at most all of them, where `k` is more."""
    elements = sum(parameter.numel() for parameter in model.parameters() if parameter.is_floating_point())
    k = pace["k"]
    amount = amount_for(model, values, **pace | {"k": None if k is None else min(k, max(1, elements))})
    amount.load_state_dict(before.state_dict())
    return amount


def check_settings(forward: str, values: str, tolerance: float, every_steps: int | None) -> None:
    if values == "bf16" and forward == "deployed":
        raise ConfigError("forward", "must not be 'deployed' with values='bf16': training goes on in float32")
    if forward not in ("auto", "master", "deployed"):
        raise ConfigError("forward", f"must be 'auto', 'master' or 'deployed', not {forward!r}")
    if values not in ("steps", "exact", "bf16"):
        raise ConfigError("values", f"must be 'steps', 'exact' or 'bf16', not {values!r}")
    if not 0 <= tolerance < 1:
        raise ConfigError("buffer_tolerance", f"must lie in [0, 1), not {tolerance}")
    if every_steps is not None and every_steps < 1:
        raise ConfigError("every_steps", f"must be 1 or more, not {every_steps}")


def is_skipped(optimizer: torch.optim.Optimizer | None) -> bool:
    """Whether an optimizer itself left its step out, as fused ones do where GradScaler found infinities."""
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, torch.Tensor) and bool(found)


def range_of(first: int, last: int) -> range:
    if not 0 <= first <= last < 1 << 63:
        raise ConfigError("examples", f"must be (first, last) with 0 <= first <= last < 2^63, not ({first}, {last})")
    return range(first, last)
