"""What runs before and after each step of an optimizer: one publisher's."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch.utils.hooks import RemovableHandle

from evergrad.errors import OptimizerAttached

_attached: weakref.WeakKeyDictionary[torch.optim.Optimizer, str] = weakref.WeakKeyDictionary()


def require_free(optimizer: torch.optim.Optimizer | None) -> None:
    """Raises OptimizerAttached where a publisher hangs on it."""
    if optimizer is not None and optimizer in _attached:
        raise OptimizerAttached(_attached[optimizer])


class StepHooks:
    """Hangs on an optimizer until `remove`.

    Args:
        optimizer: None: nothing hangs anywhere.
        url: of the publisher's log. before, after: called around each step.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer | None, url: str, before: Callable[[], None], after: Callable[[], None]
    ) -> None:
        self._optimizer, self._handles = optimizer, list[RemovableHandle]()
        if optimizer is not None:
            self._handles.append(optimizer.register_step_pre_hook(lambda *_: before()))
            self._handles.append(optimizer.register_step_post_hook(lambda *_: after()))
            _attached[optimizer] = url

    def remove(self) -> None:
        """The optimizer is as it was."""
        for handle in self._handles:
            handle.remove()
        if self._optimizer is not None:
            _attached.pop(self._optimizer, None)
