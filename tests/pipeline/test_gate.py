"""The gate in a whole run: what replicas hold stays good, whatever comes in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import evergrad
from evergrad.errors import ConfigError
from evergrad.gate import Decision
from evergrad.pytorch.bridge import load_weights
from evergrad.records import read_records
from tests.pipeline.tasks import make_examples, make_model, seeded_model

BATCHES, POISON = 900, range(500, 563)


class Watcher:
    """Scores what a replica of the log holds, on clean examples, after each batch."""

    def __init__(self, log: str) -> None:
        self._log, self._replica, self._model = log, None, make_model().eval()
        x, y = make_examples(1000, seed=77)
        self._x, self._y = torch.from_numpy(x), torch.from_numpy(y)
        self.accuracy: list[float] = []
        self.held: list[bool] = []

    def __call__(self, progress: Any) -> None:
        self._replica = self._replica or evergrad.Replica(self._log)
        self._replica.sync()
        load_weights(self._model, self._replica)
        with torch.no_grad():
            self.accuracy.append(float((self._model(self._x).argmax(1) == self._y).float().mean()))
        self.held.append(progress.held)


def stream(poison: str, batches: int = BATCHES) -> list[evergrad.Batch]:
    x, y = make_examples(8 * batches)
    bad = np.random.default_rng(5).integers(0, 4, 8 * batches)
    wrong = {"flipped": (y + 1) % 4, "random": bad, "constant": np.zeros_like(y), "none": y}[poison]
    found = []
    for number in range(batches):
        part = slice(8 * number, 8 * number + 8)
        found.append(evergrad.Batch(x[part], (wrong if number in POISON else y)[part], 1_700_000_000.0 + number))
    return found


def run(folder: Path, batches: list[evergrad.Batch], **changes: Any) -> tuple[Any, Watcher, list[Decision]]:
    model = changes.pop("model", None) or seeded_model()
    watcher, alerts = Watcher(f"file:{folder / 'log'}"), []
    settings: dict[str, Any] = {
        "optimizer": torch.optim.Adam(model.parameters(), 5e-3), "gate": evergrad.Gate(), "trigger": evergrad.EveryN(8),
        "sampler": evergrad.Uniform(seed=1), "batch_size": 64, "density": 0.2, "history": folder / "history",
        "records": folder / "records.jsonl",
    }  # fmt: skip
    found = evergrad.run(
        model=model, loss=cross_entropy, stream=batches, log=f"file:{folder / 'log'}", observe=watcher,
        on_alert=alerts.append, **(settings | changes),
    )  # fmt: skip
    replica = evergrad.Replica(f"file:{folder / 'log'}")
    assert (replica.sync(), replica.digest) == (found.version, found.digest)
    return found, watcher, alerts


@pytest.mark.parametrize("poison", ["flipped", "random", "constant"])
def test_five_hundred_poisoned_examples_cost_at_most_two_points(poison: str, tmp_path: Path) -> None:
    found, watcher, alerts = run(tmp_path, stream(poison))
    before = np.mean(watcher.accuracy[450:500])
    assert before > 0.9
    assert min(watcher.accuracy[500:]) >= before - 0.02
    assert np.mean(watcher.accuracy[-50:]) >= before - 0.01
    assert not any(watcher.held[:500])
    assert not watcher.held[-1]
    assert [alert.verdict for alert in alerts][-1] in ("release", "rollback")
    excluded = evergrad.History(tmp_path / "history", read_only=True).excluded_ranges
    assert len(excluded) == 1
    assert excluded[0][0] <= 8 * POISON.start + 16
    assert excluded[0][1] >= 8 * POISON.stop - 16
    told = [record for record in read_records(tmp_path / "records.jsonl") if record["event"] == "gate"]
    assert [record["verdict"] for record in told] == [alert.verdict for alert in alerts]
    assert found.updates < BATCHES


def test_without_a_gate_they_cost_more(tmp_path: Path) -> None:
    _, watcher, _ = run(tmp_path, stream("flipped"), gate=None, sampler=evergrad.Window(500, seed=1))
    assert min(watcher.accuracy[500:]) < np.mean(watcher.accuracy[450:500]) - 0.02


def test_a_clean_stream_is_never_held_and_ends_as_without_a_gate(tmp_path: Path) -> None:
    with_gate, watcher, alerts = run(tmp_path / "with", stream("none", 500))
    without, _, _ = run(tmp_path / "without", stream("none", 500), gate=None)
    assert not any(watcher.held)
    assert alerts == []
    assert with_gate.digest == without.digest


def test_examples_that_are_no_numbers_are_left_out_and_the_run_goes_on(tmp_path: Path) -> None:
    batches = stream("none", 600)
    bad = batches[300]
    batches[300] = evergrad.Batch(np.full_like(bad.x, np.nan), bad.y, bad.arrived_s)
    found, watcher, alerts = run(tmp_path, batches)
    assert found.steps == 600
    assert alerts[0].verdict == "hold"
    assert "not finite" in alerts[0].reason
    assert min(watcher.accuracy[300:]) >= np.mean(watcher.accuracy[250:300]) - 0.02
    assert not watcher.held[-1]
    excluded = evergrad.History(tmp_path / "history", read_only=True).excluded_ranges
    assert excluded[0][0] <= 2400
    assert excluded[0][1] >= 2408


class Leap(torch.optim.Adam):
    """Takes one step a thousand times too long."""

    def __init__(self, parameters: Any, at: int) -> None:
        super().__init__(parameters, 5e-3)
        self._at, self._count = at, 0

    def step(self, closure: Any = None) -> Any:
        self._count += 1
        for group in self.param_groups:
            group["lr"] = 5.0 if self._count == self._at else 5e-3
        return super().step(closure)


def test_a_step_out_of_bounds_never_reaches_the_replicas(tmp_path: Path) -> None:
    model: nn.Module = seeded_model()
    optimizer = Leap(model.parameters(), at=301)
    _, watcher, alerts = run(tmp_path, stream("none", 800), model=model, optimizer=optimizer)
    assert alerts[0].verdict == "hold"
    assert "moves the served weights" in alerts[0].reason
    assert min(watcher.accuracy[290:]) >= np.mean(watcher.accuracy[250:300]) - 0.02
    assert not watcher.held[-1]


def test_a_gate_needs_a_log(tmp_path: Path) -> None:
    model = seeded_model()
    with pytest.raises(ConfigError, match="nothing to hold back"):
        evergrad.run(
            model=model, loss=cross_entropy, optimizer=torch.optim.SGD(model.parameters(), 0.1), stream=[],
            trigger=evergrad.EveryN(8), sampler=evergrad.Uniform(), batch_size=32, gate=evergrad.Gate(),
        )  # fmt: skip
