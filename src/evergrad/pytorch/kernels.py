"""Selection and move on the CPU, compiled by numba: one pass over memory, on the user's tensors where they lie.

    scan        candidates above a threshold into a small buffer; when it is full, the best k stay and the threshold
                rises to the k-th of them, in mid-pass
    best        the best k of the buffer, in index order
    move        their common scale, the move of the deployed weights, and what that does to the digest

An element's score is its distance |master - deployed|, or that times a weight of its own (`select.Saliency`). What is
scanned is a table of units, runs of at most `UNIT` elements that are consecutive in the deployed copy; the master's may
lie transposed (channels_last), and are then laid straight in a scratch of that size. Results are those of the reference
(`select.top_k`, `select.even_step`), bit for bit. No function here holds the interpreter's lock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

UNIT = 8192
COLUMNS = 7  # of a table of units
SALIENCY_EPS = 1e-8  # beside the square root of a second moment, as in Adam's step
MOST_LEVEL = 63  # of the format
LEAST_LEVEL = 0.75 / 32  # of the mean distance: what is nearer is not on the lowest level
_BLOCK = 64
_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Compiles a function for arrays at its first call, and keeps that for later processes where it can."""
    try:
        result: _Function = njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # nowhere to keep what was compiled: it is compiled anew in each process
        result = njit(nogil=True, error_model="numpy")(function)
    return result


def _pointers_to(kind: Any) -> Any:
    """What makes a pointer to elements of `kind` of an address, in compiled code."""

    def pointer(typingctx: Any, address: Any) -> Any:  # noqa: ARG001
        signature = types.CPointer(kind)(types.int64)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return signature, generate

    return intrinsic(pointer)


_pointer = _pointers_to(types.float32)
_pointer_int64 = _pointers_to(types.int64)


@compiled
def _order(number: Any) -> Any:
    """The bits of |number| as an integer: those of finite numbers are in numerical order."""
    return np.int64(np.float32(abs(number)).view(np.uint32))


@compiled
def _kth_largest(keys: Any, k: int) -> Any:
    """The k-th largest of distinct keys, which it reorders (Hoare's quickselect)."""
    low, high, place = 0, len(keys) - 1, len(keys) - k
    while low < high:
        pivot = keys[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while keys[i] < pivot:
                i += 1
            while keys[j] > pivot:
                j -= 1
            if i <= j:
                keys[i], keys[j] = keys[j], keys[i]
                i += 1
                j -= 1
        if place <= j:
            high = j
        elif place >= i:
            low = i
        else:
            break
    return keys[place]


@compiled
def _keep_best(positions: Any, moves: Any, olds: Any, scores: Any, count: int, k: int, keys: Any) -> Any:
    """Brings the k largest scores to the front, in order, of equal ones the first; gives the smallest of them."""
    for j in range(count):
        keys[j] = _order(scores[j]) << 32 | (0xFFFFFFFF - j)
    least = _kth_largest(keys[:count].copy(), k)
    kept = 0
    for j in range(count):
        if keys[j] >= least:
            positions[kept], moves[kept], olds[kept], scores[kept] = positions[j], moves[j], olds[j], scores[j]
            kept += 1
    return np.uint32(least >> 32).view(np.float32)


@compiled
def _lay_straight(address: Any, unit: Any, scratch: Any) -> None:
    """Copies a transposed unit, rows of `inner` channels, into `scratch` as the deployed copy has it."""
    length, channels, inner, first = unit[2], unit[3], unit[4], unit[5]
    rows = length // inner
    for s in range(inner):
        source = carray(_pointer(address + 4 * (s * channels + first)), rows)
        for i in range(rows):
            scratch[i * inner + s] = source[i]


@compiled
def _longest_transposed(units: Any) -> Any:
    longest = 0
    for number in range(len(units)):
        if units[number, 4]:
            longest = max(longest, units[number, 2])
    return longest


@compiled
def _elements(address: Any, unit: Any, scratch: Any) -> Any:
    if unit[4]:
        _lay_straight(address, unit, scratch)
        return scratch[: unit[2]]
    return carray(_pointer(address), unit[2])


@compiled
def _any_above(ours: Any, theirs: Any, limit: Any) -> Any:
    found = 0
    for i in range(len(ours)):
        found |= not (abs(ours[i] - theirs[i]) <= limit)
    return found


@compiled
def _saliency(move: Any, square: Any) -> Any:
    """A distance times what it weighs by its second moment."""
    return abs(move) * np.sqrt(np.sqrt(square) + np.float32(SALIENCY_EPS))


@compiled
def _any_salient(ours: Any, theirs: Any, squares: Any, limit: Any) -> Any:
    found = 0
    for i in range(len(ours)):
        found |= not (_saliency(ours[i] - theirs[i], squares[i]) <= limit)
    return found


@compiled
def _collect(
    ours: Any, theirs: Any, squares: Any, weighed: Any, limit: Any, start: int,
    positions: Any, moves: Any, olds: Any, scores: Any, count: int,
) -> Any:  # fmt: skip
    """Appends what is above the limit; gives the new count, -1 where something is not finite."""
    for i in range(len(ours)):
        move = ours[i] - theirs[i]
        score = _saliency(move, squares[i]) if weighed else abs(move)
        if not (score <= limit):
            if not np.isfinite(move):
                return -1
            positions[count], moves[count], olds[count], scores[count] = start + i, move, theirs[i], score
            count += 1
    return count


@compiled
def scan(
    units: Any, deployed: Any, threshold: float, k: int, positions: Any, moves: Any, olds: Any, scores: Any
) -> Any:
    """Collects the elements of `units` whose score is above a threshold that rises as they fill up.

    Args:
        units: int64 [n, 7]: address of the master's elements, position in `deployed`, length, and, where the master
            lies transposed, its channels, inner size and first channel (else 0); address of as many second moments,
            which lie as the master does (0: distances count plainly).
        deployed: float32, flat.
        positions, moves, olds, scores: where candidates go, with their distances, deployed values and scores; longer
            than k. To read these here costs nothing, and later a wait for memory each.

    Returns:
        How many candidates there are, how many there have been, and the first unit that holds a master that is not
        finite (-1: none).
    """
    scratch = np.empty(_longest_transposed(units), np.float32)
    scratch_of_squares = np.empty(len(scratch), np.float32)
    keys = np.empty(len(positions), np.int64)
    count, seen = 0, 0
    limit = np.float32(threshold)
    for number in range(len(units)):
        start, length = units[number, 1], units[number, 2]
        master, squares = _elements(units[number, 0], units[number], scratch), scratch_of_squares
        weighed = units[number, 6] != 0
        if weighed:
            squares = _elements(units[number, 6], units[number], scratch_of_squares)
        for block in range(0, length, _BLOCK):
            ours, own = master[block : block + _BLOCK], squares[block : block + _BLOCK]
            theirs = deployed[start + block : start + block + len(ours)]
            if not (_any_salient(ours, theirs, own, limit) if weighed else _any_above(ours, theirs, limit)):
                continue
            if count + len(ours) > len(positions):
                limit = np.float32(max(limit, _keep_best(positions, moves, olds, scores, count, k, keys)))
                seen += count - k
                count = k
            count = _collect(ours, theirs, own, weighed, limit, start + block, positions, moves, olds, scores, count)
            if count < 0:
                return count, seen, number
    return count, seen + count, -1


@compiled
def best(positions: Any, moves: Any, olds: Any, scores: Any, count: int, k: int) -> Any:
    """The best k of `count` candidates, in index order, in arrays of their own, and the smallest score among them."""
    chosen, sizes, own, least = positions[:count].copy(), moves[:count].copy(), olds[:count].copy(), np.float32(0)
    if count > k:
        least = _keep_best(chosen, sizes, own, scores[:count].copy(), count, k, np.empty(count, np.int64))
        chosen, sizes, own = chosen[:k].copy(), sizes[:k].copy(), own[:k].copy()
    elif count == k:
        least = scores[:count].min()
    return chosen, sizes, own, least


@compiled
def _mix(index: Any, number: Any) -> Any:
    x = np.uint64(index) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(np.float32(number).view(np.uint32))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@compiled
def _is_closer(move: Any, old: Any, scale: Any) -> Any:
    after = np.float32(old - scale) if move < 0 else np.float32(old + scale)
    rest = np.float64(move) - (np.float64(after) - np.float64(old))
    return abs(rest) < abs(np.float64(move))


@compiled
def _sized(scale: Any, level: Any) -> Any:
    return np.float32(math.ldexp(np.float64(scale), int(level)))


@compiled
def _find_levels(moves: Any, count: int, mean: float, levels: Any) -> None:
    """`select.levels_of` the first `count`, of that mean distance."""
    least, unit = MOST_LEVEL, mean * LEAST_LEVEL
    for j in range(count):
        _, exponent = math.frexp(np.float64(abs(moves[j])) / unit)
        levels[j] = min(max(exponent - 1, 0), MOST_LEVEL)
        least = min(least, int(levels[j]))
    for j in range(count):
        levels[j] -= least


@compiled
def _even_step(positions: Any, moves: Any, olds: Any, levels: Any) -> Any:
    """`select.even_step`: what is kept comes to the front, in order; gives how many, and the scale."""
    count, scale = len(positions), np.float32(0)
    while count:
        total, largest = 0.0, np.float32(0)
        for j in range(count):
            total += np.float64(abs(moves[j]))
            largest = max(largest, abs(moves[j]))
        _find_levels(moves, count, total / count, levels)
        steps, closer, equal = 0.0, 0, 0
        for j in range(count):
            steps += math.ldexp(1.0, int(levels[j]))
        scale = np.float32(total / steps)
        for j in range(count):
            closer += _is_closer(moves[j], olds[j], _sized(scale, levels[j]))
            equal += abs(moves[j]) == largest
        if closer == count:
            return count, scale
        if not closer and equal == count:
            return 0, scale
        kept = 0
        for j in range(count):
            if _is_closer(moves[j], olds[j], _sized(scale, levels[j])) if closer else abs(moves[j]) == largest:
                positions[kept], moves[kept], olds[kept] = positions[j], moves[j], olds[j]
                kept += 1
        count = kept
    return 0, scale


@compiled
def move(positions: Any, moves: Any, olds: Any, scores: Any, count: int, k: int, deployed: Any, first: int) -> Any:
    """Moves `deployed` towards the master by one even step at the best k of all candidates.

    Args:
        positions, moves, olds, scores, count: what `scan` found.
        first: the flat index of the first element of `deployed`.

    Returns:
        positions, old and new values, whether each moved down, scale, levels, the shift of the digest (modulo 2^64),
        and the smallest score among the best k (0 where there were fewer).
    """
    chosen, sizes, old, least = best(positions, moves, olds, scores, count, k)
    levels = np.empty(len(chosen), np.uint8)
    kept, scale = _even_step(chosen, sizes, old, levels)
    chosen, old = chosen[:kept], old[:kept]
    new, negative, shift = np.empty(kept, np.float32), np.empty(kept, np.bool_), np.uint64(0)
    for j in range(kept):
        negative[j], size = sizes[j] < 0, _sized(scale, levels[j])
        new[j] = np.float32(old[j] - size) if negative[j] else np.float32(old[j] + size)
        shift += _mix(first + chosen[j], new[j]) - _mix(first + chosen[j], old[j])
    for j in range(kept):  # apart: these wait for memory, which what comes before can be done beside
        deployed[chosen[j]] = new[j]
    return chosen, old, new, negative, scale, levels[:kept], shift, least


@compiled
def stale(buffers: Any, deployed: Any, tolerances: Any) -> Any:
    """Elements of float32 buffers that are off by more than a fraction of their yardstick.

    Args:
        buffers: int64 [n, 4]: address of a buffer's elements, position in `deployed`, length, and address of as many
            variances, whose square roots are the yardstick where they are larger than the elements (0: none).
        tolerances: float64 [n]: the fraction, for each buffer.

    Returns:
        Their positions and live values, in the order of `buffers`, and the first buffer whose bits differ where it is
        not finite (-1: none).
    """
    found = 0
    positions, values = np.empty(0, np.int64), np.empty(0, np.float32)
    for turn in range(2):  # counts them first
        if turn:
            positions, values = np.empty(found, np.int64), np.empty(found, np.float32)
            found = 0
        for number in range(len(buffers)):
            live = carray(_pointer(buffers[number, 0]), buffers[number, 2])
            start, variances = buffers[number, 1], buffers[number, 3]
            for i in range(len(live)):
                here, there = live[i], deployed[start + i]
                if np.float32(here).view(np.uint32) == np.float32(there).view(np.uint32):
                    continue
                if not np.isfinite(here):
                    return positions, values, number
                yardstick = abs(np.float64(here))
                if variances:
                    yardstick = max(yardstick, np.sqrt(np.float64(carray(_pointer(variances), len(live))[i])))
                if abs(np.float64(here) - np.float64(there)) <= tolerances[number] * yardstick:
                    continue
                if turn:
                    positions[found], values[found] = start + i, here
                found += 1
    return positions, values, -1


@compiled
def differing(buffers: Any, deployed: Any) -> Any:
    """Elements of int64 buffers that are not the deployed ones: positions and live values, as `stale` gives them."""
    room = 0
    for number in range(len(buffers)):
        room += buffers[number, 2]
    positions, values, found = np.empty(room, np.int64), np.empty(room, np.int64), 0
    for number in range(len(buffers)):
        live = carray(_pointer_int64(buffers[number, 0]), buffers[number, 2])
        for i in range(len(live)):
            if live[i] != deployed[buffers[number, 1] + i]:
                positions[found], values[found] = buffers[number, 1] + i, live[i]
                found += 1
    return positions[:found], values[:found]
