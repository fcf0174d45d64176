"""The exact bytes of format 1. They never change: a release that cannot read them breaks every log out there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evergrad.codec import decode, decode_header, decode_snapshot, encode, encode_snapshot
from evergrad.schema import STORAGE, Schema
from evergrad.update import Differences, Snapshot, State, Steps, Values, digest, mix
from tests.builders import copy_of, equal_states, steps, update_of, values

FOLDER = Path(__file__).parent / "format-1"
SCHEMA = Schema([("w", "F32", (2, 3)), ("n", "I64", ()), ("h", "BF16", (2,)), ("b", "F32", (1,))], {"tied": "w"})
SCHEMA_JSON = (
    b'{"tensors":[{"name":"w","dtype":"F32","shape":[2,3]},{"name":"b","dtype":"F32","shape":[1]},'
    b'{"name":"n","dtype":"I64","shape":[]},{"name":"h","dtype":"BF16","shape":[2]}],"aliases":{"tied":"w"}}'
)
FINGERPRINT = "816fd966f0d94502daee68392db34efa"
STATE = State(
    SCHEMA,
    [
        np.array([0.0, -0.0, 1.0, -2.5, 1e-45, 3.4e38, 0.1], "f4"),
        np.array([-3], "i8"),
        np.array([0x3F80, 0xC000], "u2"),
    ],
)
DIGEST_BEFORE, DIGEST_AFTER = 0x3A56AA29D53C676F, 0x1D96EF13BB91BA07
SECTIONS = (
    steps([0, 3, 6], 0.125, [False, True, True]),
    Steps(np.array([0, 2]), np.array([True, False]), 0.5, np.array([3, 0], "u1")),
    Differences(np.array([0, 1, 2, 3, 5]), np.array([5, -3, 0, 1, -2]), 4, "F32"),
    values([7], [4], "I64"),
    values([8], [0x4040], "BF16"),
)
UPDATE = update_of(STATE, 41, *SECTIONS, newest_us=1_700_000_000_123_456)
SNAPSHOT = Snapshot(version=41, run=UPDATE.run, newest_us=1_700_000_000_000_001, state=STATE)
UPDATE_HEX = (
    "4547"  # magic
    "01"  # format
    "00"  # flags
    "01000000"  # spans one version
    "271a038f58222b63"  # checksum
    "2a00000000000000"  # version
    "efcdab8967452301"  # run
    "0245d9f066d96f81"  # schema
    "6f673cd529aa563a"  # digest before
    "07ba91bb13ef961d"  # digest after
    "40222018240a0600"  # newest example
    "01"  # steps in F32
    "03"  # 3 of them
    "0000003e"  # of 0.125
    "0248"  # parameter 000000; gaps 0 2 2: 1 001 001
    "60"  # signs 0 1 1
    "11"  # steps with levels in F32
    "02"  # 2 of them
    "0000003f"  # of 0.5
    "0280"  # parameter 000000; gaps 0 1: 1 01
    "80"  # signs 1 0
    "00"  # usually level 0
    "0418"  # parameter 000001; levels 3 0 as 6 0: 0 0, then 0001 1
    "31"  # differences in F32
    "05"  # 5 of them
    "04"  # without the lowest 4 bits
    "03d0"  # parameter 000000; gaps 0 0 0 0 1: 1 1 1 1 01
    "02"  # 5 -3 0 1 -2 as 10 5 0 2 3: they have 4 3 0 2 2 bits, typically 2
    "002470"  # parameter 000000; 2 1 -2 0 0 as 4 2 3 0 0: 00001 001 0001 1 1
    "4a"  # all bits but the highest: 010 01 - 0 1 0
    "24"  # values in I64
    "01"  # 1 of them
    "0b40"  # parameter 000010; index 7: 11 01
    "0400000000000000"  # 4
    "23"  # values in BF16
    "01"  # 1 of them
    "0820"  # parameter 000010; index 8: 00 001
    "4040"  # 3.0
)
LINEAGE = replace(UPDATE, examples=range(960, 968))
LINEAGE_HEX = (
    UPDATE_HEX[:6] + "01"  # flags: lineage
    "01000000"  # spans one version
    "5889aaffc6400190"  # checksum
     + UPDATE_HEX[32:128] + "c007"  # the first example, 960: 1000000, then 0000111
    "08"  # 8 of them
     + UPDATE_HEX[128:]
)
SNAPSHOT_TABLE = (
    b'{"__metadata__":{"format":"pt","evergrad.version":"41","evergrad.run":"0123456789abcdef","evergrad.n'
    b'ewest_us":"1700000000000001","evergrad.digest":"3a56aa29d53c676f","evergrad.schema":"816fd966f0d9450'
    b'2daee68392db34efa"},"n":{"dtype":"I64","shape":[],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":['
    b'2,3],"data_offsets":[8,32]},"b":{"dtype":"F32","shape":[1],"data_offsets":[32,36]},"h":{"dtype":"BF1'
    b'6","shape":[2],"data_offsets":[36,40]}} '
)
SNAPSHOT_HEX = (
    "b801000000000000"  # length of the table
    + SNAPSHOT_TABLE.hex()
    + "fdffffffffffffff"  # n
    "00000000000000800000803f000020c0010000009ec97f7f"  # w
    "cdcccc3d"  # b
    "803f00c0"  # h
)


def test_schema_json_and_fingerprint() -> None:
    assert SCHEMA.to_json() == SCHEMA_JSON
    assert SCHEMA.fingerprint == FINGERPRINT
    assert Schema.from_json(SCHEMA_JSON) == SCHEMA


def test_digests() -> None:
    assert digest(SCHEMA, STATE.arrays) == DIGEST_BEFORE
    assert STATE.resolve(SECTIONS).digest == DIGEST_AFTER


@pytest.mark.parametrize(
    ("index", "bits", "expected"),
    [
        (0, 0, 0),
        (1, 0, 0xE220A8397B1DCDAF),  # the published outputs of SplitMix64 from seed 0
        (2, 0, 0x6E789E6AA1B965F4),
        (3, 0, 0x06C45D188009454F),
        (0, 0x9E3779B97F4A7C15, 0xE220A8397B1DCDAF),
    ],
)
def test_mix(index: int, bits: int, expected: int) -> None:
    found = mix(np.array([index], np.uint64), np.array([bits], np.uint64))
    assert int(found[0]) == expected


def test_update_is_written_and_read_as_these_bytes() -> None:
    assert encode(UPDATE).hex() == UPDATE_HEX
    found = decode(bytes.fromhex(UPDATE_HEX), SCHEMA)
    assert encode(found) == bytes.fromhex(UPDATE_HEX)
    assert decode_header(bytes.fromhex(UPDATE_HEX)).digest_after == DIGEST_AFTER
    moved = copy_of(STATE)
    moved.commit(moved.check(found, 41))
    assert moved.digest == DIGEST_AFTER
    assert [array.tobytes().hex() for array in moved.arrays] == [
        "bfff77c03f0000800000c03fffff27c00100000070c97f7fccccccbc", "0400000000000000", "404000c0",
    ]  # fmt: skip


def test_update_with_lineage_is_written_and_read_as_these_bytes() -> None:
    assert encode(LINEAGE).hex() == LINEAGE_HEX
    found = decode(bytes.fromhex(LINEAGE_HEX), SCHEMA)
    assert found.examples == decode_header(bytes.fromhex(LINEAGE_HEX)).examples == range(960, 968)
    assert encode(replace(found, examples=None)).hex() == UPDATE_HEX


def test_snapshot_is_written_and_read_as_these_bytes() -> None:
    assert encode_snapshot(SNAPSHOT).hex() == SNAPSHOT_HEX
    found = decode_snapshot(bytes.fromhex(SNAPSHOT_HEX), SCHEMA)
    assert (found.version, found.run, found.newest_us) == (41, 0x0123456789ABCDEF, 1_700_000_000_000_001)
    assert equal_states(found.state, STATE)


def files() -> tuple[Schema, Snapshot, list[tuple[bytes, int]]]:
    """The schema, the snapshot and the updates of the folder, in order, each with the digest after it."""
    schema = Schema.from_json((FOLDER / "schema.json").read_bytes())
    snapshot = decode_snapshot((FOLDER / "snapshot.safetensors").read_bytes(), schema)
    named = json.loads((FOLDER / "digests.json").read_text())
    return schema, snapshot, [((FOLDER / name).read_bytes(), int(digits, 16)) for name, digits in named]


def test_files_lead_from_the_snapshot_to_each_digest_in_turn() -> None:
    _, snapshot, updates = files()
    state, version = snapshot.state, snapshot.version
    for data, expected in updates:
        update = decode(data, state.schema)
        state.commit(state.check(update, version))
        assert state.digest == expected == digest(state.schema, state.arrays)
        version = update.version
    assert (snapshot.version, version) == (25, 49)


def test_files_are_what_the_writer_writes_today() -> None:
    schema, snapshot, updates = files()
    assert schema.to_json() == (FOLDER / "schema.json").read_bytes()
    assert encode_snapshot(snapshot) == (FOLDER / "snapshot.safetensors").read_bytes()
    for data, _ in updates:
        assert encode(decode(data, schema)) == data


def test_files_hold_every_kind_every_dtype_a_fold_and_lineage() -> None:
    schema, _, updates = files()
    found = [decode(data, schema) for data, _ in updates]
    told = {(type(part), part.dtype) for update in found for part in update.sections}
    assert {(kind, dtype) for kind in (Values, Differences) for dtype in STORAGE} | {(Steps, "F32")} == told
    assert any(part.levels is not None for update in found for part in update.sections if isinstance(part, Steps))
    assert any(part.shift for update in found for part in update.sections if isinstance(part, Differences))
    assert {update.version - update.base_version for update in found} == {1, 16}
    assert [update.examples for update in found] == [None] * (len(found) - 1) + [range(1_000_000, 1_000_128)]
    assert sorted(path.name for path in FOLDER.glob("*.eg")) == sorted(
        name for name, _ in json.loads((FOLDER / "digests.json").read_text())
    )
