"""The exact bytes of format 1. They never change: a release that cannot read them breaks every log out there."""

from __future__ import annotations

import numpy as np
import pytest

from evergrad.codec import decode, decode_snapshot, encode, encode_snapshot
from evergrad.schema import Schema
from evergrad.update import Snapshot, State, digest, mix
from tests.builders import copy_of, equal_states, steps, update_of, values

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
DIGEST_BEFORE, DIGEST_AFTER = 0x3A56AA29D53C676F, 0x5056146B73C2BE44
SECTIONS = steps([0, 3, 6], 0.125, [False, True, True]), values([7], [4], "I64"), values([8], [0x4040], "BF16")


UPDATE = update_of(STATE, 41, *SECTIONS, newest_us=1_700_000_000_123_456)
SNAPSHOT = Snapshot(version=41, run=UPDATE.run, newest_us=1_700_000_000_000_001, state=STATE)
UPDATE_HEX = (
    "4547757001030000"  # magic, format, sections, zero
    "cf2c37e61e70994a"  # checksum
    "2900000000000000"  # base version
    "2a00000000000000"  # version
    "efcdab8967452301"  # run
    "6f673cd529aa563a"  # digest before
    "44bec2736b145650"  # digest after
    "40222018240a0600"  # newest example
    "0245d9f066d96f81"  # schema
    "000101000000003e0300000001000000a80060"  # 3 steps of 0.125 in F32
    "0104030000000000010000000100000080e00400000000000000"  # 1 value in I64
    "0103030000000000010000000100000040004040"  # 1 value in BF16
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
    moved = copy_of(STATE)
    moved.commit(moved.check(found, 41))
    assert moved.digest == DIGEST_AFTER
    assert moved.arrays[0].tobytes().hex() == "0000003e000000800000803f000028c0010000009ec97f7fccccccbc"


def test_snapshot_is_written_and_read_as_these_bytes() -> None:
    assert encode_snapshot(SNAPSHOT).hex() == SNAPSHOT_HEX
    found = decode_snapshot(bytes.fromhex(SNAPSHOT_HEX), SCHEMA)
    assert (found.version, found.run, found.newest_us) == (41, 0x0123456789ABCDEF, 1_700_000_000_000_001)
    assert equal_states(found.state, STATE)
