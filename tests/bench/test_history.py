"""The history benchmark measures all that it names; no test asserts a time."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import history


def test_a_short_run_measures_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "TURNS", 2)
    found = history.measure(tmp_path, [150, 300])
    by_rows = ("gather_ms", "gather_with_label_ms", "first_gather_ms", "open_ms", "append_rows_per_s_by_rows")
    assert found.keys() == {*by_rows, "gather_ratio", "append_rows_per_s"}
    for key in by_rows:
        assert list(found[key]) == [150, 300]
        assert min(found[key].values()) > 0
    assert found["gather_ratio"] == found["gather_ms"][300] / found["gather_ms"][150]
