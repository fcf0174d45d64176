"""What a module holds besides floating-point parameters: buffers, and parameters that no optimizer steps.

They always show their own, live storage, for forward passes write to it; the deployed copy follows when a publisher
says so. The statistics that a forward pass at the master leaves are not those of the deployed weights: for these there
is, once `own` was called, storage of their own, which the deployed copy follows in an open loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from evergrad.errors import NonFiniteWeights, SchemaMismatch
from evergrad.pytorch.bridge import ModuleTensor, as_numpy
from evergrad.pytorch.mover import COMPILED
from evergrad.pytorch.statistics import tell_within
from evergrad.update import Section, State, Values
from evergrad.update.digest import Array

Due = tuple[str, torch.Tensor, torch.Tensor]
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_Home = tuple[dict[str, torch.Tensor | None], str]


class Buffers:
    """The tensors of a module that are told as values.

    Args:
        others: these tensors.
        deployed: by name, views of `state`; some may be of another dtype than the module's own (see `cast`).
        apart: whether the module's own are on a device: they are then compared on the CPU, in copies.
        closed_loop: whether forward passes of training are at the deployed weights.
    """

    def __init__(
        self,
        model: nn.Module,
        state: State,
        others: Sequence[ModuleTensor],
        deployed: dict[str, torch.Tensor],
        *,
        apart: bool = False,
        closed_loop: bool = False,
    ) -> None:
        self._own: dict[str, torch.Tensor] = {}
        self._closed_loop = closed_loop
        self._state, self._others, self._deployed, self._apart = state, others, deployed, apart
        homes = _homes_of_buffers(model)
        self._homes = [homes.get(id(other.tensor)) for other in others]

    def live(self) -> list[ModuleTensor]:
        """The tensors as they are: a module may put a new tensor into a buffer's place at each forward pass.

        Raises:
            SchemaMismatch: a buffer has another dtype or shape than at first.
        """
        found = []
        for other, home in zip(self._others, self._homes, strict=True):
            live = other.tensor if home is None else home[0].get(home[1])
            if live is other.tensor:
                found.append(other)
                continue
            mine, expected = kind_of(live), kind_of(other.tensor)
            if live is None or mine != expected:
                raise SchemaMismatch(other.name, expected, mine)
            found.append(ModuleTensor(other.name, live, False))
        return found

    def cast(self) -> list[ModuleTensor]:
        """Those that are deployed in another dtype than their own, on the CPU."""
        return [found for found in self._here() if not self._is_same_dtype(found)]

    def exact(self) -> list[ModuleTensor]:
        """Those that are deployed in their own dtype, on the CPU."""
        return [found for found in self._here() if self._is_same_dtype(found)]

    def _here(self) -> list[ModuleTensor]:
        told = self.live()
        if self._own and not self._closed_loop:
            told = [ModuleTensor(each.name, self._own.get(each.name, each.tensor), each.parameter) for each in told]
        return on_cpu(told) if self._apart else told

    def _is_same_dtype(self, found: ModuleTensor) -> bool:
        return self._deployed[found.name].dtype == found.tensor.dtype

    def restore(self) -> None:
        """They become equal to the deployed ones: undoes what a forward pass did to statistics."""
        for found in self.live():
            found.tensor.detach().copy_(self._deployed[found.name])
        for name, own in self._own.items():
            own.copy_(self._deployed[name])

    def own(self, found: ModuleTensor) -> torch.Tensor:
        """Storage for what this one is at the deployed weights; at first what is deployed."""
        if found.name not in self._own:
            live = found.tensor.detach()
            self._own[found.name] = torch.empty_like(live).copy_(self._deployed[found.name])
        return self._own[found.name]

    def turn(self, *, closed_loop: bool) -> None:
        """Forward passes are at the deployed weights from here on, and go on from their statistics; or no more."""
        self._closed_loop = closed_loop
        for found in self.live():
            if found.name in self._own:
                live, own = found.tensor.detach(), self._own[found.name]
                (live if closed_loop else own).copy_(own if closed_loop else live)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The statistics of the deployed weights, by name; see `Stateful`."""
        return dict(self._own)

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """See `Stateful`; live storage stays as it is."""
        self._own = {name: tensor.clone() for name, tensor in state.items()}

    def stale(self, tolerance: float, step: int) -> list[Section]:
        """What brings the deployed elements that are off by more than `tolerance` of their yardstick to within it.

        The yardstick is the element itself, and of a BatchNorm's mean the channel's standard deviation where that is
        larger: many means are near zero, and what they are off by counts in deviations. A BatchNorm's variance may be
        off by twice as much, which is `tolerance` of the deviation. Elements of integer buffers are due whenever they
        differ. Those in `cast` are left out. Raises NonFiniteWeights.
        """
        quick: dict[torch.dtype, list[ModuleTensor]] = {torch.float32: [], torch.int64: []}
        due, buffers = [], self.exact()
        among = {found.name: found.tensor for found in buffers}
        for found in buffers:
            if COMPILED and found.tensor.dtype in quick and found.tensor.is_contiguous():
                quick[found.tensor.dtype].append(found)
            else:
                due.append((found.name, found.tensor, self._is_due(found, among, tolerance, step)))
        told = [
            *self._stale_float32(quick[torch.float32], among, tolerance, step),
            *self._differing(quick[torch.int64]),
        ]
        sections: list[Section] = []
        for values in merged([*told, *_parts(due, self._state)]):
            old = self._state.elements_at(values.dtype, values.indices)
            sections.extend(tell_within(values, old, tolerance))
        return sections

    def _stale_float32(
        self, buffers: Sequence[ModuleTensor], among: Mapping[str, torch.Tensor], tolerance: float, step: int
    ) -> list[Values]:
        if not buffers:
            return []
        from evergrad.pytorch import kernels

        rows, deployed, first = self._where(buffers, "F32", among)
        tolerances = np.array([_tolerance_of(each.name, tolerance) for each in buffers])
        positions, values, bad = kernels.stale(rows, deployed, tolerances)
        if bad >= 0:
            raise NonFiniteWeights(buffers[bad].name, step)
        return [Values(positions + first, values, "F32")] if len(positions) else []

    def _differing(self, buffers: Sequence[ModuleTensor]) -> list[Values]:
        if not buffers:
            return []
        from evergrad.pytorch import kernels

        rows, deployed, first = self._where(buffers, "I64", {})
        positions, values = kernels.differing(rows, deployed)
        return [Values(positions + first, values, "I64")] if len(positions) else []

    def _where(
        self, buffers: Sequence[ModuleTensor], dtype: str, among: Mapping[str, torch.Tensor]
    ) -> tuple[npt.NDArray[np.int64], Array, int]:
        """Rows as `kernels.stale` takes them; the deployed elements; the first one's index."""
        number, group = next((n, g) for n, g in enumerate(self._state.schema.groups) if g.dtype == dtype)
        table, rows = self._state.schema.by_name, []
        for each in buffers:
            variance = _variance(each, among)
            address = 0 if variance is None or not variance.is_contiguous() else variance.data_ptr()
            place = table[each.name].offset - group.start
            rows.append((each.tensor.data_ptr(), place, each.tensor.numel(), address))
        return np.array(rows, np.int64), self._state.arrays[number], group.start

    def _is_due(
        self, found: ModuleTensor, among: Mapping[str, torch.Tensor], tolerance: float, step: int
    ) -> torch.Tensor:
        deployed = self._deployed[found.name]
        changed = bits_differ(found.tensor, deployed)
        if found.tensor.is_floating_point() and bool(changed.any()):
            live = found.tensor.detach().double()
            check_finite(found.name, live[changed], step)
            yardstick, variance = live.abs(), _variance(found, among)
            if variance is not None:
                yardstick = yardstick.maximum(variance.detach().double().sqrt())
            changed &= ~((live - deployed.double()).abs() <= _tolerance_of(found.name, tolerance) * yardstick)
        return changed


def _tolerance_of(name: str, tolerance: float) -> float:
    return 2 * tolerance if name.endswith("running_var") else tolerance


def _variance(found: ModuleTensor, among: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """The running variance that stands beside a running mean, as BatchNorm names them."""
    if not found.name.endswith("running_mean"):
        return None
    variance = among.get(found.name.removesuffix("mean") + "var")
    if variance is None or variance.shape != found.tensor.shape or variance.dtype != found.tensor.dtype:
        return None
    return variance


def on_cpu(tensors: Sequence[ModuleTensor]) -> list[ModuleTensor]:
    """Copies of tensors that are on a device: all of one dtype cross over together."""
    copies: dict[str, torch.Tensor] = {}
    for dtype in dict.fromkeys(found.tensor.dtype for found in tensors):
        mine = [found for found in tensors if found.tensor.dtype == dtype]
        together = torch.cat([found.tensor.detach().reshape(-1) for found in mine]).cpu()
        parts = torch.split(together, [found.tensor.numel() for found in mine])
        copies |= {found.name: part.view(found.tensor.shape) for found, part in zip(mine, parts, strict=True)}
    return [ModuleTensor(found.name, copies[found.name], found.parameter) for found in tensors]


def values_where(due: Sequence[Due], state: State) -> list[Values]:
    """One section for each dtype, in index order, of the elements of (name, tensor, where) that are due."""
    return merged(_parts(due, state))


def _parts(due: Sequence[Due], state: State) -> list[Values]:
    parts = []
    for name, tensor, where in due:
        spec = state.schema.by_name[name]
        positions = where.reshape(-1).nonzero().squeeze(1).numpy()
        if len(positions):
            values = as_numpy(tensor.reshape(-1))[positions]
            parts.append(Values(positions + spec.offset, values, spec.dtype))
    return parts


def merged(parts: Sequence[Values]) -> list[Values]:
    """The same elements, each of which stands in one part, as one section for each dtype, in index order."""
    sections = []
    for dtype in dict.fromkeys(part.dtype for part in parts):
        mine = [part for part in parts if part.dtype == dtype]
        indices = np.concatenate([part.indices for part in mine])
        order = np.argsort(indices)
        sections.append(Values(indices[order], np.concatenate([part.values for part in mine])[order], dtype))
    return sections


def check_finite(name: str, values: torch.Tensor, step: int) -> None:
    """Raises NonFiniteWeights where a floating-point value is NaN or infinite."""
    if values.is_floating_point() and not bool(values.isfinite().all()):
        raise NonFiniteWeights(name, step)


def bits_differ(live: torch.Tensor, deployed: torch.Tensor) -> torch.Tensor:
    """Where two tensors of one dtype, shape and device differ in their bits."""
    if live.device.type != "cpu":
        bits_as = _BITS[live.element_size()]
        return live.detach().view(bits_as) != deployed.view(bits_as)
    mine, own = as_numpy(live), as_numpy(deployed)
    bits = f"u{mine.dtype.itemsize}"
    return torch.from_numpy(np.asarray(mine.view(bits) != own.view(bits)))


def kind_of(tensor: torch.Tensor | None) -> str:
    """Dtype and shape, as errors tell them."""
    return "no tensor" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"


def _homes_of_buffers(model: nn.Module) -> dict[int, _Home]:
    """Where each buffer lives, by the `id` of the tensor that is there now."""
    return {id(tensor): (module._buffers, key) for module in model.modules() for key, tensor in module._buffers.items()}
