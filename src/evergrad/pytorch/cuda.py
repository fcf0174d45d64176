"""Moves the deployed weights of a model on a device: Triton chooses there, the host moves, and the copy follows.

    device   master, copy of the deployed ──kernels──> places, masters ──pinned memory──> host
    host     the even step of the best k, on the state, by the code of the CPU path: the same bits
    device   copy <── places, values (see `mirror`)

Kernels and copies run on a stream of their own, after what the optimizer has queued; the host waits for that stream
alone. Without Triton or numba torch does it (`mover.ReferenceMover`), and moves the same elements.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch

from evergrad.pytorch.moments import Moments
from evergrad.pytorch.mover import (
    COMPILABLE,
    COMPILED,
    MOMENTS_LIE_OTHERWISE,
    Aim,
    Moved,
    Mover,
    ReferenceMover,
    ValuesAs,
    move_best,
    say_that_torch_selects,
    walks,
    written,
)
from evergrad.pytorch.select import Indices, Pair, Selector
from evergrad.pytorch.tables import Table
from evergrad.update import State, Values

TRITON = importlib.util.find_spec("triton") is not None
_SPARE = 1024
_MOST_TRANSPOSED = 1 << 31


class DeviceScan:
    """Finds the elements of float32 tensors whose scores are largest, where the tensors are.

    Args:
        pairs: their masters stay where they are in memory.
        selector: `GlobalTopK` or `Saliency`.
        deployed: the copy on the device, flat.
        first: the flat index of its first element.

    Attributes:
        room: how many elements the last scan could give.
    """

    def __init__(self, pairs: Sequence[Pair], deployed: torch.Tensor, first: int, selector: Selector) -> None:
        from evergrad.pytorch import triton_kernels

        self._kernels, self._pairs = triton_kernels, pairs  # pairs: the kernels know addresses alone
        self._deployed, self._device = deployed, deployed.device
        self._staged: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._parts = [triton_kernels.units_of(pair, self._straight(pair), first) for pair in pairs]
        self._units = torch.from_numpy(np.concatenate(self._parts)).to(self._device)
        self._moments = Moments(pairs, selector, _walks)
        self._on_gpu = self._device.type == "cuda"
        self._stream = torch.cuda.Stream(self._device) if self._on_gpu else None  # type: ignore[no-untyped-call]
        self._bins = torch.zeros(triton_kernels.BINS, dtype=torch.int64, device=self._device)
        self._aim = torch.zeros(4, dtype=torch.int64, device=self._device)
        self._host_aim = self._host(4, torch.int64)
        self.room = 0
        self._reserve(_SPARE)

    def _straight(self, pair: Pair) -> torch.Tensor:
        """The master, or what it is copied to at each scan where the kernels cannot walk it."""
        master = pair.master
        if _walks(master):
            return master
        straight = torch.empty(master.shape, dtype=torch.float32, device=self._device)
        self._staged.append((straight, master))
        return straight

    def _host(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device="cpu", pin_memory=self._on_gpu)

    def _reserve(self, room: int) -> None:
        self._places = torch.empty(room, dtype=torch.int64, device=self._device)
        self._masters, self._scores = (torch.empty(room, dtype=torch.float32, device=self._device) for _ in range(2))
        self._host_places, self._host_masters = self._host(room, torch.int64), self._host(room, torch.float32)
        self._host_scores = self._host(room, torch.float32)

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """Inside, work goes to the stream of its own, after what is queued now; at the end the host waits for it."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()

    def ready(self) -> bool:
        """Whether all that scores take lies where the kernels can read it; to be asked before each scan."""
        return self._moments.look(self._point)

    def _point(self) -> None:
        for units, address in zip(self._parts, self._moments.addresses.values(), strict=True):
            units[:, 6] = address
        self._units.copy_(torch.from_numpy(np.concatenate(self._parts)))

    def above(self, threshold: float, k: int) -> int:
        """How many elements have scores above `threshold`; at most `room` of them are there.

        Returns:
            -1 where something is not finite.
        """
        return self._collect(int(np.float32(threshold).view(np.uint32)), 0, k, exact=False)

    def largest(self, k: int) -> int:
        """How many of the k elements of the largest scores differ at all, of equal ones the first; -1 as `above`."""
        return self._collect(0, k, k, exact=True)

    def _collect(self, bits: int, equal: int, k: int, *, exact: bool) -> int:
        self.room = room = k + k // 2 + _SPARE
        if len(self._places) < room:
            self._reserve(room)
        kernels, results = self._kernels, (self._places[:room], self._masters[:room], self._scores[:room])
        self._host_aim.numpy()[:] = bits, equal, 0, 0
        with self._beside():
            for straight, master in self._staged:
                straight.copy_(master)
            self._aim.copy_(self._host_aim, non_blocking=True)
            if exact:
                kernels.find(self._units, self._deployed, self._aim, self._bins)
            kernels.collect(self._units, self._deployed, self._aim, *results)
            hosts = self._host_places, self._host_masters, self._host_scores
            for host, result in zip(hosts, results, strict=True):
                host[:room].copy_(result, non_blocking=True)
            self._host_aim.copy_(self._aim, non_blocking=True)
        _, _, bad, count = self._host_aim.tolist()
        return -1 if bad else count

    def found(self, count: int) -> tuple[Indices, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Places in the deployed copy, ascending, masters and scores of the first `count`, until the next scan."""
        places, masters, scores = self._host_places, self._host_masters, self._host_scores
        return places[:count].numpy(), masters[:count].numpy(), scores[:count].numpy()


class DeviceMover:
    """By Triton and numba: float32 tensors, by distance or saliency. The caller brings `deployed` to the state.

    Args:
        deployed: the copy of the state's float32 elements on the device, flat.
        reference: what is done where a difference of finite numbers is infinite, or second moments lie otherwise.
        selector: `GlobalTopK` or `Saliency`.
    """

    tables: Sequence[Table] = ()

    def __init__(
        self,
        pairs: Sequence[Pair],
        state: State,
        deployed: torch.Tensor,
        check_finite: Callable[[], None],
        reference: ReferenceMover,
        values: ValuesAs,
        selector: Selector,
    ) -> None:
        self._state, self._check_finite, self._reference, self._values = state, check_finite, reference, values
        self._group, group = next((n, g) for n, g in enumerate(state.schema.groups) if g.dtype == "F32")
        self._first, self._aim = group.start, Aim()
        self._scan = DeviceScan(pairs, deployed, group.start, selector)

    def move(self, k: int) -> Moved | None:
        """As `ReferenceMover.move`."""
        if not self._scan.ready():
            say_that_torch_selects(MOMENTS_LIE_OTHERWISE)
            return self._reference.move(k)
        count = self._candidates(k)
        if count < 0:
            self._check_finite()
            return self._reference.move(k)
        positions, masters, scores = self._scan.found(count)
        olds = self._state.arrays[self._group][positions]
        moves = masters - olds
        if self._values == "exact":
            moved, least = self._set_best(positions, masters, moves, scores, k)
        else:
            moved, least = move_best(self._state, self._group, positions, moves, olds, scores, count, k)
        self._aim.reach(least)
        return moved

    def _candidates(self, k: int) -> int:
        """How many candidates there are: a few more than k by the threshold of the last move, or else just the k."""
        if self._aim.threshold:
            count = self._scan.above(self._aim.threshold, k)
            if count < 0:
                return count
            self._aim.learn(count, k)
            if k <= count <= self._scan.room:
                return count
        return self._scan.largest(k)

    def _set_best(
        self,
        positions: Indices,
        masters: npt.NDArray[np.float32],
        moves: npt.NDArray[np.float32],
        scores: npt.NDArray[np.float32],
        k: int,
    ) -> tuple[Moved | None, float]:
        from evergrad.pytorch import kernels

        best, _, _, least = kernels.best(positions, moves, moves, scores, len(positions), k)
        if not len(best):
            return None, 0.0
        values = masters[np.searchsorted(positions, best)]
        return written(self._state, [Values(best + self._first, values, "F32")]), float(least)


def make_device_mover(
    pairs: Callable[[], Sequence[Pair]],
    state: State,
    flat: torch.Tensor | None,
    check_finite: Callable[[], None],
    selector: Selector,
    values: ValuesAs,
) -> Mover:
    """The fastest mover that can do what is asked of a model whose deployed weights are copied to its device.

    Args:
        flat: the copy of the float32 elements; None: there are none.
    """
    reference = ReferenceMover(pairs, state, check_finite, selector, values)
    found = pairs()
    if type(selector) not in COMPILABLE or flat is None or any(pair.master.dtype != torch.float32 for pair in found):
        return reference
    if not any(pair.master.numel() for pair in found):
        return reference
    if not runs_on(flat.device):
        say_that_torch_selects(f"Triton (3.3 or later) or numba is not there for {flat.device}")
        return reference
    return DeviceMover(found, state, flat, check_finite, reference, values, selector)


def _walks(master: torch.Tensor) -> bool:
    """Whether the kernels read a tensor where it lies."""
    return walks(master) and (master.is_contiguous() or master.numel() < _MOST_TRANSPOSED)


def runs_on(device: torch.device) -> bool:
    """Whether this process has what `DeviceMover` needs for tensors on a device."""
    if not (TRITON and COMPILED):
        return False
    from evergrad.pytorch import triton_kernels

    return triton_kernels.SUPPORTED and device.type == ("cpu" if triton_kernels.INTERPRETED else "cuda")
