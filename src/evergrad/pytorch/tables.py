"""Embedding tables: only rows that a batch has touched are scanned, so cost follows the batch and not the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from evergrad.pytorch.select import Indices, Pair

_LEAST_ELEMENTS = 1 << 20
_LEAST_SWEPT = 1024


class Table:
    """One embedding table, and which of its rows may have moved.

    Touched are the rows of a sparse gradient; where the gradient is dense, those that were looked up since the step
    before. Beside them each step looks at as many others in turn (1,024 at least): what is left of a row, and what else
    moves rows (momentum, weight decay), is found within one round of the table.
    """

    def __init__(self, pair: Pair, modules: Sequence[nn.Module]) -> None:
        self.pair = pair
        self.rows = pair.master.shape[0]
        self._next = 0
        self._touched = np.empty(0, np.int64)
        self._looked_up: list[torch.Tensor] = []
        self._hooks = [module.register_forward_pre_hook(self._look_up) for module in modules]

    def _look_up(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled() and inputs and isinstance(inputs[0], torch.Tensor):
            self._looked_up.append(inputs[0].detach())

    def before_step(self) -> None:
        """Takes note of what the coming optimizer step moves."""
        gradient = self.pair.parameter.grad
        if gradient is None:
            found = []
        elif gradient.layout == torch.sparse_coo:
            found = [gradient._indices()[0]]
        else:
            found = self._looked_up
        self._looked_up = []
        rows = [tensor.reshape(-1).long().numpy() for tensor in found]
        self._touched = np.unique(np.concatenate(rows)) if rows else np.empty(0, np.int64)

    def due(self) -> Indices:
        """Rows to scan, ascending, each once."""
        count = min(self.rows, max(len(self._touched), _LEAST_SWEPT))
        swept = (self._next + np.arange(count, dtype=np.int64)) % self.rows
        self._next = (self._next + count) % self.rows
        due: Indices = np.union1d(self._touched, swept)
        return due

    def close(self) -> None:
        """Looks no more."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._looked_up = [], []


def find_tables(model: nn.Module, pairs: Sequence[Pair]) -> list[Table]:
    """The tables among `pairs`: large float32 matrices, row after row, that only embedding modules hold."""
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(module)
    found = []
    for pair in pairs:
        modules = owners.get(id(pair.parameter), [])
        matrix = pair.master.ndim == 2 and pair.master.is_contiguous() and pair.master.dtype == torch.float32
        embeds = bool(modules) and all(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in modules)
        if matrix and embeds and pair.master.numel() >= _LEAST_ELEMENTS:
            found.append(Table(pair, modules))
    return found
