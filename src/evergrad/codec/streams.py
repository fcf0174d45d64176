"""Ascending indices, levels of steps, and differences of any size, as streams of Rice codes.

Indices are told as gaps (index - previous index - 1) or, where they come in runs of neighbours, as the gaps between the
runs and the runs' lengths. Levels are told relative to the one that most have. A difference is told by how many bits it
has, relative to the median of its block, and by those bits: differences of floating-point numbers spread over many
powers of two.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from evergrad.codec.rice import (
    BLOCK,
    Reader,
    Words,
    WriteRice,
    pack_fields,
    read_rice,
    unpack_fields,
    varint,
    write_rice,
)
from evergrad.update.digest import Indices

MAX_LEVEL = 63
_ONE = np.uint64(1)
_POWERS = _ONE << np.arange(64, dtype=np.uint64)


def write_indices(indices: Indices, rice: WriteRice = write_rice) -> tuple[bool, bytes]:
    """The stream of `indices`, strictly ascending and at least one, and whether it tells runs."""
    gaps = (np.diff(indices, prepend=-1) - 1).view(np.uint64)
    plain = rice(gaps)
    heads = np.flatnonzero(gaps)
    if not len(heads) or heads[0] != 0:
        heads = np.concatenate(([0], heads))
    if 2 * len(heads) > len(gaps):  # each run costs two numbers
        return False, plain
    lengths = np.diff(heads, append=len(gaps)) - 1
    runs = varint(len(heads)) + rice(gaps[heads]) + rice(lengths.view(np.uint64))
    return (True, runs) if len(runs) < len(plain) else (False, plain)


def read_indices(reader: Reader, count: int, elements: int, *, runs: bool) -> Indices:
    """Reads `count` indices, all below `elements`.

    Raises:
        CorruptRecord: there are not so many, or one lies outside.
    """
    if not runs:
        return _ascending(reader, read_rice(reader, count), count, elements)
    number = reader.count()
    gaps = read_rice(reader, number)
    lengths = read_rice(reader, number)
    if number > count or int(lengths.max()) >= count or int(lengths.sum()) + number != count:
        raise reader.fail(f"its runs do not hold {count} indices")
    spread = np.zeros(count, dtype=np.uint64)
    spread[np.cumsum(lengths.view(np.int64) + 1) - 1 - lengths.view(np.int64)] = gaps
    return _ascending(reader, spread, count, elements)


def _ascending(reader: Reader, gaps: Words, count: int, elements: int) -> Indices:
    # A model has so few elements that the sum of gaps that fit is exact.
    if float(gaps.sum(dtype=np.float64)) + count > elements:
        raise reader.fail("an index lies outside the model")
    indices: Indices = (gaps.view(np.int64) + 1).cumsum()
    indices -= 1
    return indices


def write_levels(levels: npt.NDArray[np.uint8], rice: WriteRice = write_rice) -> bytes:
    """The stream of levels, at least one, none above `MAX_LEVEL`."""
    usual = int(np.bincount(levels).argmax())
    return bytes((usual,)) + rice(_zigzag(levels.astype(np.int64) - usual))


def read_levels(reader: Reader, count: int) -> npt.NDArray[np.uint8]:
    """Reads `count` levels.

    Raises:
        CorruptRecord: there are not so many, or one is out of range.
    """
    usual, off = reader.take(1)[0], read_rice(reader, count)
    if usual > MAX_LEVEL or int(off.max()) > 2 * MAX_LEVEL:
        raise reader.fail(f"a step of a level above {MAX_LEVEL}")
    levels = _unzigzag(off) + usual
    if int(levels.min()) < 0 or int(levels.max()) > MAX_LEVEL:
        raise reader.fail(f"a step of level {levels.min()} or {levels.max()}, which are to be 0 to {MAX_LEVEL}")
    return levels.astype(np.uint8)


def write_differences(values: npt.NDArray[np.int64], rice: WriteRice = write_rice) -> bytes:
    """The stream of signed numbers, at least one."""
    folded = _zigzag(values)
    lengths = np.searchsorted(_POWERS, folded, side="right").astype(np.int64)
    medians = _medians(lengths)
    off = lengths - np.repeat(medians, BLOCK)[: len(lengths)]
    widths = np.maximum(lengths - 1, 0).view(np.uint64)  # the highest bit of a number is known
    low, used = pack_fields(folded & ((_ONE << widths) - _ONE), widths)
    return medians.astype(np.uint8).tobytes() + rice(_zigzag(off)) + low[: (used + 7) >> 3].tobytes()


def _medians(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The median of each block, rounded down."""
    whole = len(lengths) - len(lengths) % BLOCK
    middle = np.partition(lengths[:whole].reshape(-1, BLOCK), (BLOCK // 2 - 1, BLOCK // 2), axis=1)
    medians = middle[:, BLOCK // 2 - 1 : BLOCK // 2 + 1].sum(axis=1) >> 1
    last = [int(np.median(lengths[whole:]))] if whole < len(lengths) else []
    return np.concatenate((medians, np.array(last, dtype=np.int64)))


def read_differences(reader: Reader, count: int) -> npt.NDArray[np.int64]:
    """Reads `count` signed numbers of at most 64 bits.

    Raises:
        CorruptRecord: there are not so many, or one has more bits.
    """
    medians = np.frombuffer(reader.take(-(-count // BLOCK)), dtype=np.uint8).astype(np.int64)
    off = read_rice(reader, count)
    if int(off.max()) > 128:
        raise reader.fail("a difference of more than 64 bits")
    lengths = _unzigzag(off)
    del off  # memory: every array here is eight bytes for each bit that a byte may tell a difference by
    lengths += np.repeat(medians, BLOCK)[:count]
    if int(lengths.min()) < 0 or int(lengths.max()) > 64:
        raise reader.fail("a difference of more than 64 bits")
    widths = np.maximum(lengths - 1, 0).view(np.uint64)
    stops = np.cumsum(widths)
    used = int(stops[-1])
    data = reader.take((used + 7) >> 3)
    if used & 7 and data[-1] & 0xFF >> (used & 7):
        raise reader.fail("padding bits are not zero")
    folded = unpack_fields(data, stops, widths)
    del stops
    highest = (lengths > 0).astype(np.uint64)
    highest <<= widths
    folded |= highest
    del lengths, widths, highest
    return _unzigzag(folded)


def _zigzag(values: npt.NDArray[np.int64]) -> Words:
    return ((values << np.int64(1)) ^ (values >> np.int64(63))).view(np.uint64)


def _unzigzag(folded: Words) -> npt.NDArray[np.int64]:
    return ((folded >> _ONE) ^ (np.uint64(0) - (folded & _ONE))).view(np.int64)
