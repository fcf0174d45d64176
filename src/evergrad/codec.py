"""Updates to bytes and back; snapshots to safetensors and back. No storage here (see `log`).

An update, format 1, all numbers little-endian:

    0   4s   magic "EGup"
    4   u8   format, 1
    5   u8   number of sections
    6   u16  zero
    8   u64  checksum: XXH3-64 of all other bytes of the update (the header with this field zero)
    16  u64  base version         40  u64  digest before
    24  u64  version              48  u64  digest after
    32  u64  run                  56  u64  arrival of the newest example, microseconds since 1970; 0: unknown
    64  u64  schema: first 64 bits of its fingerprint
    72       sections, one after another:

    u8 kind (0 steps, 1 values) · u8 dtype · u8 Rice parameter r · u8 zero · f32 scale (steps; 0.0 otherwise)
    u32 count · u32 bytes of the unary stream · unary stream · remainders · payload

Indices are strictly ascending; gap = index - previous index - 1 (the first: index) is Rice-coded: `gap >> r` zeros and
a one in the unary stream, the r low bits in the remainders. Bits fill each byte from its high end; each stream is
padded with zeros to a byte. The payload of steps is one sign bit an element, of values the elements themselves.

Rice codes: R. F. Rice, JPL Publication 79-22, 1979. At most 8 elements fit a byte, so a reader never allocates more
than a fixed multiple of the bytes that it was given.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import safetensors
import xxhash

from evergrad.errors import CorruptRecord, SchemaMismatch, UnsupportedFormat
from evergrad.schema import STORAGE, Schema
from evergrad.update import Section, Snapshot, State, Steps, Update, Values

FORMAT = 1
_MAGIC = b"EGup"
_HEADER = struct.Struct("<4sBBHQQQQQQQQ")
_SECTION = struct.Struct("<BBBBfII")
_CHECKSUM = slice(8, 16)
_DTYPES = tuple(STORAGE)
_STEPS, _VALUES = 0, 1
_MAX_RICE = 40


def encode(update: Update) -> bytes:
    """The bytes of `update`, in the newest format."""
    body = b"".join(_encode_section(section) for section in update.sections)
    header = bytearray(
        _HEADER.pack(
            _MAGIC, FORMAT, len(update.sections), 0, 0, update.base_version, update.version, update.run,
            update.digest_before, update.digest_after, update.newest_us, update.schema,
        )
    )  # fmt: skip
    header[_CHECKSUM] = _checksum(bytes(header), body)
    return bytes(header) + body


def decode(data: bytes, schema: Schema, name: str = "update") -> Update:
    """Reads an update of a model with `schema`; `name` says where the bytes came from.

    Raises:
        CorruptRecord: truncated, altered, or not an update of such a model.
        UnsupportedFormat: written by a newer release.
    """
    if len(data) < _HEADER.size or data[:4] != _MAGIC:
        raise CorruptRecord(name, f"{len(data)} bytes that do not begin with an update's header")
    fields = _HEADER.unpack_from(data)
    if fields[1] > FORMAT:
        raise UnsupportedFormat(name, fields[1], FORMAT)
    header = bytearray(data[: _HEADER.size])
    header[_CHECKSUM] = bytes(8)
    if data[_CHECKSUM] != _checksum(bytes(header), data[_HEADER.size :]):
        raise CorruptRecord(name, f"the checksum of its {len(data)} bytes is wrong (truncated or altered)")
    if fields[1] != FORMAT or fields[3] != 0:
        raise CorruptRecord(name, "reserved bytes are not zero")
    reader = _Reader(data, _HEADER.size, name)
    sections = tuple(_decode_section(reader, schema) for _ in range(fields[2]))
    if reader.offset != len(data):
        raise CorruptRecord(name, f"{len(data) - reader.offset} bytes are left over")
    base, version, run, before, after, newest, fingerprint = fields[5:]
    return Update(
        base_version=base, version=version, run=run, schema=fingerprint, digest_before=before, digest_after=after,
        newest_us=newest, sections=sections,
    )  # fmt: skip


def _checksum(header: bytes, body: bytes) -> bytes:
    state = xxhash.xxh3_64(header)
    state.update(body)
    return struct.pack("<Q", state.intdigest())


class _Reader:
    """Takes bytes from the front, never more than there are."""

    def __init__(self, data: bytes, offset: int, name: str) -> None:
        self.data, self.offset, self.name = data, offset, name

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.offset:
            raise CorruptRecord(self.name, f"a section ends {count - len(self.data) + self.offset} bytes early")
        self.offset += count
        return self.data[self.offset - count : self.offset]


def _encode_section(section: Section) -> bytes:
    indices = section.indices
    gaps = np.diff(indices, prepend=-1) - 1
    rice, unary, remainders = _rice_encode(gaps)
    if isinstance(section, Steps):
        kind, dtype, scale = _STEPS, "F32", section.scale
        payload = np.packbits(section.negative).tobytes()
    else:
        kind, dtype, scale = _VALUES, section.dtype, 0.0
        payload = _little_endian(section.values).tobytes()
    header = _SECTION.pack(kind, _DTYPES.index(dtype), rice, 0, scale, len(indices), len(unary))
    return header + unary + remainders + payload


def _decode_section(reader: _Reader, schema: Schema) -> Section:
    kind, dtype_code, rice, zero, scale, count, unary_bytes = _SECTION.unpack(reader.take(_SECTION.size))
    if kind not in (_STEPS, _VALUES) or dtype_code >= len(_DTYPES) or rice > _MAX_RICE or zero:
        raise CorruptRecord(reader.name, "a section header holds values that no writer writes")
    dtype = _DTYPES[dtype_code]
    unary = reader.take(unary_bytes)
    if count > 8 * unary_bytes:
        raise CorruptRecord(reader.name, f"{count} indices cannot stand in {unary_bytes} bytes")
    remainders = reader.take((count * rice + 7) // 8)
    indices = _rice_decode(reader.name, rice, unary, remainders, count, schema.elements)
    if kind == _VALUES:
        if scale != 0:
            raise CorruptRecord(reader.name, f"values with a scale of {scale}")
        stored = STORAGE[dtype].newbyteorder("<")
        values = np.frombuffer(reader.take(count * stored.itemsize), dtype=stored).astype(STORAGE[dtype])
        if dtype == "BOOL" and values.max(initial=0) > 1:
            raise CorruptRecord(reader.name, "a boolean that is neither 0 nor 1")
        return Values(indices, values, dtype)
    if not (math.isfinite(scale) and scale > 0) or dtype != "F32":
        raise CorruptRecord(reader.name, f"steps of scale {scale} in {dtype}")
    negative = _unpack(reader.name, reader.take((count + 7) // 8), count)
    return Steps(indices, negative.astype(np.bool_), scale)


def _rice_encode(gaps: npt.NDArray[np.int64]) -> tuple[int, bytes, bytes]:
    """The best Rice parameter by the mean gap, the unary stream, and the remainders."""
    if not len(gaps):
        return 0, b"", b""
    # The parameter that a geometric distribution of this mean asks for (Kiely, JPL IPN 42-159, 2004).
    mean = float(gaps.mean())
    rice = max(0, math.ceil(math.log2((mean + 1) * math.log(2)))) if mean else 0
    ends = np.cumsum((gaps >> rice) + 1) - 1
    unary = np.zeros(int(ends[-1]) + 1, dtype=np.uint8)
    unary[ends] = 1
    low = (gaps[:, None] >> np.arange(rice - 1, -1, -1)) & 1
    return rice, np.packbits(unary).tobytes(), np.packbits(low.astype(np.uint8)).tobytes()


def _rice_decode(
    name: str, rice: int, unary: bytes, remainders: bytes, count: int, elements: int
) -> npt.NDArray[np.int64]:
    bits = np.unpackbits(np.frombuffer(unary, dtype=np.uint8))
    ends = np.flatnonzero(bits)
    used = int(ends[-1]) + 1 if len(ends) else 0
    if len(ends) != count or (used + 7) // 8 != len(unary):
        raise CorruptRecord(name, f"the unary stream holds {len(ends)} indices, the header says {count}")
    high = np.diff(ends, prepend=-1) - 1
    if count and int(high.max()) > elements >> rice:
        raise CorruptRecord(name, "an index lies outside the model")
    low_bits = _unpack(name, remainders, count * rice).reshape(count, rice).astype(np.int64)
    gaps = (high << rice) + low_bits @ (np.int64(1) << np.arange(rice - 1, -1, -1, dtype=np.int64))
    if float(gaps.sum(dtype=np.float64)) + count > elements:
        raise CorruptRecord(name, "an index lies outside the model")
    indices: npt.NDArray[np.int64] = np.cumsum(gaps + 1) - 1
    return indices


def _unpack(name: str, data: bytes, count: int) -> npt.NDArray[np.uint8]:
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    if bits[count:].any():
        raise CorruptRecord(name, "padding bits are not zero")
    return bits[:count]


def _little_endian(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """A safetensors file with version, run, digest and schema fingerprint in its metadata.

    Written here by the format's specification (length, JSON table, bytes), for the library's numpy writer knows no
    bfloat16; read back, and validated, by the library.
    """
    state = snapshot.state
    metadata = {
        "format": "pt",
        "evergrad.version": str(snapshot.version),
        "evergrad.run": f"{snapshot.run:016x}",
        "evergrad.newest_us": str(snapshot.newest_us),
        "evergrad.digest": f"{state.digest:016x}",
        "evergrad.schema": state.schema.fingerprint,
    }
    table: dict[str, Any] = {"__metadata__": metadata}
    parts: list[bytes] = []
    stop = 0
    tensors = state.tensors()
    # Wider elements first: it keeps each tensor aligned, and readers may map the file.
    for spec in sorted(state.schema.tensors, key=lambda t: -STORAGE[t.dtype].itemsize):
        parts.append(_little_endian(tensors[spec.name]).tobytes())
        start, stop = stop, stop + len(parts[-1])
        table[spec.name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": [start, stop]}
    header = msgspec.json.encode(table)
    header += b" " * (-len(header) % 8)
    return b"".join([struct.pack("<Q", len(header)), header, *parts])


def decode_snapshot(data: bytes, schema: Schema, name: str = "snapshot") -> Snapshot:
    """Reads what `encode_snapshot` wrote, against the expected `schema`, and recomputes its digest.

    Raises:
        CorruptRecord: not such a file, of another model, or its digest is wrong.
    """
    try:
        views = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
        header = msgspec.json.decode(data[8 : 8 + struct.unpack_from("<Q", data)[0]])
        metadata = msgspec.convert(header["__metadata__"], dict[str, str])
        if metadata["evergrad.schema"] != schema.fingerprint:
            raise CorruptRecord(name, f"it is of schema {metadata['evergrad.schema']}, not {schema.fingerprint}")
        state = State.from_tensors(schema, {key: _array(schema, key, view) for key, view in views.items()})
        version, newest_us = (_number(metadata, key, 10) for key in ("version", "newest_us"))
        run, expected = (_number(metadata, key, 16) for key in ("run", "digest"))
    except (safetensors.SafetensorError, SchemaMismatch, msgspec.MsgspecError, ValueError, KeyError) as error:
        raise CorruptRecord(name, f"{type(error).__name__}: {error}") from error
    if state.digest != expected:
        raise CorruptRecord(name, f"its digest is {state.digest:016x}, its metadata says {expected:016x}")
    return Snapshot(version=version, run=run, newest_us=newest_us, state=state)


def _array(schema: Schema, name: str, view: Mapping[str, Any]) -> npt.NDArray[Any]:
    spec = schema.by_name.get(name)
    if spec is None or view["dtype"] != spec.dtype:
        raise SchemaMismatch(name, str(spec or "no such tensor"), f"{view['dtype']} {view['shape']}")
    stored = STORAGE[spec.dtype]
    return np.frombuffer(view["data"], dtype=stored.newbyteorder("<")).astype(stored).reshape(view["shape"])


def _number(metadata: Mapping[str, str], key: str, base: int) -> int:
    text = metadata[f"evergrad.{key}"]
    if not re.fullmatch("[0-9]{1,19}" if base == 10 else "[0-9a-f]{16}", text):
        raise ValueError(f"evergrad.{key} is {text[:40]!r}")
    return int(text, base)
