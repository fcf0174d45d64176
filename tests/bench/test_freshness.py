"""The freshness benchmark runs its real processes and says what it measured; no test asserts a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TIMES = {"p50_ms", "p99_ms", "full_push_p50_ms", "full_push_p99_ms", "restart_p50_ms"}
PARTS = {"join", "follow", "learn", "serve", "learn_cpu"}
DESCRIBED = {"model", "density", "updates", "restarts", "parts_ms", "machine", "date"}


def test_the_command_ends_with_one_json_object() -> None:
    command = [sys.executable, "-m", "benchmarks.freshness", "--updates", "2", "--restarts", "1", "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=True, cwd=Path(__file__).parents[2]
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == TIMES | DESCRIBED
    assert found["parts_ms"].keys() == PARTS
    assert all(found[key] > 0 for key in TIMES)
    assert found["p50_ms"] < found["restart_p50_ms"]
