"""Arbitrary updates, tables of tensors and snapshots, guided by coverage: `make fuzz RUNS=1000000`.

The first byte of an input says what the others are. The checksum is written into an update before it is read, so that
only deeper rules can refuse it. Anything but a result or one of our own named errors is a finding, and so is a weight
that changed. Takes the options of libFuzzer, and starts from the golden files.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import tempfile
import warnings
from pathlib import Path

import atheris
import numpy as np
import xxhash

with atheris.instrument_imports(include=["evergrad.codec", "evergrad.update", "evergrad.schema"]):
    from evergrad.codec import decode, decode_header, decode_snapshot, encode_snapshot
    from evergrad.errors import BaseMismatch, CorruptRecord, DigestMismatch, UnsupportedFormat
    from evergrad.schema import Schema
    from evergrad.update import Snapshot, State, digest

GOLDEN = Path(__file__).parents[1] / "golden" / "format-1"
SCHEMA_JSON = (GOLDEN / "schema.json").read_bytes()
SCHEMA = Schema.from_json(SCHEMA_JSON)
STATE = decode_snapshot((GOLDEN / "snapshot.safetensors").read_bytes(), SCHEMA).state
VERSION = 25
BEFORE = [array.tobytes() for array in STATE.arrays]
TINY = Schema([("w", "F32", (2, 3)), ("on", "BOOL", (2,)), ("none", "F16", (0,))])
TINY_STATE = State(TINY, [np.arange(6, dtype="f4"), np.array([1, 0], "u1"), np.array([], "f2")])


def try_update(data: bytes) -> None:
    if len(data) >= 64:
        clean = data[:8] + bytes(8) + data[16:]
        data = data[:8] + struct.pack("<Q", xxhash.xxh64_intdigest(clean)) + data[16:]
    try:
        update = decode(data, SCHEMA)
    except (CorruptRecord, UnsupportedFormat):
        return
    header = decode_header(data)
    assert (header.version, header.examples) == (update.version, update.examples)
    with contextlib.suppress(BaseMismatch, DigestMismatch, CorruptRecord):
        STATE.check(update, VERSION)
    try:
        change = STATE.resolve(update.sections)
    except CorruptRecord:
        change = None
    assert [array.tobytes() for array in STATE.arrays] == BEFORE, "a weight changed"
    if change is not None:
        moved = State(SCHEMA, [array.copy() for array in STATE.arrays], STATE.digest)
        moved.commit(change)
        assert moved.digest == digest(SCHEMA, moved.arrays), "a wrong digest"


def try_schema(data: bytes) -> None:
    try:
        schema = Schema.from_json(data)
    except CorruptRecord:
        return
    assert Schema.from_json(schema.to_json()) == schema


def try_snapshot(data: bytes) -> None:
    try:
        found = decode_snapshot(data, TINY)
    except CorruptRecord:
        return
    assert found.state.digest == digest(TINY, found.state.arrays)


def try_one(data: bytes) -> None:
    if data:
        (try_update, try_update, try_schema, try_snapshot)[data[0] & 3](data[1:])


def write_seeds(folder: Path) -> None:
    for path in GOLDEN.glob("*.eg"):
        (folder / path.name).write_bytes(b"\0" + path.read_bytes())
    (folder / "schema").write_bytes(b"\2" + SCHEMA_JSON)
    snapshot = Snapshot(version=1, run=2, newest_us=3, state=TINY_STATE)
    (folder / "snapshot").write_bytes(b"\3" + encode_snapshot(snapshot))


def main() -> int:
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()  # libFuzzer never returns: the parent takes the folder away
        if not child:
            write_seeds(Path(folder))
            atheris.Setup([*sys.argv, "-max_len=800", "-timeout=20", "-rss_limit_mb=4096", folder], try_one)
            atheris.Fuzz()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
