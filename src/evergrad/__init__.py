"""Evergrad keeps deployed PyTorch models fresh.

Importing this package needs numpy alone; names that need torch (`Checkpoints`, `Publisher`, `Trainer`, `attach`,
`run`) load it on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from evergrad import errors
from evergrad.gate import Gate
from evergrad.history import History
from evergrad.log import open_log
from evergrad.replica import Replica
from evergrad.sampling import (
    ClassBalanced,
    LeastUsed,
    LossPrioritised,
    Mix,
    Reservoir,
    TimeBiased,
    Uniform,
    Window,
)
from evergrad.schema import Schema
from evergrad.stream import Batch
from evergrad.trigger import AllOf, AnyOf, EveryN, EverySeconds, News, OnDrift, OnLoss, WhenIdle

if TYPE_CHECKING:
    from evergrad.pipeline import run
    from evergrad.pytorch.attach import attach
    from evergrad.pytorch.checkpoint import Checkpoints
    from evergrad.pytorch.publisher import Publisher
    from evergrad.pytorch.trainer import Trainer

__version__ = "0.1.0.dev0"
__all__ = [
    "AllOf",
    "AnyOf",
    "Batch",
    "Checkpoints",
    "ClassBalanced",
    "EveryN",
    "EverySeconds",
    "Gate",
    "History",
    "LeastUsed",
    "LossPrioritised",
    "Mix",
    "News",
    "OnDrift",
    "OnLoss",
    "Publisher",
    "Replica",
    "Reservoir",
    "Schema",
    "TimeBiased",
    "Trainer",
    "Uniform",
    "WhenIdle",
    "Window",
    "__version__",
    "attach",
    "errors",
    "open_log",
    "run",
]

_TORCH_BACKED = {
    "Checkpoints": "evergrad.pytorch.checkpoint",
    "Publisher": "evergrad.pytorch.publisher",
    "Trainer": "evergrad.pytorch.trainer",
    "attach": "evergrad.pytorch.attach",
    "run": "evergrad.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _TORCH_BACKED:
        raise AttributeError(f"module 'evergrad' has no attribute {name!r}")
    try:
        found = getattr(importlib.import_module(_TORCH_BACKED[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise errors.MissingDependency("torch", "torch") from error
    globals()[name] = found
    return found
