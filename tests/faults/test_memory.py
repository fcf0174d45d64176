"""A replica's memory: the model, its undo ring, and little more, in a process of its own."""

from __future__ import annotations

import sys

import pytest
from benchmarks.memory import measure


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, which only Linux has")
def test_replica_needs_at_most_32_mb_beyond_model_and_undo_ring() -> None:
    found = measure(10_000_000)
    assert found["updates"] > 30
    assert found["snapshots"] == 2
    assert found["beyond_mb"] <= 32
