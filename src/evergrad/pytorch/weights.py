"""The two copies of a model's weights, and which of them its parameters show.

- master `u`: the parameters' own storage, as the user made it; what the optimizer steps.
- deployed `w`: views of a `State`, exactly what the replicas hold.

Showing one or the other swaps pointers (`parameter.data`) and copies nothing. Buffers always show their own, live
storage: forward passes write to it; the deployed copy follows when a publisher says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from evergrad.errors import NonFiniteWeights, SchemaMismatch, WeightsChanged
from evergrad.pytorch.bridge import ModuleTensor, as_numpy, module_tensors, state_views
from evergrad.pytorch.statistics import tell_within
from evergrad.update import Section, State, Values


class Weights:
    """Master and deployed weights of one model.

    Args:
        model: its parameters are swapped.
        state: the deployed copy; of the model's schema.
        closed_loop: between steps the parameters show the deployed weights, not the master.
    """

    def __init__(self, model: nn.Module, state: State, *, closed_loop: bool) -> None:
        tensors, _ = module_tensors(model)
        self._model, self._state, self._closed_loop = model, state, closed_loop
        self.parameters = [t for t in tensors if t.parameter and t.tensor.is_floating_point()]
        self._others = [t for t in tensors if not (t.parameter and t.tensor.is_floating_point())]
        self._homes = _homes_of_buffers(model)
        self.master = {t.name: t.tensor.data for t in self.parameters}
        self.deployed = state_views(state)
        self._aligned: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._show(self.master)

    @property
    def buffers(self) -> list[ModuleTensor]:
        """All other tensors, live: a module may put a new tensor into a buffer's place at each forward pass.

        Raises:
            SchemaMismatch: a buffer has another dtype or shape than at first.
        """
        found = []
        for other in self._others:
            owner, key = self._homes.get(id(other.tensor), ({}, ""))
            live = owner.get(key, other.tensor)
            mine, expected = _kind(live), _kind(other.tensor)
            if live is None or mine != expected:
                raise SchemaMismatch(other.name, expected, mine)
            found.append(ModuleTensor(other.name, live, False))
        return found

    def show_own(self) -> None:
        """Parameters show what this loop trains on between steps."""
        self._show(self.deployed if self._closed_loop else self.master)

    def show_master(self) -> None:
        """Parameters show the master weights."""
        self._show(self.master)

    def _show(self, copy: dict[str, torch.Tensor]) -> None:
        for found in self.parameters:
            found.tensor.data = copy[found.name]
        self._shown = copy
        self._counters = [found.tensor._version for found in self.parameters]

    def check_untouched(self) -> None:
        """Raises WeightsChanged where a parameter was given other storage, or deployed weights were written to."""
        for found, counter in zip(self.parameters, self._counters, strict=True):
            replaced = found.tensor.data_ptr() != self._shown[found.name].data_ptr()
            if replaced or (self._shown is self.deployed and found.tensor._version != counter):
                raise WeightsChanged(found.name)

    def align_gradients(self) -> None:
        """Lays each gradient out in memory as its master, until `return_gradients`.

        A closed loop's gradients were taken at the deployed weights, and lie as those do, row-major; the master may be
        channels_last. Fused optimizers walk both by address, and do not check.
        """
        self._aligned = []
        for found in self.parameters if self._closed_loop else ():
            grad, master = found.tensor.grad, self.master[found.name]
            if grad is not None and grad.layout == torch.strided and grad.stride() != master.stride():
                found.tensor.grad = torch.empty_like(master, dtype=grad.dtype).copy_(grad)
                self._aligned.append((found.tensor, found.tensor.grad, grad))

    def return_gradients(self) -> None:
        """Undoes `align_gradients`; a gradient that the optimizer changed keeps its change."""
        for tensor, aligned, grad in self._aligned:
            if tensor.grad is aligned:
                tensor.grad = grad.copy_(aligned)
        self._aligned = []

    def check_finite(self, step: int) -> None:
        """Raises NonFiniteWeights where a master weight is NaN or infinite."""
        for name, tensor in self.master.items():
            _require_finite(name, tensor, step)

    def showing_master(self) -> AbstractContextManager[nn.Module]:
        """Inside, parameters are the master weights, and may be changed in place."""
        return self._showing(self.master)

    @contextmanager
    def showing_deployed(self) -> Iterator[nn.Module]:
        """Inside, parameters are the deployed ones, and buffers equal to them; for evaluation only."""
        live = [(found.tensor, found.tensor.data) for found in self.buffers]
        with self._showing(self.deployed) as model:
            # Copies, for a forward pass in training mode writes to them.
            for found in self.buffers:
                found.tensor.data = self.deployed[found.name].clone()
            try:
                yield model
            finally:
                for tensor, data in live:
                    tensor.data = data

    @contextmanager
    def _showing(self, copy: dict[str, torch.Tensor]) -> Iterator[nn.Module]:
        self.check_untouched()
        before = self._shown
        self._show(copy)
        try:
            yield self._model
            self.check_untouched()
        finally:
            self._show(before)

    def master_values(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """The master's elements at flat `indices` (ascending, all of one dtype), in storage types."""
        parts = []
        for name, tensor in self.master.items():
            spec = self._state.schema.by_name[name]
            first, last = np.searchsorted(indices, (spec.offset, spec.offset + spec.size))
            if first < last:
                parts.append((spec.offset, as_numpy(tensor.reshape(-1))[indices[first:last] - spec.offset]))
        return np.concatenate([values for _, values in sorted(parts, key=lambda part: part[0])])

    def differing(self) -> list[Values]:
        """Absolute values of every element whose live bits are not the deployed ones. Raises NonFiniteWeights."""
        due = [(found, _bits_differ(found.tensor, self.deployed[found.name]))
               for found in (*self.parameters, *self.buffers)]  # fmt: skip
        for found, changed in due:
            _require_finite(found.name, found.tensor.detach()[changed], 0)
        return self._as_values(due)

    def restore_buffers(self) -> None:
        """Live buffers become equal to the deployed ones: undoes what a forward pass did to statistics."""
        for found in self.buffers:
            found.tensor.detach().copy_(self.deployed[found.name])

    def stale_buffers(self, tolerance: float, step: int) -> list[Section]:
        """The buffer elements that are off by more than `tolerance` of themselves, to within the tolerance.

        Elements of integer buffers are due whenever they differ. Raises NonFiniteWeights.
        """
        due = []
        for found in self.buffers:
            deployed = self.deployed[found.name]
            changed = _bits_differ(found.tensor, deployed)
            if found.tensor.is_floating_point() and bool(changed.any()):
                live = found.tensor.detach().double()
                _require_finite(found.name, live[changed], step)
                changed &= ~((live - deployed.double()).abs() <= tolerance * live.abs())
            due.append((found, changed))
        sections: list[Section] = []
        for values in self._as_values(due):
            old = self._state.elements_at(values.dtype, values.indices)
            sections.extend(tell_within(values, old, tolerance))
        return sections

    def _as_values(self, due: list[tuple[ModuleTensor, torch.Tensor]]) -> list[Values]:
        """One section per dtype, in index order."""
        by_dtype: dict[str, list[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]] = {}
        for found, changed in due:
            spec = self._state.schema.by_name[found.name]
            positions = changed.reshape(-1).nonzero().squeeze(1).numpy()
            if len(positions):
                live = self.master.get(found.name, found.tensor)
                values = as_numpy(live.reshape(-1))[positions]
                by_dtype.setdefault(spec.dtype, []).append((positions + spec.offset, values))
        sections = []
        for dtype, parts in by_dtype.items():
            indices = np.concatenate([part[0] for part in parts])
            order = np.argsort(indices)
            sections.append(Values(indices[order], np.concatenate([part[1] for part in parts])[order], dtype))
        return sections


def require_finite(model: nn.Module) -> None:
    """Raises NonFiniteWeights (step 0) where a parameter is NaN or infinite."""
    for found in module_tensors(model)[0]:
        if found.parameter:
            _require_finite(found.name, found.tensor.detach(), 0)


def _require_finite(name: str, values: torch.Tensor, step: int) -> None:
    if values.is_floating_point() and not bool(values.isfinite().all()):
        raise NonFiniteWeights(name, step)


def _kind(tensor: torch.Tensor | None) -> str:
    return "no tensor" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"


def _homes_of_buffers(model: nn.Module) -> dict[int, tuple[dict[str, torch.Tensor | None], str]]:
    """Where each buffer lives, by the `id` of the tensor that is there now."""
    return {id(tensor): (module._buffers, key) for module in model.modules() for key, tensor in module._buffers.items()}


def _bits_differ(live: torch.Tensor, deployed: torch.Tensor) -> torch.Tensor:
    mine, own = as_numpy(live), as_numpy(deployed)
    bits = f"u{mine.dtype.itemsize}"
    return torch.from_numpy(np.asarray(mine.view(bits) != own.view(bits)))
