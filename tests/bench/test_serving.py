"""The serving benchmark compares neighbours and serves what it says; no test asserts a time."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from benchmarks import serving
from benchmarks.serving import RATES, Released, back_ms, compare, cpu_s, publish, server, update_cpu_ms

BLOCKS = {"requests_s", "p50_ms", "p99_ms", "cpu_ms"}
RATIOS = {"throughput_ratio", "p99_ratio", "cpu_ratio"}


class Steady:
    """Clients whose every request takes as long as the last."""

    def start(self, seconds: float) -> None:
        self.seconds = seconds

    def wait(self) -> dict[str, Any]:
        return {"ms": [2.0] * 10, "answered": 12, "failed": 0}


def test_what_makes_no_difference_has_ratios_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "LOAD_S", 0.05)
    released: list[int] = []
    aside: list[int] = []
    load: Any = Steady()
    seconds = itertools.count()  # a second of processor time between two looks at it
    found = compare(
        load, 1, 0.05, lambda: released.append(1), lambda: aside.append(1), lambda: len(released), lambda: next(seconds)
    )
    assert found.keys() == BLOCKS | RATIOS | {f"{key}_quartiles" for key in RATIOS} | {"applied_s", "update_cpu_ms"}
    for key in BLOCKS:
        assert found[key].keys() == {"0", *map(str, RATES)}
    for key in RATIOS:
        assert found[key] == {str(rate): 1.0 for rate in RATES}
    assert found["update_cpu_ms"] == {str(rate): 0.0 for rate in RATES}
    assert all(rate > 0 for rate in found["applied_s"].values())
    assert min(len(aside), len(released)) >= len(RATES), "the writer does the same without"


def test_the_processor_time_of_an_update_is_what_its_block_took_more() -> None:
    without = {"cpu_ms": 0.5, "answered": 900.0, "released": 10.0}
    updated = {"cpu_ms": 0.6, "answered": 1000.0, "released": 50.0}
    assert update_cpu_ms(without, updated) == pytest.approx(2.0)
    before = cpu_s(os.getpid())
    assert sum(range(200_000))
    assert 0 < cpu_s(os.getpid()) - before < 10


def test_a_server_goes_on_to_released_updates_and_back(tmp_path: Path) -> None:
    publish("lenet5", 1e-3, 3, tmp_path / "source")
    (tmp_path / "served" / "updates").mkdir(parents=True)
    release = Released(tmp_path / "source", tmp_path / "served")
    release()
    assert [path.name for path in (tmp_path / "served" / "updates").iterdir()] == [
        sorted(path.name for path in (tmp_path / "source" / "updates").iterdir())[0]
    ]
    with server("lenet5", f"file:{tmp_path / 'source'}") as (url, pid):
        found = back_ms(url, "lenet5")
        assert cpu_s(pid) > 0
    assert "0" in found
    assert all(ms > 0 for ms in found.values())
