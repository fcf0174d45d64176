"""The exact objects of a log of format 1. They never change: a release that cannot follow them breaks every log."""

from __future__ import annotations

import numpy as np

from evergrad.log import ObjectStore, UpdateLog
from evergrad.replica import Replica
from evergrad.schema import Schema
from evergrad.update import Snapshot, State
from tests.builders import copy_of, equal_states, fresh_store, steps, update_of, values

SCHEMA = Schema([("w", "F32", (2, 3)), ("n", "I64", ()), ("h", "BF16", (2,)), ("b", "F32", (1,))], {"tied": "w"})
SCHEMA_JSON = (
    b'{"tensors":[{"name":"w","dtype":"F32","shape":[2,3]},{"name":"b","dtype":"F32","shape":[1]},'
    b'{"name":"n","dtype":"I64","shape":[]},{"name":"h","dtype":"BF16","shape":[2]}],"aliases":{"tied":"w"}}'
)
ROOT = (
    b'{"format":1,"log":"0123456789abcdef","schema":"816fd966f0d94502daee68392db34efa","fold_base":2,'
    b'"model":"package.module:build"}'
)
ROOT_ANEW = (
    b'{"format":1,"log":"fedcba9876543210","schema":"49b38fe7bcf0f7544648707239fa40f4","fold_base":2,'
    b'"begins":42,"model":"package.module:build"}'
)
TAKES_42_HEX = (
    "4547010001000000"  # magic, format, flags, one version
    "26c18d69529287a5"  # checksum
    "2a00000000000000"  # version
    "efcdab8967452301"  # run
    "54f7f0bce78fb349"  # schema, the new one
    "afcd1d7b39a820e2"  # digest before
    "afcd1d7b39a820e2"  # digest after
    "01401e18240a0600"  # newest example
)
LATEST = b'{"log":"0123456789abcdef","snapshot":41}'
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
UPDATE_HEX = (
    "4547010001000000"  # magic, format, flags, one version
    "ac604c63d33ef047"  # checksum
    "2a00000000000000"  # version
    "efcdab8967452301"  # run
    "0245d9f066d96f81"  # schema
    "6f673cd529aa563a"  # digest before
    "44bec2736b145650"  # digest after
    "40222018240a0600"  # newest example
    "01030000003e02486024"  # 3 steps of 0.125 in F32
    "010b400400000000000000"  # 1 value in I64
    "230108204040"  # 1 value in BF16
)
AFTER_HEX = "0000003e000000800000803f000028c0010000009ec97f7fccccccbc"
STATE = State(
    SCHEMA,
    [
        np.array([0.0, -0.0, 1.0, -2.5, 1e-45, 3.4e38, 0.1], "f4"),
        np.array([-3], "i8"),
        np.array([0x3F80, 0xC000], "u2"),
    ],
)
SNAPSHOT = Snapshot(version=41, run=0x0123456789ABCDEF, newest_us=1_700_000_000_000_001, state=STATE)
SECTIONS = steps([0, 3, 6], 0.125, [False, True, True]), values([7], [4], "I64"), values([8], [0x4040], "BF16")
OBJECTS = {
    "schema/816fd966f0d94502daee68392db34efa.json": SCHEMA_JSON,
    "evergrad.json": ROOT,
    "snapshots/000000000041.safetensors": bytes.fromhex(SNAPSHOT_HEX),
    "latest.json": LATEST,
    "updates/000000000042.eg": bytes.fromhex(UPDATE_HEX),
}


def contents(store: ObjectStore) -> dict[str, bytes | None]:
    names = [name for folder in ("schema", "snapshots", "updates", "folds") for name in store.names(folder)]
    return {name: store.read(name) for name in [*names, "evergrad.json", "latest.json"]}


def test_log_of_these_bytes_is_followed() -> None:
    store = fresh_store()
    for name, data in OBJECTS.items():
        store.create(name, data)
    replica = Replica(UpdateLog(store, "memory:test"))
    assert (replica.sync(), replica.digest, replica.log.model) == (42, 0x5056146B73C2BE44, "package.module:build")
    assert replica.state.arrays[0].tobytes().hex() == AFTER_HEX
    assert (replica.log.id, replica.log.fold_base) == ("0123456789abcdef", 2)


def test_log_is_written_as_these_objects() -> None:
    store = fresh_store()
    log, state = UpdateLog(store, "memory:test"), copy_of(STATE)
    log.begin(SNAPSHOT, "package.module:build", fold_base=2)
    update = update_of(state, 41, *SECTIONS, newest_us=1_700_000_000_123_456)
    log.append(update)
    log.write_folds(42)
    assert contents(store) == OBJECTS


def test_root_of_a_new_generation_is_written_and_read_as_these_bytes() -> None:
    store, schema = fresh_store(), Schema([("w", "F32", (2,))])
    log = UpdateLog(store, "memory:test")
    log.begin(SNAPSHOT, "package.module:build", fold_base=2)
    state = State(schema, [np.zeros(2, "f4")])
    snapshot = Snapshot(version=42, run=SNAPSHOT.run, newest_us=SNAPSHOT.newest_us, state=state)
    assert log.begin_anew(snapshot, 0xFEDCBA9876543210)[0] == 42
    assert store.read("evergrad.json") == ROOT_ANEW
    assert store.read("latest.json") == b'{"log":"fedcba9876543210","snapshot":42}'
    assert (store.read("updates/000000000042.eg") or b"").hex() == TAKES_42_HEX
    again = UpdateLog(store, "memory:test")
    assert (again.id, again.begins, again.fold_base, again.model) == (
        "fedcba9876543210", 42, 2, "package.module:build",
    )  # fmt: skip
    assert Replica(again).sync() == 42


def test_fold_is_the_sections_of_its_updates_under_one_header_of_this_name() -> None:
    # Twice as many tensors would fit, but a fold is at most half the model: this one is wide enough for one.
    schema = Schema([("w", "F32", (100,))])
    state, store = State(schema, [np.zeros(100, "f4")]), fresh_store()
    log = UpdateLog(store, "memory:test")
    log.begin(Snapshot(version=0, run=1, newest_us=0, state=state), fold_base=2)
    for version, newest_us in ((0, 7), (1, 5)):
        update = update_of(state, version, steps([version], 0.5, [False]), newest_us=newest_us)
        log.append(update)
        state.commit(state.check(update, version))
        log.write_folds(version + 1, state)
    parts = [store.read(f"updates/{version:012d}.eg") or b"" for version in (1, 2)]
    fold = store.read("folds/000000000000-000000000002.eg") or b""
    assert fold[:8].hex() == "4547010002000000"
    assert fold[16:40] == parts[1][16:40], "version, run and schema are the last update's"
    assert (fold[40:48], fold[48:56]) == (parts[0][40:48], parts[1][48:56])
    assert fold[56:64] == (5).to_bytes(8, "little"), "the newest example as of the last update"
    assert fold[64:] == parts[0][64:] + parts[1][64:]
    found = log.read_fold(0, 2)
    assert found is not None
    start = State(schema, [np.zeros(100, "f4")])
    start.commit(start.check(found[0], 0))
    assert equal_states(start, state)
