"""What tests of whole experiments have in common: the data, if it is there, the command, and what it has written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evergrad.records import read_records

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("EVERGRAD_DATA", ROOT.parent / "shared" / "data"))


def needs(folder: str) -> pytest.MarkDecorator:
    """Skips a test where that folder of data is absent."""
    return pytest.mark.skipif(not (DATA / folder).is_dir(), reason=f"needs {folder} in EVERGRAD_DATA")


def run(package: str, *told: str) -> subprocess.CompletedProcess[str]:
    """Runs an experiment's command to its end."""
    command = [sys.executable, "-m", f"experiments.{package}", *told]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, cwd=ROOT)


def cells_in(out: Path) -> dict[str, dict[str, Any]]:
    """The newest record of each cell."""
    return {record["cell"]: record for record in read_records(out / "cells.jsonl") if record["event"] == "cell"}
