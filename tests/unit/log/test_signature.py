"""A log's signature: what is written, read, taken back, and told where it cannot be read."""

from __future__ import annotations

import hashlib

import pytest

from evergrad.errors import LogUnavailable, ProgramRefused, UnsupportedFormat
from evergrad.log import UpdateLog
from evergrad.log.signature import (
    MAX_PROGRAM_BYTES,
    Signature,
    TensorInfo,
    forget_program,
    read_program,
    read_signature,
    write_signature,
)
from evergrad.maintain import verify
from evergrad.replica import Replica
from evergrad.testing import FaultyStore
from tests.builders import Unlisted, Writer, fresh_log, fresh_store, wide_schema

INPUTS = (TensorInfo("image", "F32", (-1, 1, 8, 8)),)
OUTPUTS = (TensorInfo("output-0", "F32", (-1, 10)),)
PROGRAM = b"a program"
NAME = f"programs/{hashlib.sha256(PROGRAM).hexdigest()[:32]}.json"


@pytest.fixture
def log() -> UpdateLog:
    opened = fresh_log()
    Writer(opened).begin()
    return opened


def signature_name(log: UpdateLog) -> str:
    return f"signature/{log.id}.json"


def test_what_is_written_is_read(log: UpdateLog) -> None:
    assert read_signature(log) is None
    written = write_signature(log, INPUTS, OUTPUTS, PROGRAM)
    assert read_signature(log) == written
    assert (written.inputs, written.outputs) == (INPUTS, OUTPUTS)
    assert read_program(log, written) == PROGRAM
    assert log.store.names("programs") == [NAME]
    assert verify(log).problems == ()


def test_another_program_takes_its_place_and_the_same_one_none(log: UpdateLog) -> None:
    for program in (PROGRAM, b"another", PROGRAM):
        write_signature(log, INPUTS, OUTPUTS, program)
        found = read_signature(log)
        assert found is not None
        assert read_program(log, found) == program
    assert len(log.store.names("programs")) == 2
    assert log.store.names("signature") == [signature_name(log)]


def test_a_program_is_taken_back(log: UpdateLog) -> None:
    forget_program(log)
    assert read_signature(log) is None
    write_signature(log, INPUTS, OUTPUTS, PROGRAM)
    forget_program(log)
    found = read_signature(log)
    assert found == Signature(1)
    with pytest.raises(ProgramRefused, match="missing"):
        read_program(log, Signature(1))


def test_a_new_generation_has_a_signature_of_its_own(log: UpdateLog) -> None:
    write_signature(log, INPUTS, OUTPUTS, PROGRAM)
    Writer(log).begin_anew(wide_schema())
    assert read_signature(log) is None
    write_signature(log, INPUTS, OUTPUTS, b"another")
    assert len(log.store.names("signature")) == 2


def test_readers_take_no_notice_of_it(log: UpdateLog) -> None:
    before = Replica(log)
    before.sync()
    write_signature(log, INPUTS, OUTPUTS, PROGRAM)
    Writer(log).append(2)
    after = Replica(UpdateLog(Unlisted(log.store), log.url))
    assert before.sync() == after.sync() == 2
    assert before.digest == after.digest


def test_a_program_that_is_torn_is_refused_and_written_again(log: UpdateLog) -> None:
    signature = write_signature(log, INPUTS, OUTPUTS, PROGRAM)
    for damaged in (PROGRAM[:-1], b"b program", PROGRAM + b"!", b""):
        log.store.replace(NAME, damaged)
        with pytest.raises(ProgramRefused, match=r"damaged|larger") as refused:
            read_program(log, signature)
        assert refused.value.name == NAME
        assert [name for name, _ in verify(log).problems] == [NAME]
        assert read_program(log, write_signature(log, INPUTS, OUTPUTS, PROGRAM)) == PROGRAM
    log.store.delete(NAME)
    with pytest.raises(ProgramRefused, match="missing"):
        read_program(log, signature)


def test_a_program_that_is_too_large_is_not_written(log: UpdateLog) -> None:
    with pytest.raises(ProgramRefused, match="at most"):
        write_signature(log, INPUTS, OUTPUTS, bytes(MAX_PROGRAM_BYTES + 1))
    assert log.store.names("programs") == []


def test_a_program_larger_than_the_signature_says_is_not_read_to_its_end(log: UpdateLog) -> None:
    signature = write_signature(log, INPUTS, OUTPUTS, PROGRAM)
    log.store.replace(NAME, bytes(1 << 22))
    with pytest.raises(ProgramRefused, match="larger than 9 bytes"):
        read_program(log, signature)


@pytest.mark.parametrize("point", ["program", "signature"])
def test_a_crash_on_the_way_leaves_the_signature_from_before(point: str) -> None:
    store = FaultyStore(fresh_store())
    log = UpdateLog(store, "memory:test")
    Writer(log).begin()
    first = write_signature(log, INPUTS, OUTPUTS, b"the first")
    store.fail_create = {NAME if point == "program" else signature_name(log)}
    with pytest.raises(LogUnavailable):
        write_signature(log, INPUTS, OUTPUTS, PROGRAM)
    assert read_signature(log) == first
    assert read_program(log, first) == b"the first"
    store.fail_create = set()
    assert read_program(log, write_signature(log, INPUTS, OUTPUTS, PROGRAM)) == PROGRAM


UNREADABLE = {
    "empty": b"",
    "no json": b"{",
    "no utf-8": b'{"format":1,"program":"\xff"}',
    "no format": b"{}",
    "format zero": b'{"format":0}',
    "nested without end": b'{"a": ' + b"[" * 100_000,
    "a program that is a path": b'{"format":1,"program":"../../evergrad"}',
    "a program in capitals": b'{"format":1,"program":"0123456789ABCDEF0123456789ABCDEF"}',
    "an unknown dtype": b'{"format":1,"inputs":[{"name":"x","dtype":"O","shape":[1]}]}',
    "a side below -1": b'{"format":1,"inputs":[{"name":"x","dtype":"F32","shape":[-2]}]}',
    "too large": b'{"format":1}' + b" " * (1 << 20),
}


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_signature_that_no_writer_writes_is_refused(log: UpdateLog, data: bytes) -> None:
    log.store.replace(signature_name(log), data)
    with pytest.raises(ProgramRefused) as refused:
        read_signature(log)
    assert refused.value.name == signature_name(log)
    assert [name for name, _ in verify(log).problems] == [signature_name(log)]
    assert Replica(log).sync() == 0


def test_one_of_a_newer_release_says_so_and_one_with_more_fields_is_read(log: UpdateLog) -> None:
    log.store.replace(signature_name(log), b'{"format":2,"program":5}')
    with pytest.raises(UnsupportedFormat):
        read_signature(log)
    log.store.replace(signature_name(log), b'{"format":1,"later":true}')
    assert read_signature(log) == Signature(1)
