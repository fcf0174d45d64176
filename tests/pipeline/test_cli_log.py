"""`evergrad log`: each command, and how it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evergrad import maintain
from evergrad.cli import app
from evergrad.cli.log import log_app
from evergrad.log import open_log
from evergrad.replica import Replica
from evergrad.schema import Schema
from tests.builders import Writer, new_state, roomy_schema, snapshot_of, steps, update_name, update_of


@pytest.fixture
def log(tmp_path: Path) -> str:
    writer = Writer(open_log(str(tmp_path / "log"), create=True), examples_each=8)
    writer.state = new_state(roomy_schema())
    writer.begin().append(20)
    return str(tmp_path / "log")


def call(*arguments: str, status: int = 0, typed: str | None = None) -> str:
    done = CliRunner().invoke(app, ["log", *arguments], input=typed)
    assert done.exit_code == status, done.output
    return done.output


def test_the_commands_are_these() -> None:
    found = {command.name for command in log_app.registered_commands}
    assert found == {"show", "verify", "fold", "prune", "rollback", "diff", "export", "blame"}


def test_fold_then_show_and_verify(log: str) -> None:
    open_log(log).store.delete("folds/000000000000-000000000016.eg")
    assert "wrote the fold from 0 to 16" in call("fold", log)
    assert "no fold was missing" in call("fold", log)
    shown = call("show", log, "--last", "2")
    assert "1, " in shown
    assert [line.split()[0] for line in shown.splitlines()[-2:]] == ["19", "20"]
    assert "20 updates, 1 folds and 1 snapshots, up to 20: no problems" in call("verify", log)


def test_show_tells_since_when_the_model_is_what_it_is(log: str) -> None:
    assert "since version" not in call("show", log)
    writer = Writer(open_log(log), version=20).begin_anew(Schema([("w", "F32", (16,)), ("count", "I64", ())]))
    writer.append(2)
    shown = call("show", log)
    assert f"{writer.schema.fingerprint}, since version 21" in shown
    assert [line.split()[0] for line in shown.splitlines()[-2:]] == ["22", "23"]
    assert "2 updates, 0 folds and 1 snapshots, up to 23: no problems" in call("verify", log)


def test_show_has_the_examples_of_each_version(log: str) -> None:
    maintain.rollback(open_log(log), 3)
    assert [line.split()[-1] for line in call("show", log, "--last", "3").splitlines()[-4:]] == [
        "examples", "144-151", "152-159", "said",
    ]  # fmt: skip


def test_blame_of_a_version(log: str) -> None:
    told = call("blame", log, "3")
    assert "16-23, 8 in all" in told
    assert "2023-11-14 22:13:22.000000 UTC" in told
    assert "0123456789abcdef" in told
    assert "3 elements in 2 tensors, 87 bytes" in told
    assert [line.split() for line in told.splitlines()[-2:]] == [["w:", "2"], ["count:", "1"]]
    assert "VersionNotInLog" in call("blame", log, "21", status=1)


def test_blame_of_an_example(log: str) -> None:
    assert call("blame", log, "--example", "17") == call("blame", log, "3")
    missing = call("blame", log, "--example", "160", status=1)
    assert "no version of 1 to 20 says that it learned from example 160" in missing
    Path(log, update_name(1)).write_bytes(b"")
    Path(log, "folds/000000000000-000000000016.eg").unlink()
    told = call("blame", log, "--example", "17")
    assert "passed over, for they cannot be read: versions 1\n" in told
    assert "16-23, 8 in all" in told


def test_blame_where_nothing_is_said(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    opened = open_log(log, create=True)
    state = new_state(Schema([(f"t{i}", "F32", (2,)) for i in range(7)]))
    opened.begin(snapshot_of(state, 0))
    assert "no version says that it learned from example 0" in call("blame", log, "--example", "0", status=1)
    opened.append(update_of(state, 0, steps([*range(8), 10, 12]), newest_us=0))
    told = call("blame", log, "1")
    assert told.count("not said") == 2
    assert "10 elements in 6 tensors" in told
    assert told.splitlines()[-1].split() == ["1", "others:", "1"]


def test_blame_takes_a_version_or_an_example(log: str) -> None:
    assert "ConfigError: VERSION" in call("blame", log, status=1)
    assert "ConfigError: VERSION" in call("blame", log, "3", "--example", "17", status=1)


def test_verify_of_a_damaged_log_in_a_process_of_its_own(log: str) -> None:
    path = Path(log) / update_name(9)
    path.write_bytes(path.read_bytes()[:-1])
    command = [sys.executable, "-m", "evergrad", "log", "verify", log]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert update_name(9) in done.stdout
    assert done.stderr == ""


def test_rollback_asks_first(log: str) -> None:
    call("rollback", log, "--to", "3", typed="n\n", status=1)
    assert Replica(log).sync() == 20
    assert "version 21 has the state of version 3" in call("rollback", log, "--to", "3", "--yes")
    assert "total" in call("diff", log, "3", "21")


def test_prune_in_a_dry_run_deletes_nothing(log: str) -> None:
    opened = open_log(log)
    opened.write_snapshot(maintain.state_at(opened, 20))
    assert f"would delete {update_name(5)}" in call("prune", log, "--keep", "2", "--dry-run")
    assert len(opened.updates()) == 20
    assert f"deleted {update_name(5)}" in call("prune", log, "--keep", "2")
    assert opened.updates() == [19, 20]


def test_export_and_its_errors(log: str, tmp_path: Path) -> None:
    assert "version 20" in call("export", log, str(tmp_path / "out.safetensors"))
    assert "VersionNotInLog" in call("export", log, str(tmp_path / "x"), "--version", "99", status=1)
    assert "ConfigError: out" in call("export", log, str(tmp_path / "none" / "x"), status=1)
    assert "LogNotFound" in call("verify", str(tmp_path / "nowhere"), status=1)
