"""The serving benchmark compares neighbours and serves what it says; no test asserts a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks import serving
from benchmarks.serving import RATES, Released, back_ms, compare, publish, server

KEYS = {"requests_s", "p50_ms", "p99_ms", "throughput_ratio", "p99_ratio", "applied_s"}
QUARTILES = {"throughput_ratio_quartiles", "p99_ratio_quartiles"}


class Steady:
    """Clients whose every request takes as long as the last."""

    def start(self, seconds: float) -> None:
        self.seconds = seconds

    def wait(self) -> dict[str, Any]:
        return {"ms": [2.0] * 10, "failed": 0}


def test_what_makes_no_difference_has_ratios_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "LOAD_S", 0.05)
    released: list[int] = []
    load: Any = Steady()
    found = compare(load, 1, 0.05, lambda: released.append(1), lambda: len(released))
    assert found.keys() == KEYS | QUARTILES
    assert found["requests_s"].keys() == {"0", *map(str, RATES)}
    for key in ("throughput_ratio", "p99_ratio"):
        assert found[key] == {str(rate): 1.0 for rate in RATES}
    assert all(rate > 0 for rate in found["applied_s"].values())


def test_a_server_goes_on_to_released_updates_and_back(tmp_path: Path) -> None:
    publish("lenet5", 1e-3, 3, tmp_path / "source")
    (tmp_path / "served" / "updates").mkdir(parents=True)
    release = Released(tmp_path / "source", tmp_path / "served")
    release()
    assert [path.name for path in (tmp_path / "served" / "updates").iterdir()] == [
        sorted(path.name for path in (tmp_path / "source" / "updates").iterdir())[0]
    ]
    with server("lenet5", f"file:{tmp_path / 'source'}") as url:
        found = back_ms(url, "lenet5")
    assert "0" in found
    assert all(ms > 0 for ms in found.values())
