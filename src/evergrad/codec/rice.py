"""Rice codes with a parameter per block, for arrays, in plain numpy: no loop over elements.

A value v of a block with parameter r is r low bits, kept as they are, and the rest, v >> r, in unary: that many zeros
and a one. The layout of a stream, bits from the high end of each byte:

    6 bits   smallest parameter
    4 bits   of each block of 128 values: its parameter less the smallest; none where one block is all
    then     the low bits of all values, one after another; then their unary parts; zeros to the byte

For gaps between random indices this is within 1% of the entropy (R. F. Rice, JPL Publication 79-22, 1979; the
parameter for a mean: A. Kiely, JPL IPN 42-159, 2004).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from evergrad.errors import CorruptRecord

BLOCK = 128
MAX_PARAMETER = 56
"""What a 64-bit word can hold of one value from any bit of its first byte on."""
SMALLEST_BITS, SPREAD_BITS = 6, 4
MAX_SPREAD = (1 << SPREAD_BITS) - 1
_CHUNK = 1 << 14

Words = npt.NDArray[np.uint64]
WriteRice = Callable[[Words], bytes]
_ONE, _WORD = np.uint64(1), np.uint64(64)


class Reader:
    """Takes bytes from the front of `data`, never more than there are; `name` says in errors where they came from."""

    def __init__(self, data: bytes, offset: int, name: str) -> None:
        self.data, self.offset, self.name = data, offset, name

    def fail(self, reason: str) -> CorruptRecord:
        """The error to raise."""
        return CorruptRecord(self.name, reason)

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if count > len(self.data) - self.offset:
            raise self.fail(f"it ends {count - len(self.data) + self.offset} bytes early")
        self.offset += count
        return self.data[self.offset - count : self.offset]

    def varint(self) -> int:
        """An unsigned LEB128 number below 2^63."""
        value = 0
        for shift in range(0, 63, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if byte == 0 and shift:
                    raise self.fail("a number is longer than it needs to be")
                return value
        raise self.fail("a number has more than 63 bits")

    def count(self) -> int:
        """A number of elements: at least one, each of which has at least one bit in what follows."""
        count, most = self.varint(), 8 * (len(self.data) - self.offset)
        if not 0 < count <= most:
            raise self.fail(f"{count} elements cannot stand in {most} bits")
        return count


def varint(value: int) -> bytes:
    """`value` as an unsigned LEB128 number."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def write_rice(values: Words) -> bytes:
    """The stream of `values`, at least one."""
    starts = np.arange(0, len(values), BLOCK)
    sizes = np.minimum(BLOCK, len(values) - starts)
    parameters = _parameters(values, starts, sizes)
    widths = np.repeat(parameters, sizes)
    head, head_widths = _head(parameters)
    low = np.concatenate((head, values & ((_ONE << widths) - _ONE)))
    bits, used = pack_fields(low, np.concatenate((head_widths, widths)))
    ends = np.cumsum((values >> widths).astype(np.int64) + 1) - 1
    unary = np.zeros((used & 7) + int(ends[-1]) + 1, dtype=np.uint8)
    unary[ends + (used & 7)] = 1
    tail = np.packbits(unary)
    whole, part = used >> 3, (used + 7) >> 3
    if part > whole:
        tail[0] |= bits[whole]
    return bits[:whole].tobytes() + tail.tobytes()


def read_rice(reader: Reader, count: int) -> Words:
    """Reads `count` values, at least one.

    Raises:
        CorruptRecord: there are not so many, or bits stand where no writer writes any.
    """
    parameters, head_bits = _read_head(reader, -(-count // BLOCK))
    widths = np.repeat(parameters, BLOCK if len(parameters) > 1 else count)[:count]
    stops = widths.cumsum()
    stops += np.uint64(head_bits)
    used = int(stops[-1])
    first = reader.offset + (used >> 3)
    if first > len(reader.data):
        raise reader.fail(f"the low bits of {count} values end early")
    ends = _ones(reader, first, used & 7, count)
    low = unpack_fields(reader.data[reader.offset : first + 1], stops, widths)
    bits = (used & 7) + int(ends[-1]) + 1
    reader.offset = first + (bits + 7 >> 3)
    if bits & 7 and reader.data[reader.offset - 1] & 0xFF >> (bits & 7):
        raise reader.fail("padding bits are not zero")
    ends[1:] -= ends[:-1] + 1
    high = ends.view(np.uint64)
    # Below 2^8 a part fits above any parameter.
    if int(high.max()) >> 64 - MAX_PARAMETER and (high >> np.minimum(_WORD - widths, np.uint64(63))).any():
        raise reader.fail("a value has more than 64 bits")
    high <<= widths
    high |= low
    return high


def _parameters(values: Words, starts: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> Words:
    """The best parameter of each block: of the one that the mean asks for and its neighbour, the cheaper one."""
    mean = np.add.reduceat(values.astype(np.float64), starts) / sizes
    upper = np.clip(np.ceil(np.log2((mean + 1) * math.log(2))), 1, MAX_PARAMETER).astype(np.uint64)
    lower = upper - _ONE
    cost = [
        np.add.reduceat((values >> np.repeat(r, sizes)).astype(np.float64), starts) + r * sizes for r in (lower, upper)
    ]
    best = np.where(cost[0] <= cost[1], lower, upper)
    return np.maximum(best, max(int(best.max()) - MAX_SPREAD, 0)).astype(np.uint64)


def _head(parameters: Words) -> tuple[Words, Words]:
    """The parameters as fields, and how wide each of these is."""
    smallest = parameters.min()
    spread = parameters - smallest if len(parameters) > 1 else parameters[:0]
    widths = np.full(len(spread) + 1, SPREAD_BITS, dtype=np.uint64)
    widths[0] = SMALLEST_BITS
    return np.concatenate((smallest[None], spread)), widths


def _read_head(reader: Reader, blocks: int) -> tuple[Words, int]:
    """The parameter of each block, and how many bits tell them; the reader stays where it is."""
    spreads = blocks if blocks > 1 else 0
    bits = SMALLEST_BITS + SPREAD_BITS * spreads
    data = reader.data[reader.offset : reader.offset + (bits + 7 >> 3)]
    if 8 * len(data) < bits:
        raise reader.fail(f"the parameters of {blocks} blocks end early")
    if spreads:
        widths = np.full(spreads + 1, SPREAD_BITS, dtype=np.uint64)
        widths[0] = SMALLEST_BITS
        fields = unpack_fields(data, np.cumsum(widths), widths)
        parameters = fields[0] + fields[1:]
    else:
        parameters = np.array([data[0] >> 8 - SMALLEST_BITS], dtype=np.uint64)
    if int(parameters.max()) > MAX_PARAMETER:
        raise reader.fail(f"a Rice parameter of {parameters.max()}, at most {MAX_PARAMETER}")
    return parameters, bits


def pack_fields(values: Words, widths: Words) -> tuple[npt.NDArray[np.uint8], int]:
    """Values of `widths` bits (0 to 64) one after another, as bytes with room behind, and how many bits they are."""
    stops = np.cumsum(widths)
    used = int(stops[-1])
    words = np.zeros((used >> 6) + 2, dtype=np.uint64)
    starts = stops - widths
    word, end = (starts >> np.uint64(6)).astype(np.int64), (starts & np.uint64(63)) + widths
    over = end > _WORD
    # What lies in the word where a value begins; shifts of 64 are undefined, so their counts are kept below.
    here = np.where(over, values >> (end - _WORD & np.uint64(63)), values << (_WORD - end & np.uint64(63)))
    heads = np.flatnonzero(np.diff(word, prepend=-1))
    words[word[heads]] = np.bitwise_or.reduceat(here, heads)
    beyond = np.flatnonzero(over)
    words[word[beyond] + 1] |= values[beyond] << (np.uint64(128) - end[beyond])
    return words.astype(">u8").view(np.uint8), used


def unpack_fields(data: bytes, stops: Words, widths: Words) -> Words:
    """The inverse of `pack_fields`; `stops` is the cumulated sum of `widths`."""
    padded = np.frombuffer(data + bytes(9), dtype=np.uint8)
    # The big-endian word that begins at each byte, wherever it lies in memory.
    words: npt.NDArray[Any] = np.ndarray(len(padded) - 8, dtype=">u8", buffer=padded, strides=(1,))
    result = np.empty(len(widths), dtype=np.uint64)
    for first in range(0, len(widths), _CHUNK):  # what is worked with stays small beside the values
        part = slice(first, first + _CHUNK)
        starts, width = stops[part] - widths[part], widths[part]
        byte, bit = (starts >> np.uint64(3)).astype(np.int64), starts & np.uint64(7)
        here = words[byte].astype(np.uint64)
        here <<= bit
        if int(width.max()) <= 57:
            here >>= _ONE  # in two shifts, for one of 64 is undefined
            here >>= np.uint64(63) - width
            result[part] = here
        else:  # a value may reach into a ninth byte
            here |= padded[byte + 8].astype(np.uint64) >> (np.uint64(8) - bit)
            result[part] = np.where(width > 0, here >> (_WORD - width & np.uint64(63)), np.uint64(0))
    return result


def _ones(reader: Reader, first: int, skip: int, count: int) -> npt.NDArray[np.int64]:
    """Where the next `count` ones are, in bits from byte `first` on, less the `skip` bits that belong to others."""
    window = count // 2 + 16
    while True:
        bits = np.unpackbits(np.frombuffer(reader.data[first : first + window], dtype=np.uint8))
        bits[:skip] = 0
        ends = np.flatnonzero(bits)
        if len(ends) >= count:
            found: npt.NDArray[np.int64] = ends[:count]
            found -= skip
            return found
        if first + window >= len(reader.data):
            raise reader.fail(f"{len(ends)} values, it should hold {count}")
        window *= 2
