"""Snapshots to safetensors and back, in pieces: a whole model need not fit into memory twice.

Written and read here by the format's specification: readers fill a state, or only check its digest, from chunks as they
arrive, which a parser of whole files cannot.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from evergrad.errors import CorruptRecord
from evergrad.schema import RESERVED_NAME, STORAGE, Schema, TensorSpec
from evergrad.update import Snapshot, State
from evergrad.update.digest import MASK, Array, sum_mix

_HEADER_ROOM, _ROOM_PER_TENSOR = 1 << 16, 1 << 10
_PIECE_BYTES = 1 << 20


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotInfo:
    """What a snapshot's metadata says: fields as in `Snapshot`, and the digest that its elements must have."""

    version: int
    run: int
    newest_us: int
    digest: int


def snapshot_pieces(snapshot: Snapshot, **metadata: str) -> Iterator[bytes]:
    """A safetensors file with version, run, digest and schema fingerprint in its metadata, about a mebibyte at a time.

    Args:
        metadata: more of it, each under `evergrad.<name>`.
    """
    state = snapshot.state
    known = {
        "version": str(snapshot.version),
        "run": f"{snapshot.run:016x}",
        "newest_us": str(snapshot.newest_us),
        "digest": f"{state.digest:016x}",
        "schema": state.schema.fingerprint,
    }
    told = {"format": "pt"} | {f"evergrad.{key}": value for key, value in (known | metadata).items()}
    table: dict[str, Any] = {RESERVED_NAME: told}
    # Wider elements first: it keeps each tensor aligned, and readers may map the file.
    order = sorted(state.schema.tensors, key=lambda spec: -STORAGE[spec.dtype].itemsize)
    stop = 0
    for spec in order:
        start, stop = stop, stop + spec.size * STORAGE[spec.dtype].itemsize
        table[spec.name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": [start, stop]}
    header = msgspec.json.encode(table)
    header += b" " * (-len(header) % 8)
    yield struct.pack("<Q", len(header)) + header
    tensors = state.tensors()
    for spec in order:
        flat = tensors[spec.name].reshape(-1)
        step = _PIECE_BYTES // flat.itemsize
        for start in range(0, len(flat), step):
            piece = flat[start : start + step]
            yield piece.astype(piece.dtype.newbyteorder("<"), copy=False).tobytes()


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """The whole file of `snapshot_pieces`."""
    return b"".join(snapshot_pieces(snapshot))


class SnapshotReader:
    """Reads what `snapshot_pieces` wrote, against the expected `schema`, from chunks, each once and in order.

    Args:
        chunks: the file's bytes, cut anywhere.
        name: what to call it in errors.

    Raises:
        CorruptRecord: not such a file, or of another model.
    """

    def __init__(self, chunks: Iterable[bytes], schema: Schema, name: str = "snapshot") -> None:
        self._chunks, self._schema, self._name = iter(chunks), schema, name
        self._buffer = bytearray()
        (size,) = struct.unpack("<Q", self._take(8))
        if size > _HEADER_ROOM + _ROOM_PER_TENSOR * (len(schema.tensors) + 1):
            raise self._fail(f"a header of {size} bytes")
        header = self._take(size)
        try:
            table = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
            self.metadata = msgspec.json.decode(table.pop(RESERVED_NAME, b"{}"), type=dict[str, str])
            entries = {key: msgspec.json.decode(raw, type=_Entry) for key, raw in table.items()}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._fail(f"its header: {error}") from error
        if self.metadata.get("evergrad.schema") != schema.fingerprint:
            raise self._fail(f"it is of schema {self.metadata.get('evergrad.schema')}, not {schema.fingerprint}")
        self._order = self._checked(entries)
        self.info = SnapshotInfo(
            version=self._number("version", 10, below=1 << 63),
            run=self._number("run", 16),
            newest_us=self._number("newest_us", 10),
            digest=self._number("digest", 16),
        )

    def _fail(self, reason: str) -> CorruptRecord:
        return CorruptRecord(self._name, reason)

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            chunk = next(self._chunks, None)
            if chunk is None:
                raise self._fail(f"it ends {count - len(self._buffer)} bytes early")
            self._buffer += chunk
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _checked(self, entries: dict[str, _Entry]) -> list[TensorSpec]:
        """The tensors in the order of their bytes, which follow each other without gaps."""
        missing = self._schema.by_name.keys() ^ entries.keys()
        if missing:
            raise self._fail(f"tensor {min(missing)!r} is missing, or does not belong there")
        order = sorted(self._schema.tensors, key=lambda spec: entries[spec.name].data_offsets)
        stop = 0
        for spec in order:
            entry, start = entries[spec.name], stop
            stop = start + spec.size * STORAGE[spec.dtype].itemsize
            if (entry.dtype, tuple(entry.shape)) != (spec.dtype, spec.shape):
                raise self._fail(f"tensor {spec.name!r} is {entry.dtype} {entry.shape}, it should be {spec}")
            if entry.data_offsets != (start, stop):
                raise self._fail(f"tensor {spec.name!r} lies at {entry.data_offsets}, it should at {(start, stop)}")
        return order

    def _number(self, key: str, base: int, below: int = 1 << 64) -> int:
        text = self.metadata.get(f"evergrad.{key}", "")
        fits = re.fullmatch("[0-9]{1,20}" if base == 10 else "[0-9a-f]{16}", text)
        if not fits or int(text, base) >= below:
            raise self._fail(f"evergrad.{key} is {text[:40]!r}")
        return int(text, base)

    def _pieces(self) -> Iterator[tuple[int, int, Array]]:
        """Number of a group, position in its flat array, and the values from there on; then the end of the file."""
        group_of = {group.dtype: number for number, group in enumerate(self._schema.groups)}
        for spec in self._order:
            number = group_of[spec.dtype]
            stored, position = STORAGE[spec.dtype], spec.offset - self._schema.groups[number].start
            rest = spec.size
            while rest:
                count = min(rest, _PIECE_BYTES // stored.itemsize)
                piece: npt.NDArray[Any] = np.frombuffer(self._take(count * stored.itemsize), dtype=stored)
                yield number, position, piece if sys.byteorder == "little" else piece.byteswap()
                position, rest = position + count, rest - count
        if self._buffer or any(self._chunks):
            raise self._fail("bytes are left over")

    def check(self) -> SnapshotInfo:
        """Reads to the end and compares the digest; keeps nothing.

        Raises:
            CorruptRecord: truncated, or its elements have another digest.
        """
        total = 0
        for number, position, values in self._pieces():
            total += sum_mix(self._schema.groups[number].start + position, values)
        self._compare(total & MASK)
        return self.info

    def fill(self, arrays: tuple[Array, ...]) -> SnapshotInfo:
        """Reads to the end, into one flat array per group of the schema, and compares the digest.

        Raises:
            CorruptRecord: truncated, or its elements have another digest; then the arrays hold nothing of use.
        """
        total = 0
        for number, position, values in self._pieces():
            arrays[number][position : position + len(values)] = values
            total += sum_mix(self._schema.groups[number].start + position, values)
        self._compare(total & MASK)
        return self.info

    def _compare(self, found: int) -> None:
        if found != self.info.digest:
            raise self._fail(f"its digest is {found:016x}, its metadata says {self.info.digest:016x}")


def read_snapshot(chunks: Iterable[bytes], schema: Schema, name: str = "snapshot") -> Snapshot:
    """A snapshot from its file's bytes, in memory of its own.

    Raises:
        CorruptRecord: not such a file, of another model, or its digest is wrong.
    """
    reader = SnapshotReader(chunks, schema, name)
    # The table may claim more than the file holds; memory that nobody writes to is not taken.
    try:
        arrays = tuple(np.empty(group.size, dtype=group.storage) for group in schema.groups)
    except MemoryError as error:
        raise CorruptRecord(name, f"it claims {schema.nbytes} bytes, more than this machine has") from error
    info = reader.fill(arrays)
    state = State(schema, arrays, info.digest)
    return Snapshot(version=info.version, run=info.run, newest_us=info.newest_us, state=state)


def decode_snapshot(data: bytes, schema: Schema, name: str = "snapshot") -> Snapshot:
    """`read_snapshot` of a file that is in memory whole."""
    return read_snapshot([data], schema, name)
