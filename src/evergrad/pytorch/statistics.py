"""How floating-point buffers, such as BatchNorm's statistics, are told to replicas: no finer than is tolerated."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from evergrad.codec import compact
from evergrad.update import Section, Values, from_ordered, to_ordered
from evergrad.update.digest import Array

_FRACTION_BITS = {"F64": 52, "F32": 23, "F16": 10, "BF16": 7}
_EXPONENT_BITS = {"F64": 11, "F32": 8, "F16": 5, "BF16": 8}


def tell_within(values: Values, old: Array, tolerance: float) -> list[Section]:
    """Sections that bring elements from `old` to within `tolerance` of `values`, relatively, in few bits.

    Values are rounded to a grid of as many leading bits as the tolerance asks for, and told as differences on it: a
    change of a few percent takes three or four bits instead of 32. Where there is no such grid (zero, subnormal
    numbers, the last binade before infinity) a value is told exactly, and so are all integers.

    Args:
        values: the elements as they are, finite.
        old: what replicas hold for them.
        tolerance: 0: everything is told exactly.
    """
    shift = _shift(values.dtype, tolerance)
    if not shift:
        return [compact(values, old)]
    ordered = to_ordered(values.values, values.dtype)
    kind = ordered.dtype.type
    rounded = from_ordered(ordered + kind(1 << (shift - 1)) >> kind(shift) << kind(shift), values.dtype)
    coarse = _has_grid(values)
    sections: list[Section] = []
    for chosen, new, left_out in ((coarse, rounded, shift), (~coarse, values.values, 0)):
        if chosen.any():
            part = Values(values.indices[chosen], new[chosen], values.dtype)
            sections.append(compact(part, old[chosen], left_out))
    return sections


def _shift(dtype: str, tolerance: float) -> int:
    """How many low bits of a value the tolerance makes superfluous."""
    if dtype not in _FRACTION_BITS or not tolerance:
        return 0
    # The tolerance lies in [2^(e - 1), 2^e), e <= 0; rounding to -e bits behind the first is off by at most 2^(e - 1).
    # A finer grid would be left as often, for elements drift on from wherever they were put, and cost a bit more.
    return max(0, _FRACTION_BITS[dtype] + math.frexp(tolerance)[1])


def _has_grid(values: Values) -> npt.NDArray[np.bool_]:
    bits = values.values.view(f"u{values.values.itemsize}").astype(np.uint64)
    most = (1 << _EXPONENT_BITS[values.dtype]) - 1
    exponent = bits >> np.uint64(_FRACTION_BITS[values.dtype]) & np.uint64(most)
    result: npt.NDArray[np.bool_] = (exponent > 0) & (exponent < most - 1)
    return result
