"""A process that is killed between any two steps of a write leaves a valid directory, and the next one completes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from evergrad.log import open_log
from evergrad.log.local import LocalStore, local_store
from evergrad.replica import Replica
from tests.builders import Writer, update_name

NAME, DATA = update_name(1), b"all of it" * 1000
# The calls of a durable creation that can be stood in for, in order; a crash comes before or after each.
CALLS = ["sync the file", "link", "sync updates", "sync the directory"]
WRITER = """
import os, signal, sys
from pathlib import Path
from evergrad.log.local import LocalStore

calls = 0

def at(call):
    def counted(*arguments):
        global calls
        if calls == int(sys.argv[2]) and sys.argv[3] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        call(*arguments)
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1
    return counted

store = LocalStore(Path(sys.argv[1]), "file:log", durable=True, fsync=at(os.fsync), link=at(os.link))
store.create(sys.argv[4], sys.stdin.buffer.read())
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", range(len(CALLS)), ids=CALLS)
def test_writer_killed_at_any_call_leaves_all_or_nothing(call: int, when: str, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", WRITER, str(tmp_path), str(call), when, NAME]
    assert subprocess.run(arguments, input=DATA, check=False).returncode == -9
    store = LocalStore(tmp_path, "file:log")
    linked = call > 1 or (call, when) == (1, "after")
    assert store.read(NAME) == (DATA if linked else None)
    assert store.names("updates") == ([NAME] if linked else [])
    strays = list((tmp_path / "updates").glob(".tmp-*"))
    assert len(strays) == (1 if call <= 1 else 0)
    assert store.create(NAME, DATA) != linked, "the restarted writer completes it, or finds it"
    assert store.read(NAME) == DATA
    for stray in strays:
        os.utime(stray, (0, 0))
    local_store(tmp_path, "file:log", create=True)
    assert os.listdir(tmp_path / "updates") == [Path(NAME).name]


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_writer_killed_within_the_bytes_leaves_a_log_one_version_shorter(cut: int, tmp_path: Path) -> None:
    writer = Writer(open_log(str(tmp_path), create=True)).begin().append(2)
    written = writer.log.store.read(update_name(2)) or b""
    (tmp_path / "updates" / ".tmp-0123456789abcdef").write_bytes(written[:cut])
    assert Replica(str(tmp_path)).sync() == 2
    assert writer.log.updates() == [1, 2]
    writer.append()
    assert Replica(str(tmp_path)).sync() == 3
