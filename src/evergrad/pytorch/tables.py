"""Embedding tables: only rows that a batch has touched are scanned, so cost follows the batch and not the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from evergrad.pytorch.select import Indices, Pair

_LEAST_ELEMENTS = 1 << 20
_LEAST_SWEPT = 256


class Table:
    """One embedding table, and which of its rows may have moved.

    Touched are the rows of a sparse gradient; where the gradient is dense, those that were looked up since the step
    before. Beside them each step looks at a quarter as many others in turn (256 at least): what is left of a row, and
    what else moves rows (momentum, weight decay), is found within one round of the table.
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
        rows = np.concatenate([np.empty(0, np.int64), *(tensor.reshape(-1).long().numpy() for tensor in found)])
        rows.sort()
        self._touched = rows[np.diff(rows, prepend=-1) != 0]

    def due(self) -> tuple[Indices, Indices]:
        """Runs of rows to scan: where they start, ascending, and the row after each."""
        first = self._next
        last = min(self.rows, first + max(len(self._touched) // 4, _LEAST_SWEPT))
        self._next = last % self.rows
        begin, end = np.searchsorted(self._touched, (first, last))
        before, after = self._touched[:begin], self._touched[end:]
        return np.concatenate((before, [first], after)), np.concatenate((before + 1, [last], after + 1))

    @property
    def turn(self) -> int:
        """The row that is looked at next in turn."""
        return self._next

    @turn.setter
    def turn(self, row: int) -> None:
        self._next = row

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
