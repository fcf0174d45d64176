"""Snapshots to safetensors and back."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import safetensors

from evergrad.errors import CorruptRecord, SchemaMismatch
from evergrad.schema import STORAGE, Schema
from evergrad.update import Snapshot, State


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
