"""Selection on a device, by Triton: the very elements that the CPU would choose, with nothing on the host in between.

    tally, narrow   three times each: the bits of the k-th largest score, eleven or ten at a time
    count           how many elements of each unit lie above a threshold, and how many at it
    emit            their places, masters and scores, in index order; of those at the threshold the first ones

An element's score is its distance |master - deployed|, or that times a weight of its own (`select.Saliency`).

One launch is for all tensors: a program takes one row of a table, a unit of at most `UNIT` elements of one tensor. A
threshold that is known beforehand needs only `count` and `emit`, which read the weights twice; `find` reads them three
times more. Places come from sums over units, not from the order in which programs end, so that every run gives the
same. Only finite numbers are in order as bits; `count` says where there is another.

Tested against the torch reference in Triton's interpreter (`TRITON_INTERPRET=1`, set before this is imported), and
compiled by Triton 3.3 and 3.7 for compute capabilities 7.5 and 9.0. Not run on a GPU yet, and nothing is measured: no
speed is claimed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

from evergrad.pytorch.mover import transposed_shape
from evergrad.pytorch.select import SALIENCY_EPS, Pair

UNIT = 4096
COLUMNS = 7
_COLUMNS = tl.constexpr(COLUMNS)
_EPS = tl.constexpr(SALIENCY_EPS)
_INFINITY = tl.constexpr(0x7F800000)
_DIGITS = ((20, 11), (10, 10), (0, 10))
BINS = 1 << max(bits for _, bits in _DIGITS)


def compiled(function: Callable[..., Any]) -> Any:
    """Compiles a kernel for the device of its arguments at its first call."""
    return triton.jit(function)


@compiled
def _elements(units, deployed, unit, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Places in `deployed`, masters, and the bits of their scores (-1 behind the unit's end)."""
    row = units + unit * _COLUMNS
    master = tl.load(row).to(tl.pointer_type(tl.float32))
    places, start = tl.load(row + 1) + tl.arange(0, SIZE), tl.load(row + 2)
    inside = tl.arange(0, SIZE) < tl.load(row + 3)
    channels, inner = tl.load(row + 4).to(tl.int32), tl.load(row + 5).to(tl.int32)
    at = start + tl.arange(0, SIZE)
    if inner > 0:  # it reads as [outer, channels, inner], and lies in memory as [outer, inner, channels]
        here = at.to(tl.int32)
        rows = here // inner
        at = (((rows // channels) * inner + here % inner) * channels + rows % channels).to(tl.int64)
    ours = tl.load(master + at, mask=inside, other=0.0)
    theirs = tl.load(deployed + places, mask=inside, other=0.0)
    score, squares = tl.abs(ours - theirs), tl.load(row + 6)
    if squares != 0:
        own = tl.load(squares.to(tl.pointer_type(tl.float32)) + at, mask=inside, other=0.0)
        score = score * tl.sqrt_rn(tl.sqrt_rn(own) + _EPS)
    bits = score.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return places, ours, tl.where(inside, bits, -1)


@compiled
def _tally(units, deployed, aim, bins, SHIFT: tl.constexpr, COUNT: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Counts the digits above bit SHIFT of the scores whose higher bits are those of `aim`."""
    _, _, bits = _elements(units, deployed, tl.program_id(0), SIZE)
    digits = bits >> SHIFT
    mine = (bits > 0) & (digits // COUNT == tl.load(aim))
    number = tl.arange(0, COUNT)
    found = tl.histogram(tl.where(mine, digits % COUNT, 0), COUNT)
    found -= tl.where(number == 0, tl.sum(1 - mine.to(tl.int32), 0), 0)
    tl.atomic_add(bins + number, found.to(tl.int64), mask=found > 0)


@compiled
def _narrow(aim, bins, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Appends the digit of the element that `aim` counts down to, and clears the bins."""
    number = COUNT - 1 - tl.arange(0, COUNT)
    found = tl.load(bins + number)
    sums = tl.cumsum(found, 0)
    rest = tl.minimum(tl.load(aim + 1), tl.sum(found, 0))
    higher = sums < rest
    digit = COUNT - 1 - tl.sum(higher.to(tl.int64), 0)
    tl.store(aim, tl.load(aim) * COUNT + digit)
    tl.store(aim + 1, rest - tl.sum(tl.where(higher, found, 0), 0))
    tl.store(bins + number, tl.zeros_like(found))


@compiled
def _count(units, deployed, aim, counts, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    unit = tl.program_id(0)
    _, _, bits = _elements(units, deployed, unit, SIZE)
    threshold = tl.load(aim)
    tl.store(counts + unit, tl.sum((bits > threshold).to(tl.int32), 0))
    tl.store(counts + tl.num_programs(0) + unit, tl.sum((bits == threshold).to(tl.int32), 0))
    if tl.max(bits, 0) >= _INFINITY:
        tl.store(aim + 2, 1)


@compiled
def _emit(units, deployed, aim, counts, sums, places_out, masters_out, scores_out, room, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    unit, all_units = tl.program_id(0), tl.num_programs(0)
    threshold, most_equal = tl.load(aim), tl.load(aim + 1)
    above, equal = tl.load(counts + unit), tl.load(counts + all_units + unit)
    above_so_far, equal_so_far = tl.load(sums + unit), tl.load(sums + all_units + unit)
    if unit == all_units - 1:
        tl.store(aim + 3, above_so_far + tl.minimum(equal_so_far, most_equal))
    if above + equal > 0:
        places, ours, bits = _elements(units, deployed, unit, SIZE)
        equal_before = equal_so_far - equal
        tie = bits == threshold
        tie = tie & (equal_before + tl.cumsum(tie.to(tl.int32), 0) <= most_equal)
        chosen = tie | (bits > threshold)
        first = above_so_far - above + tl.minimum(equal_before, most_equal)
        slots = first + tl.cumsum(chosen.to(tl.int32), 0) - 1
        kept = chosen & (slots < room)
        tl.store(places_out + slots, places, mask=kept)
        tl.store(masters_out + slots, ours, mask=kept)
        tl.store(scores_out + slots, bits.to(tl.float32, bitcast=True), mask=kept)


INTERPRETED = not isinstance(_emit, triton.JITFunction)
"""Whether kernels run in the interpreter, on tensors of the CPU."""
SUPPORTED = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 3)
"""Whether this Triton is one that they were compiled with."""


def units_of(pair: Pair, master: torch.Tensor, first: int) -> npt.NDArray[np.int64]:
    """Rows of the table: address of the master, place in the deployed copy of the unit's first element, its place in
    the tensor, length, and, where the master lies transposed, its channels and inner size (else 0); and the address of
    as many second moments, which lie as the master does (0, as here: distances count plainly).

    Args:
        master: contiguous, or transposed as `transposed_shape` says.
        first: the flat index of the first element of the deployed copy.
    """
    size = master.numel()
    starts = np.arange(0, size, UNIT, dtype=np.int64)
    units = np.zeros((len(starts), COLUMNS), np.int64)
    units[:, 0], units[:, 1], units[:, 2] = master.data_ptr(), pair.offset - first + starts, starts
    units[:, 3] = np.minimum(UNIT, size - starts)
    shape = transposed_shape(master)
    if shape is not None:
        _, units[:, 4], units[:, 5] = shape
    return units


def find(units: torch.Tensor, deployed: torch.Tensor, aim: torch.Tensor, bins: torch.Tensor) -> None:
    """Turns `aim` from [0, k, ...] into the bits of the k-th largest score, and how many elements of it are due.

    Where fewer than k elements have moved, it is the smallest score that is not 0.

    Args:
        bins: int64 [`BINS`], zero; it is zero again afterwards.
    """
    for shift, bits in _DIGITS:
        _tally[(len(units),)](units, deployed, aim, bins, SHIFT=shift, COUNT=1 << bits, SIZE=UNIT, num_warps=8)
        _narrow[(1,)](aim, bins, COUNT=1 << bits)


def collect(
    units: torch.Tensor, deployed: torch.Tensor, aim: torch.Tensor,
    places: torch.Tensor, masters: torch.Tensor, scores: torch.Tensor,
) -> None:  # fmt: skip
    """Puts the elements above the threshold of `aim`, and the first of those at it, into the last three.

    Args:
        units: int64 [n, 7] (see `units_of`), n at least 1.
        deployed: float32, flat.
        aim: int64 [4]: bits of the threshold, how many elements at it are due; then, as results: 1 where something is
            not finite (it stays otherwise), and how many elements are due.
        places, masters, scores: int64 and twice float32, of one length; what is more than that is left out.
    """
    counts = torch.empty((2, len(units)), dtype=torch.int32, device=units.device)
    grid, room = (len(units),), len(places)
    _count[grid](units, deployed, aim, counts, SIZE=UNIT, num_warps=8)
    sums = counts.cumsum(1)
    _emit[grid](units, deployed, aim, counts, sums, places, masters, scores, room, SIZE=UNIT, num_warps=8)
