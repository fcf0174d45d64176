"""Rice codes compiled by numba, for publishers: byte for byte what `evergrad.codec.rice` writes.

A small update costs numpy some forty calls, each slow after a training step that left nothing of them in the caches.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from evergrad.codec.rice import BLOCK, MAX_PARAMETER, MAX_SPREAD, SMALLEST_BITS, SPREAD_BITS, Words
from evergrad.pytorch.kernels import compiled

_LN2 = np.log(2.0)


@compiled
def _cost(values: Any, start: int, stop: int, parameter: Any) -> Any:
    total = 0.0
    for i in range(start, stop):
        total += np.float64(values[i] >> np.uint64(parameter))
    return total + parameter * (stop - start)


@compiled
def _parameters(values: Any) -> Any:
    count = (len(values) + BLOCK - 1) // BLOCK
    best = np.empty(count, np.int64)
    for block in range(count):
        start, stop = block * BLOCK, min((block + 1) * BLOCK, len(values))
        total = 0.0
        for i in range(start, stop):
            total += np.float64(values[i])
        mean = total / (stop - start)
        upper = min(max(int(np.ceil(np.log2((mean + 1) * _LN2))), 1), MAX_PARAMETER)
        below = _cost(values, start, stop, upper - 1) <= _cost(values, start, stop, upper)
        best[block] = upper - 1 if below else upper
    return np.maximum(best, max(best.max() - MAX_SPREAD, 0))


@compiled
def _put(out: Any, position: Any, number: Any, width: Any) -> None:
    """Writes the low `width` bits of a number, from bit `position` on, the high one first."""
    while width > 0:
        room = 8 - (position & 7)
        take = min(room, width)
        part = (number >> np.uint64(width - take)) & np.uint64((1 << take) - 1)
        out[position >> 3] |= np.uint8(part << np.uint64(room - take))
        position += take
        width -= take


@compiled
def _write(values: Any) -> Any:
    parameters = _parameters(values)
    blocks = len(parameters)
    smallest, head = parameters.min(), SMALLEST_BITS + (SPREAD_BITS * blocks if blocks > 1 else 0)
    low, high = np.int64(head), np.int64(0)
    for i in range(len(values)):
        parameter = parameters[i // BLOCK]
        low += parameter
        high += np.int64(values[i] >> np.uint64(parameter)) + 1
    out = np.zeros((low + high + 7) // 8, np.uint8)
    _put(out, 0, np.uint64(smallest), SMALLEST_BITS)
    if blocks > 1:
        for block in range(blocks):
            _put(out, SMALLEST_BITS + SPREAD_BITS * block, np.uint64(parameters[block] - smallest), SPREAD_BITS)
    position, end = np.int64(head), low
    for i in range(len(values)):
        parameter = parameters[i // BLOCK]
        _put(out, position, values[i], parameter)
        position += parameter
        end += np.int64(values[i] >> np.uint64(parameter))
        out[end >> 3] |= np.uint8(128 >> (end & 7))
        end += 1
    return out


def write_rice(values: Words) -> bytes:
    """As `evergrad.codec.rice.write_rice`."""
    data: bytes = _write(values).tobytes()
    return data
