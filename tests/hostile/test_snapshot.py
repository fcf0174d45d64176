"""One malformed snapshot per rejection rule of `codec.decode_snapshot`, and arbitrary ones: nothing else escapes."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergrad.codec import decode_snapshot, encode_snapshot
from evergrad.errors import CorruptRecord
from evergrad.schema import Schema
from evergrad.update import State
from tests.builders import RUN, equal_states, new_state, small_schema, snapshot_of

SCHEMA = small_schema()
STATE = new_state(SCHEMA)
GOOD = encode_snapshot(snapshot_of(STATE, 7))
Table = dict[str, Any]


def rewritten(change: Callable[[Table], object], extra: bytes = b"") -> bytes:
    """The good snapshot with another header table, and `extra` behind its last tensor."""
    (length,) = struct.unpack_from("<Q", GOOD)
    table = json.loads(GOOD[8 : 8 + length])
    change(table)
    header = json.dumps(table).encode()
    return struct.pack("<Q", len(header)) + header + GOOD[8 + length :] + extra


def metadata(**fields: str | None) -> bytes:
    """The good snapshot with other metadata; None takes a field out."""

    def change(table: Table) -> None:
        found = table["__metadata__"] | {f"evergrad.{key}": text for key, text in fields.items()}
        table["__metadata__"] = {key: text for key, text in found.items() if text is not None}

    return rewritten(change)


def tensor(name: str, **fields: object) -> bytes:
    return rewritten(lambda table: table[name].update(fields))


def renamed(name: str, new: str) -> bytes:
    return rewritten(lambda table: table.update({new: table.pop(name)}))


def with_further_tensor() -> bytes:
    end = len(GOOD) - 8 - struct.unpack_from("<Q", GOOD)[0]
    more = {"dtype": "U8", "shape": [1], "data_offsets": [end, end + 1]}
    return rewritten(lambda table: table.update(more=more), b"\0")


def moved(by: int, *names: str) -> bytes:
    """The good snapshot, where its table has some tensors lie further on."""

    def change(table: Table) -> None:
        for name in names:
            table[name]["data_offsets"] = [at + by for at in table[name]["data_offsets"]]

    return rewritten(change)


def framed(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


GOOD_TABLE_TOO_LONG = framed(GOOD[8 : 8 + struct.unpack_from("<Q", GOOD)[0]] + b" " * (1 << 17))
REJECTED = {
    "empty": (b"", "ends 8 bytes early"),
    "header length cut": (GOOD[:7], "ends 1 bytes early"),
    "header longer than the file": (struct.pack("<Q", 1 << 62) + GOOD[8:], "a header of"),
    "header is no json": (GOOD[:8] + b"x" + GOOD[9:], "its header"),
    "last byte missing": (GOOD[:-1], "ends 1 bytes early"),
    "bytes left over": (GOOD + b"\0", "left over"),
    "no metadata": (rewritten(lambda table: table.pop("__metadata__")), "it is of schema None"),
    "another schema": (metadata(schema="0" * 32), "it is of schema 000"),
    "no schema": (metadata(schema=None), "it is of schema None"),
    "no version": (metadata(version=None), "evergrad.version"),
    "version below zero": (metadata(version="-1"), "evergrad.version is '-1'"),
    "version with a sign": (metadata(version="+7"), "evergrad.version is '+7'"),
    "version in other digits": (metadata(version="٧"), "evergrad.version is"),  # noqa: RUF001 - the digit is the test
    "version with a gap": (metadata(version="1_0"), "evergrad.version is '1_0'"),
    "version of a thousand digits": (metadata(version="1" * 1000), "evergrad.version is"),
    "no time": (metadata(newest_us=None), "evergrad.newest_us"),
    "time of a thousand digits": (metadata(newest_us="1" * 1000), "evergrad.newest_us is"),
    "no run": (metadata(run=None), "evergrad.run"),
    "run of another length": (metadata(run="1"), "evergrad.run is '1'"),
    "no digest": (metadata(digest=None), "evergrad.digest"),
    "digest that is no number": (metadata(digest="0x" + "1" * 14), "evergrad.digest is"),
    "another digest": (metadata(digest="0" * 16), "its digest is"),
    "tensor missing": (rewritten(lambda table: table.pop("on")), "tensor 'on' is missing"),
    "tensor of another name": (renamed("on", "off"), "tensor 'off' is missing, or does not belong"),
    "a further tensor": (with_further_tensor(), "tensor 'more' is missing, or does not belong"),
    "unknown dtype": (tensor("on", dtype="C7"), "it should be BOOL [3]"),
    "dtype without storage": (tensor("on", dtype="F8_E4M3"), "it should be BOOL [3]"),
    "dtype of the same storage": (tensor("on", dtype="U8"), "it should be BOOL [3]"),
    "bfloat16 as integers": (tensor("h", dtype="U16"), "it should be BF16 [2, 2]"),
    "another shape": (tensor("w", shape=[4, 3]), "tensor 'w' is F32 [4, 3], it should be F32 [3, 4]"),
    "a shape that its bytes do not fill": (tensor("w", shape=[4, 4]), "it should be F32 [3, 4]"),
    "version of 64 bits": (metadata(version=str(1 << 63)), "evergrad.version is"),
    "time of 65 bits": (metadata(newest_us=str(1 << 64)), "evergrad.newest_us is"),
    "gap before the first tensor": (moved(8, "count", "w", "b", "h", "on"), "it should at"),
    "gap in between": (moved(8, "w"), "it should at"),
    "tensors that overlap": (moved(-4, "b"), "it should at"),
    "tensor before the beginning": (moved(-1, "count"), "it should at"),
    "metadata that is no text": (rewritten(lambda table: table["__metadata__"].update(more=1)), "its header"),
    "metadata nested without end": (framed(b'{"__metadata__":' + b"[" * 60_000), "its header"),
    "entry nested without end": (framed(b'{"w":' + b"[" * 60_000 + b"]" * 2000), "its header"),
    "unknown field": (tensor("w", more=1), "its header"),
    "offsets too many": (tensor("w", data_offsets=[0, 1, 2]), "its header"),
    "header just too long": (GOOD_TABLE_TOO_LONG, "a header of"),
    "altered tensor": (GOOD[:-1] + bytes([GOOD[-1] ^ 1]), "its digest is"),
}


def test_what_the_rejected_snapshots_were_made_from_is_accepted() -> None:
    found = decode_snapshot(rewritten(lambda table: None), SCHEMA)
    assert (found.version, found.run) == (7, RUN)
    assert equal_states(found.state, STATE)


@pytest.mark.parametrize(("data", "reason"), REJECTED.values(), ids=REJECTED.keys())
def test_malformed_snapshot_is_refused_by_name_and_reason(data: bytes, reason: str) -> None:
    with pytest.raises(CorruptRecord) as caught:
        decode_snapshot(data, SCHEMA, "snapshots/7.safetensors")
    assert caught.value.name == "snapshots/7.safetensors"
    assert reason in caught.value.reason


def test_missing_tensor_is_refused_by_its_name() -> None:
    schema = Schema([("w", "F32", (2,))])
    wider = Schema([("w", "F32", (2,)), ("none", "F32", (0,))])
    data = encode_snapshot(snapshot_of(new_state(schema), 1))
    with pytest.raises(CorruptRecord, match="tensor 'none' is missing"):
        decode_snapshot(data.replace(schema.fingerprint.encode(), wider.fingerprint.encode()), wider)


def test_memory_follows_the_bytes_given_whatever_the_table_of_the_log_claims() -> None:
    schema, claimed = Schema([("w", "F32", (1,))]), Schema([("w", "F32", (1 << 38,))])
    data = encode_snapshot(snapshot_of(new_state(schema), 1))
    tracemalloc.start()
    with pytest.raises(CorruptRecord, match="tensor 'w'"):
        decode_snapshot(data.replace(schema.fingerprint.encode(), claimed.fingerprint.encode()), claimed)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def decode_or_refuse(data: bytes) -> bool:
    try:
        found = decode_snapshot(data, SCHEMA)
    except CorruptRecord:
        return False
    assert equal_states(found.state, STATE)
    return True


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    assert not decode_or_refuse(data)
    assert not decode_or_refuse(struct.pack("<Q", len(data)) + data)


@pytest.mark.parametrize("flip", [0x01, 0x02, 0x10, 0x80, 0xFF])
def test_no_altered_byte_ever_gives_another_state(flip: int) -> None:
    refused = [not decode_or_refuse(GOOD[:at] + bytes([GOOD[at] ^ flip]) + GOOD[at + 1 :]) for at in range(len(GOOD))]
    assert all(refused[-STATE.schema.nbytes :]), "every byte of a tensor counts"


def test_any_truncation_is_refused() -> None:
    assert not any(decode_or_refuse(GOOD[:length]) for length in range(len(GOOD)))


@given(st.data())
def test_several_altered_bytes_of_the_header_never_give_another_state(data: st.DataObject) -> None:
    raw = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1 - STATE.schema.nbytes))] = data.draw(
            st.integers(0, 255) | st.sampled_from(b'0123456789[]{}",:')
        )
    decode_or_refuse(bytes(raw))


def test_a_model_larger_than_any_memory_is_refused_by_name() -> None:
    schema = Schema([("w", "F64", (1 << 40,))])
    empty = Schema([("w", "F64", (0,))])
    data = encode_snapshot(snapshot_of(State(empty, [np.empty(0)]), 0))
    data = data.replace(empty.fingerprint.encode(), schema.fingerprint.encode())
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b'"shape":[0],"data_offsets":[0,0]', b'"shape":[%d],"data_offsets":[0,%d]'
                                          % (1 << 40, 1 << 43))  # fmt: skip
    with pytest.raises(CorruptRecord):
        decode_snapshot(len(header).to_bytes(8, "little") + header, schema)
