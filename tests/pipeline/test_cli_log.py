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
from tests.builders import Writer, new_state, roomy_schema, update_name


@pytest.fixture
def log(tmp_path: Path) -> str:
    writer = Writer(open_log(str(tmp_path / "log"), create=True))
    writer.state = new_state(roomy_schema())
    writer.begin().append(20)
    return str(tmp_path / "log")


def call(*arguments: str, status: int = 0, typed: str | None = None) -> str:
    done = CliRunner().invoke(app, ["log", *arguments], input=typed)
    assert done.exit_code == status, done.output
    return done.output


def test_the_commands_are_these() -> None:
    found = {command.name for command in log_app.registered_commands}
    assert found == {"show", "verify", "fold", "prune", "rollback", "diff", "export"}


def test_fold_then_show_and_verify(log: str) -> None:
    open_log(log).store.delete("folds/000000000000-000000000016.eg")
    assert "wrote the fold from 0 to 16" in call("fold", log)
    assert "no fold was missing" in call("fold", log)
    shown = call("show", log, "--last", "2")
    assert "1, " in shown
    assert [line.split()[0] for line in shown.splitlines()[-2:]] == ["19", "20"]
    assert "20 updates, 1 folds and 1 snapshots, up to 20: no problems" in call("verify", log)


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
