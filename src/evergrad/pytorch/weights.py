"""The two copies of a model's weights, and which of them its parameters show.

- master `u`: the parameters' own storage, as the user made it; what the optimizer steps.
- deployed `w`: views of a `State`, exactly what the replicas hold; where the model is on a device, a copy there.

Showing one or the other swaps pointers (`parameter.data`) and copies nothing. Buffers always show their own, live
storage: forward passes write to it; the deployed copy follows when a publisher says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from evergrad.errors import SchemaMismatch, WeightsChanged
from evergrad.pytorch.bridge import ModuleTensor, device_of, module_tensors, state_views
from evergrad.pytorch.buffers import Buffers, bits_differ, check_finite, kind_of, values_where
from evergrad.pytorch.mirror import Mirror
from evergrad.pytorch.select import Pair
from evergrad.update import Change, State, Values

_MOMENTUM = 0.5  # of statistics that are taken anew now and then


class Weights:
    """Master and deployed weights of one model.

    Args:
        model: its parameters are swapped.
        state: the deployed copy; of the model's schema.
        closed_loop: between steps the parameters show the deployed weights, not the master.
        apart: whether the deployed weights are a copy of the state; default: where the model is not on the CPU. Then
            `follow` brings them each change that the state goes through.

    Attributes:
        deployed: by name; parameters on the model's device, buffers in the state's memory.
        mirror: the copy.
    """

    def __init__(self, model: nn.Module, state: State, *, closed_loop: bool, apart: bool | None = None) -> None:
        tensors, _ = module_tensors(model)
        self._model, self._state, self._closed_loop = model, state, closed_loop
        self.parameters = floating_parameters(tensors)
        self.master = {t.name: t.tensor.data for t in self.parameters}
        device = device_of(model)
        apart = device.type != "cpu" if apart is None else apart
        self._host = self.deployed = state_views(state)
        self.mirror = Mirror(state, device, self._dtypes()) if apart else None
        if self.mirror is not None:
            self.deployed = self._host | {name: self.mirror.views[name] for name in self.master}
        others = [t for t in tensors if not _is_floating_parameter(t)]
        self.buffers = Buffers(model, state, others, self._host, apart=apart, closed_loop=closed_loop)
        self._transposed = [t for t in self.parameters if not self.master[t.name].is_contiguous()]
        self._aligned: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._show(self.master)

    def _dtypes(self) -> set[str]:
        table = self._state.schema.by_name
        return {table[name].dtype for name in self.master}

    def follow(self, change: Change) -> None:
        """Takes in a change that the state has been through."""
        if self.mirror is not None:
            self.mirror.write(change)

    def check_copy(self) -> None:
        """Raises WeightsChanged where the copy is not the state, in bits: one pass over all elements."""
        if self.mirror is not None:
            self.mirror.check()

    def show_own(self) -> None:
        """Parameters show what this loop trains on between steps."""
        self._show(self.deployed if self._closed_loop else self.master)

    def turn(self, *, closed_loop: bool) -> None:
        """From here on training sees the deployed weights (`closed_loop`) or the master. Raises WeightsChanged."""
        if closed_loop != self._closed_loop:
            self.check_untouched()
            self._closed_loop = closed_loop
            self.buffers.turn(closed_loop=closed_loop)
            self.show_own()

    def go_on(self, statistics: Mapping[str, torch.Tensor], *, closed_loop: bool) -> None:
        """As `turn`, from what `buffers.state_dict` gave; the live buffers stay as they are."""
        self.check_untouched()
        self.buffers.load_state_dict({})
        self.turn(closed_loop=closed_loop)
        self.buffers.load_state_dict(statistics)

    def recalibrate(self, forward: Callable[[], object]) -> None:
        """BatchNorm's statistics of the deployed weights take in those of a forward pass; see `Publisher`."""
        if self._closed_loop:
            return
        modules = list(self._model.modules())
        norms = [each for each in modules if isinstance(each, _BatchNorm) and each.training]
        kept = {id(tensor) for norm in norms for tensor in (norm.running_mean, norm.running_var)}
        statistics = [found for found in self.buffers.live() if id(found.tensor) in kept]
        if not statistics:
            return
        before = [(each, each.training) for each in modules], [(norm, norm.momentum) for norm in norms]
        with torch.no_grad(), self.showing_deployed():
            try:
                for found in statistics:
                    found.tensor.data = self.buffers.own(found)
                for each in modules:
                    each.training = False
                for norm in norms:
                    norm.training, norm.momentum = True, _MOMENTUM
                forward()
            finally:
                for each, training in before[0]:
                    each.training = training
                for norm, momentum in before[1]:
                    norm.momentum = momentum

    def let_go(self, part: float) -> None:
        """Takes the master towards the deployed weights, by this part of all that they differ in."""
        if part > 0:
            with torch.no_grad():
                for name, master in self.master.items():
                    master.lerp_(self.deployed[name].to(master.dtype), part)

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
        for found in self._transposed if self._closed_loop else ():
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
            check_finite(name, tensor, step)

    def showing_master(self) -> AbstractContextManager[nn.Module]:
        """Inside, parameters are the master weights, and may be changed in place."""
        return self._showing(self.master)

    @contextmanager
    def showing_deployed(self, other: Mapping[str, torch.Tensor] | None = None) -> Iterator[nn.Module]:
        """Inside, parameters are the deployed ones, and buffers equal to them; for evaluation only.

        Args:
            other: tensors to show instead of the deployed ones, by the same names.
        """
        buffers, deployed = self.buffers.live(), self.deployed if other is None else other
        live = [(found.tensor, found.tensor.data) for found in buffers]
        shown = {name: deployed[name].to(master.device, master.dtype) for name, master in self.master.items()}
        same = all(shown[name] is self.deployed[name] for name in shown)
        with self._showing(self.deployed if same else shown) as model:
            # Copies, for a forward pass in training mode writes to them.
            for found in buffers:
                found.tensor.data = deployed[found.name].to(found.tensor.device, found.tensor.dtype, copy=True)
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

    def pairs(self) -> list[Pair]:
        """Both copies of each floating-point parameter, ascending by flat index."""
        offsets = self._state.schema.by_name
        found = [
            Pair(t.name, t.tensor, self.master[t.name], self.deployed[t.name], offsets[t.name].offset)
            for t in self.parameters
            if isinstance(t.tensor, nn.Parameter)
        ]
        return sorted(found, key=lambda pair: pair.offset)

    def load(self, master: Mapping[str, torch.Tensor], deployed: Mapping[str, torch.Tensor], step: int) -> list[Values]:
        """Sets the master weights, and gives what brings the deployed copy to `deployed`.

        Raises:
            SchemaMismatch: a tensor is missing, or has another dtype or shape. NonFiniteWeights: one holds NaN or
                infinity, which is told with `step`. Nothing has changed.
        """
        for own, given in ((self.master, master), (self.deployed, deployed)):
            for name, tensor in own.items():
                if kind_of(given.get(name)) != kind_of(tensor):
                    raise SchemaMismatch(name, kind_of(tensor), kind_of(given.get(name)))
        for name in self.master:
            check_finite(name, master[name], step)
        sections = self._differing({name: deployed[name] for name in self.deployed}, step)
        with torch.no_grad():
            for name, tensor in self.master.items():
                tensor.copy_(master[name])
        return sections

    def distance(self) -> float:
        """How far the deployed weights are: |master - deployed| / |master|, in 2-norms over all parameters."""
        off = size = 0.0
        for name, master in self.master.items():
            deployed = self.deployed[name]
            off += float(torch.linalg.vector_norm((master - deployed).double())) ** 2
            size += float(torch.linalg.vector_norm(master.double())) ** 2
        return math.sqrt(off / size) if size else math.sqrt(off)

    def floating(self) -> list[tuple[str, torch.Tensor]]:
        """The masters, and the buffers that are deployed in another dtype than their own, by name."""
        return [*self.master.items(), *((t.name, t.tensor) for t in self.buffers.cast())]

    def differing(self) -> list[Values]:
        """Absolute values of all elements that are deployed in their own dtype, and differ in bits.

        Raises NonFiniteWeights.
        """
        tensors = {name: master for name, master in self.master.items() if self.deployed[name].dtype == master.dtype}
        return self._differing(tensors | {t.name: t.tensor for t in self.buffers.exact()}, 0)

    def _differing(self, tensors: Mapping[str, torch.Tensor], step: int) -> list[Values]:
        due = []
        for name, given in tensors.items():
            here = given.detach().cpu()
            changed = bits_differ(here, self._host[name])
            check_finite(name, here[changed], step)
            due.append((name, here, changed))
        return values_where(due, self._state)


def floating_parameters(tensors: Sequence[ModuleTensor]) -> list[ModuleTensor]:
    """Those that have two copies."""
    return [t for t in tensors if _is_floating_parameter(t)]


def _is_floating_parameter(found: ModuleTensor) -> bool:
    return found.parameter and found.tensor.is_floating_point()


def require_finite(model: nn.Module) -> None:
    """Raises NonFiniteWeights (step 0) where a parameter is NaN or infinite."""
    for found in module_tensors(model)[0]:
        if found.parameter:
            check_finite(found.name, found.tensor.detach(), 0)
