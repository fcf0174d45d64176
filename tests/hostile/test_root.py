"""One malformed `evergrad.json` per rejection rule, and arbitrary ones: nobody may steer a reader with it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergrad.errors import CorruptRecord, LogError, UnsupportedFormat
from evergrad.log import UpdateLog
from evergrad.replica import Replica
from tests.builders import Writer, equal_states, fresh_log, fresh_store, small_schema

FINGERPRINT = small_schema().fingerprint


def log_with_root(data: bytes) -> UpdateLog:
    store = fresh_store()
    store.create(f"schema/{FINGERPRINT}.json", small_schema().to_json())
    store.create("evergrad.json", data)
    return UpdateLog(store, "memory:test")


def root(**fields: object) -> bytes:
    known = {"format": 1, "log": "0123456789abcdef", "schema": FINGERPRINT, "fold_base": 16}
    return json.dumps(known | fields).encode()


REJECTED = {
    "empty": b"",
    "no json": b"{",
    "a list": b"[]",
    "format missing": root().replace(b'"format": 1, ', b""),
    "log missing": root().replace(b'"log": "0123456789abcdef", ', b""),
    "fold base missing": root().replace(b', "fold_base": 16', b""),
    "format zero": root(format=0),
    "format below zero": root(format=-1),
    "format is text": root(format="1"),
    "unknown field": root(pickled="x"),
    "no utf-8": root(model="x").replace(b'"x"', b'"\xff"'),
    "nested without end": b'{"a": ' + b"[" * 100_000,
    "schema is a path": root(schema="../../etc/passwd"),
    "schema with a slash": root(schema="a//b"),
    "schema empty": root(schema=""),
    "schema with zero byte": root(schema="\0"),
    "schema in capitals": root(schema=FINGERPRINT.upper()),
    "schema and a newline": root(schema=FINGERPRINT + "\n"),
    "log in capitals": root(log="0123456789ABCDEF"),
    "log too short": root(log="0123456789abcde"),
    "log and a newline": root(log="0123456789abcdef\n"),
    "log is a number": root(log=1),
    "fold base one": root(fold_base=1),
    "fold base below zero": root(fold_base=-16),
    "fold base too large": root(fold_base=(1 << 20) + 1),
    "fold base with a fraction": root(fold_base=16.5),
    "fold base is text": root(fold_base="16"),
    "schema too short": root(schema=FINGERPRINT[:-1]),
}


@pytest.mark.parametrize("data", REJECTED.values(), ids=REJECTED.keys())
def test_malformed_root_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptRecord) as caught:
        _ = log_with_root(data).schema
    assert caught.value.name == "evergrad.json"


def test_newer_format_is_told_with_both_numbers_whatever_else_it_holds() -> None:
    with pytest.raises(UnsupportedFormat) as caught:
        _ = log_with_root(json.dumps({"format": 2, "tensors": "elsewhere"}).encode()).schema
    assert (caught.value.name, caught.value.found, caught.value.supported) == ("evergrad.json", 2, 1)


def test_schema_that_is_missing_or_another_one_is_refused() -> None:
    for stored in (None, b'{"tensors": [], "aliases": {}}'):
        log = log_with_root(root(schema="0" * 32))
        if stored is not None:
            log.store.create(f"schema/{'0' * 32}.json", stored)
        with pytest.raises(CorruptRecord) as caught:
            _ = log.schema
        assert caught.value.name == f"schema/{'0' * 32}.json"


def test_what_the_rejected_roots_were_made_from_is_accepted() -> None:
    log = log_with_root(root(model="package.module:build"))
    assert (log.schema, log.model) == (small_schema(), "package.module:build")


@given(st.binary(max_size=100) | st.integers(0, len(root()) - 1).map(lambda at: root()[:at] + b"0" + root()[at + 1 :]))
def test_arbitrary_root_is_read_or_refused(data: bytes) -> None:
    try:
        found = log_with_root(data).schema
    except LogError:
        return
    assert found == small_schema()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b'{"log":"0123456789abcdef"}',
        b'{"snapshot":0}',
        b'{"log":"0123456789abcdef","snapshot":"0"}',
        b'{"log":"0123456789abcdef","snapshot":0.5}',
        b'{"log":"0123456789abcdef","snapshot":0,"more":1}',
        b'{"log":"\xff","snapshot":0}',
        b'{"log":"another log here","snapshot":0}',
        b'{"a":' + b"[" * 100_000,
        b'{"log":"0123456789abcdef","snapshot":-1}',
    ],
)
def test_latest_that_is_unreadable_costs_readers_nothing_where_they_can_list(data: bytes) -> None:
    writer = Writer(fresh_log()).begin().append(2)
    writer.log.store.replace("latest.json", data)
    reader = Replica(UpdateLog(writer.log.store, "memory:test"))
    assert reader.sync() == 2
    assert equal_states(reader.state, writer.state)
    writer.append()
    assert reader.sync() == 3


@pytest.mark.parametrize("snapshot", [99, 10**40])
def test_latest_that_names_a_snapshot_which_is_not_there_is_told_and_stops_nobody(snapshot: int) -> None:
    writer = Writer(fresh_log()).begin().append(2)
    writer.log.store.replace("latest.json", b'{"log":"0123456789abcdef","snapshot":%d}' % snapshot)
    reader = Replica(UpdateLog(writer.log.store, "memory:test"))
    for version in (2, 3):
        with pytest.raises(CorruptRecord, match="it is missing") as caught:
            reader.sync()
        assert caught.value.name == f"snapshots/{snapshot:012d}.safetensors"
        assert reader.version == version
        assert equal_states(reader.state, writer.state)
        writer.append()
