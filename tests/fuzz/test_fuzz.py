"""The fuzzer finds nothing in as many executions as a test run can spare; `make fuzz` runs more of them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

RUNS = 40_000


def test_bounded_run_finds_nothing(tmp_path: Path) -> None:
    fuzzer = Path(__file__).with_name("fuzz_update.py")
    command = [sys.executable, str(fuzzer), f"-runs={RUNS}", "-seed=1", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    found = re.search(r"^Done (\d+) runs", done.stderr, re.MULTILINE)
    assert found, done.stderr[-4000:]
    assert int(found[1]) >= RUNS
