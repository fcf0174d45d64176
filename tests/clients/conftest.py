"""Runs the JavaScript client, which stands beside the Python library in this repository."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CLIENT = HERE.parents[1] / "clients" / "js"

Node = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="session")
def node() -> Node:
    """Starts node with arguments; both of its outputs are pipes."""
    program = shutil.which("node")
    if program is None:
        pytest.fail(
            "no node here, which the JavaScript client runs on: install Node.js 18 or newer, or run 'make node'"
        )

    def start(*arguments: str | Path, cwd: Path = HERE) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [program, *map(str, arguments)], cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    return start


@pytest.fixture(scope="session")
def output(node: Node) -> Callable[..., str]:
    """Runs node to its end, which must be a good one, and gives what it printed."""

    def run(*arguments: str | Path, cwd: Path = HERE) -> str:
        with node(*arguments, cwd=cwd) as process:
            printed, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors or printed
        return printed

    return run
