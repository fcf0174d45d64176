"""`evergrad doctor`, as a user types it: real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import evergrad
from evergrad.log import open_log
from tests.architecture.test_core_without_torch import without_torch
from tests.builders import Writer, update_name


@pytest.fixture
def log(tmp_path: Path) -> str:
    Writer(open_log(str(tmp_path / "log"), create=True)).begin().append(5)
    return str(tmp_path / "log")


def doctor(*arguments: str, status: int = 0) -> str:
    command = [sys.executable, "-m", "evergrad", "doctor", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (status, "")
    return done.stdout


def test_it_tells_versions_selection_and_a_readable_log_one_a_line(log: str) -> None:
    rows = dict(line.split(maxsplit=1) for line in doctor(log).splitlines())
    assert rows["evergrad"] == evergrad.__version__
    assert rows["torch"].startswith("2.")
    assert rows["selection"] == "compiled by numba"
    assert rows["threads"].startswith("torch computes with ")
    assert rows["head"].startswith("version 5, ")
    assert rows["readable"] == "yes"


def test_json_is_all_that_it_prints(log: str) -> None:
    found = json.loads(doctor(log, "--json"))
    assert found["evergrad"] == evergrad.__version__
    assert {package["name"] for package in found["packages"]} >= {"torch", "numba", "kserve", "onnxruntime", "typer"}
    assert found["torch"]["threads"] >= 1
    assert (found["log"]["head"], found["log"]["error"]) == (5, None)


def test_a_log_that_cannot_be_read_is_status_1_in_both_forms(log: str) -> None:
    assert "readable        no: LogNotFound" in doctor("nowhere", status=1)
    path = Path(log) / update_name(5)
    path.write_bytes(path.read_bytes()[:-1])
    found = json.loads(doctor(log, "--json", status=1))
    assert update_name(5) in found["log"]["error"]
    assert found["log"]["schema"] is not None


BARE = """
for name in ("numba", "kserve", "onnxruntime", "matplotlib", "sklearn"):
    sys.modules[name] = None
from evergrad.__main__ import main
main()
"""


def test_with_nothing_but_the_commands_own_extra_it_says_what_brings_the_rest(log: str) -> None:
    told = without_torch(BARE, "doctor", log)
    assert "pip install 'evergrad[torch]'" in told
    assert "pip install 'evergrad[serve]'" in told
    assert "publishing      impossible: torch is not installed" in told
    assert "readable        yes" in told


def test_it_loads_no_torch_even_where_that_is_there() -> None:
    code = "import sys; sys.argv[1:] = ['doctor']\nfrom evergrad.cli import app\n"
    code += "app(standalone_mode=False); print(*sorted({'torch', 'numba', 'kserve', 'sklearn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == ""
    assert "numba" in done.stdout
