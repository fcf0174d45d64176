"""Updates to bytes and back, by `docs/format.md`, which is normative. No storage here (see `log`).

At most 8 elements fit a byte, so a reader never allocates more than a fixed multiple of the bytes that it was given:
under 512 bytes for one.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable

import numpy as np
import xxhash

from evergrad.codec.rice import Reader, WriteRice, varint, write_rice
from evergrad.codec.streams import (
    read_differences,
    read_indices,
    read_levels,
    write_differences,
    write_indices,
    write_levels,
)
from evergrad.errors import CorruptRecord, UnsupportedFormat
from evergrad.schema import STORAGE, Schema
from evergrad.update import Differences, Section, Steps, Update, Values, differences
from evergrad.update.digest import Array

FORMAT = 1
HEADER_BYTES = 64
_MAGIC = b"EG"
_HEADER = struct.Struct("<2sBBIQQQQQQQ")
_CHECKSUM = slice(8, 16)
_LINEAGE = 1  # the flag: the range of examples follows the header
_DTYPES = tuple(STORAGE)
_STEPS, _LEVELS, _VALUES, _DIFFERENCES = range(4)
_RUNS = 8  # a bit of the kind: indices are told as runs


def encode(update: Update, rice: WriteRice = write_rice) -> bytes:
    """The bytes of `update`, in the newest format. Sections without elements are left out.

    Args:
        rice: writes Rice codes; a faster writer of the same bytes may stand here.
    """
    sections = (_encode_section(section, rice) for section in update.sections if len(section.indices))
    return with_header(update, b"".join(sections))


def encoded_bytes(sections: Iterable[Section]) -> int:
    """How many bytes `sections` take in an update, its header aside."""
    return sum(len(_encode_section(section, write_rice)) for section in sections if len(section.indices))


def with_header(update: Update, body: bytes) -> bytes:
    """The bytes of an update whose sections are encoded already: `body` stands for `update.sections`."""
    flags, lineage = 0, b""
    if update.examples:
        flags, lineage = _LINEAGE, varint(update.examples.start) + varint(len(update.examples))
    head = bytearray(
        _HEADER.pack(
            _MAGIC, FORMAT, flags, update.version - update.base_version, 0, update.version, update.run, update.schema,
            update.digest_before, update.digest_after, update.newest_us,
        )
    )  # fmt: skip
    head += lineage
    head[_CHECKSUM] = _checksum(bytes(head), body)
    return bytes(head) + body


def decode(data: bytes, schema: Schema, name: str = "update") -> Update:
    """Reads an update of a model with `schema`; `name` says where the bytes came from.

    Raises:
        CorruptRecord: truncated, altered, or not an update of such a model.
        UnsupportedFormat: written by a newer release.
    """
    return _open(data, name, schema)[0]


def decode_header(data: bytes, name: str = "update") -> Update:
    """Reads an update without its sections, which stay empty: what it leads from and to.

    Raises:
        CorruptRecord, UnsupportedFormat: as `decode`.
    """
    return _open(data, name)[0]


def split(data: bytes, name: str = "update") -> tuple[Update, bytes]:
    """As `decode_header`, and the bytes of the sections: what `with_header` puts together."""
    header, reader = _open(data, name)
    return header, data[reader.offset :]


def _open(data: bytes, name: str, schema: Schema | None = None) -> tuple[Update, Reader]:
    """An update, with sections where the schema is given, and the reader that stands before or behind them."""
    flags, span, version, run, fingerprint, before, after, newest_us = _read_header(data, name)
    reader = Reader(data, HEADER_BYTES, name)
    examples = _read_examples(reader) if flags & _LINEAGE else None
    sections: list[Section] = []
    while schema is not None and reader.offset < len(data):
        sections.append(_decode_section(reader, schema.elements))
    update = Update(
        base_version=version - span, version=version, run=run, schema=fingerprint, digest_before=before,
        digest_after=after, newest_us=newest_us, sections=tuple(sections), examples=examples,
    )  # fmt: skip
    return update, reader


def _read_examples(reader: Reader) -> range:
    first, count = reader.varint(), reader.varint()
    if not count or first + count >= 1 << 63:
        raise reader.fail(f"it learned from {count} examples from {first} on, as no writer writes")
    return range(first, first + count)


def _read_header(data: bytes, name: str) -> tuple[int, ...]:
    if len(data) < HEADER_BYTES or data[:2] != _MAGIC:
        raise CorruptRecord(name, f"{len(data)} bytes that do not begin with an update's header")
    _magic, form, flags, span, _, *fields = _HEADER.unpack_from(data)
    if form > FORMAT:
        raise UnsupportedFormat(name, form, FORMAT)
    header = bytearray(data[:HEADER_BYTES])
    header[_CHECKSUM] = bytes(8)
    if data[_CHECKSUM] != _checksum(bytes(header), data[HEADER_BYTES:]):
        raise CorruptRecord(name, f"the checksum of its {len(data)} bytes is wrong (truncated or altered)")
    if form != FORMAT or flags & ~_LINEAGE:
        raise CorruptRecord(name, f"format {form} with flags {flags}, as no writer writes")
    if not 0 < span <= fields[0] < 1 << 63:
        raise CorruptRecord(name, f"version {fields[0]} from {span} versions before")
    return flags, span, *fields


def _checksum(header: bytes, body: bytes) -> bytes:
    state = xxhash.xxh64(header)
    state.update(body)
    return struct.pack("<Q", state.intdigest())


def compact(values: Values, old: Array, shift: int = 0) -> Section:
    """The section of `values` or of their differences from `old`, whichever takes fewer bytes.

    Args:
        old: what the elements were when the update applies, one per index.
        shift: as in `update.differences`; the differences are taken where it is not zero.
    """
    if not len(values.indices):
        return values
    told = differences(values, old, shift)
    return told if shift or len(write_differences(told.differences)) < values.values.nbytes else values


def _encode_section(section: Section, rice: WriteRice) -> bytes:
    match section:
        case Steps():
            kind, extra, payload = _STEPS, struct.pack("<f", section.scale), np.packbits(section.negative).tobytes()
            if section.levels is not None:
                kind, payload = _LEVELS, payload + write_levels(section.levels, rice)
        case Values():
            kind, extra, payload = _VALUES, b"", _little_endian(section.values).tobytes()
        case Differences():
            kind, extra, payload = _DIFFERENCES, bytes((section.shift,)), write_differences(section.differences, rice)
    runs, indices = write_indices(section.indices, rice)
    first = bytes(((_RUNS * runs | kind) << 4 | _DTYPES.index(section.dtype),))
    return first + varint(len(section.indices)) + extra + indices + payload


def _decode_section(reader: Reader, elements: int) -> Section:
    first = reader.take(1)[0]
    runs, kind, code = bool(first >> 4 & _RUNS), first >> 4 & ~_RUNS, first & 15
    if kind > _DIFFERENCES or code >= len(_DTYPES) or (kind <= _LEVELS and _DTYPES[code] != "F32"):
        raise reader.fail(f"a section of kind {kind} and dtype {code}")
    dtype, count = _DTYPES[code], reader.count()
    if kind <= _LEVELS:
        return _read_steps(reader, count, elements, runs=runs, levelled=kind == _LEVELS)
    stored, shift = STORAGE[dtype], 0
    if kind == _DIFFERENCES:
        shift = reader.take(1)[0]
        if shift >= 8 * stored.itemsize:
            raise reader.fail(f"differences in {dtype} that leave out {shift} bits")
    indices = read_indices(reader, count, elements, runs=runs)
    if kind == _DIFFERENCES:
        return Differences(indices, read_differences(reader, count), shift, dtype)
    data = reader.take(count * stored.itemsize)
    return Values(indices, np.frombuffer(data, dtype=stored.newbyteorder("<")).astype(stored), dtype)


def _read_steps(reader: Reader, count: int, elements: int, *, runs: bool, levelled: bool) -> Steps:
    (scale,) = struct.unpack("<f", reader.take(4))
    if not (math.isfinite(scale) and scale > 0):
        raise reader.fail(f"steps of scale {scale}")
    indices = read_indices(reader, count, elements, runs=runs)
    data = reader.take((count + 7) // 8)
    if count & 7 and data[-1] & 0xFF >> (count & 7):
        raise reader.fail("padding bits are not zero")
    negative = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=count).view(np.bool_)
    return Steps(indices, negative, scale, read_levels(reader, count) if levelled else None)


def _little_endian(array: Array) -> Array:
    return array.astype(array.dtype.newbyteorder("<"), copy=False)
