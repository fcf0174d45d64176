"""The gate around a learner: quiet streams pass, poisoned stretches cost nothing, a changed world is followed.

Accuracies are of what replicas serve, on fresh examples with right labels, in percent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from evergrad.gate import Gate
from tests.statistical.learner import CLASSES, POISONS, Deployment, Labels, Network, World

POISONED = range(2400, 2900)
TEST, EVERY = 2000, 4


@dataclass
class Run:
    """What a run came to: accuracies every 4 batches, the alerts' verdicts, examples of each hold's end."""

    deployment: Deployment
    accuracies: npt.NDArray[np.float64]

    @property
    def verdicts(self) -> list[str]:
        return [d.verdict for d in self.deployment.alerts]

    def mean(self, first: int, last: int) -> float:
        """The mean accuracy while examples from `first` to `last` came."""
        return float(self.accuracies[first // (8 * EVERY) : last // (8 * EVERY)].mean())


def run(
    gate: Gate | None, *, seed: int = 0, batches: int = 500, poison: str | None = None, window: int | None = None,
    spread: float = 1.0, turn: float = 0.0, changes_at: int | None = None,
) -> Run:  # fmt: skip
    world, judge = World(seed, spread=spread, turn=turn), World(seed + 1000, spread=spread, turn=turn)
    test_x, test_y = judge.draw(TEST, 0)
    found = Deployment(gate, Network(), window=window, seed=seed)
    rng = np.random.default_rng(seed)
    accuracies = []

    def labels(y: Labels, at: int) -> Labels:
        return y if changes_at is None or at < changes_at else (y + 3) % CLASSES

    for at in range(0, 8 * batches, 8):
        x, y = world.draw(8, at)
        y = labels(y, at)
        found.take(x, POISONS[poison](rng, y) if poison and at in POISONED else y)
        if at % (8 * EVERY) == 0:
            if turn:
                test_x, test_y = judge.draw(TEST, at)
            accuracies.append(100 * found.served.accuracy(test_x, labels(test_y, at)))
    return Run(found, np.array(accuracies))


@pytest.mark.parametrize("spread", [0.6, 1.0, 1.5])
def test_quiet_streams_are_never_held_from_the_first_step_on(spread: float) -> None:
    for seed in range(3):
        assert run(Gate(), seed=seed, batches=1000, spread=spread).verdicts == []


@pytest.mark.parametrize("window", [None, 1000])
def test_slow_drift_of_sixty_degrees_is_never_held(window: int | None) -> None:
    found = run(Gate(), batches=2000, spread=0.6, turn=np.pi / 3 / 16_000, window=window)
    assert found.verdicts == []
    assert found.mean(8000, 16_000) > 90


@pytest.mark.parametrize("window", [None, 1000], ids=["all", "window"])
@pytest.mark.parametrize("poison", POISONS)
def test_poisoned_stretch_costs_less_than_two_points_and_leaves_no_trace(poison: str, window: int | None) -> None:
    clean = run(None, window=window)
    found = run(Gate(), poison=poison, window=window)
    before = found.mean(2000, 2400)
    assert found.verdicts[:2] == ["hold", "hold"]
    assert found.verdicts[2:] in (["rollback"], ["release"])
    assert found.accuracies[2400 // (8 * EVERY) :].min() > before - 2
    assert found.mean(3700, 4000) > clean.mean(3700, 4000) - 1
    excluded = np.flatnonzero(found.deployment.excluded)
    assert len(set(POISONED) - set(excluded.tolist())) <= 16
    assert len(set(excluded.tolist()) - set(POISONED)) <= 250


def test_without_a_gate_the_same_stretch_costs_a_lot() -> None:
    found = run(None, poison="flipped", window=1000)
    assert found.accuracies[2400 // (8 * EVERY) :].min() < found.mean(2000, 2400) - 20


@pytest.mark.parametrize("poison", POISONS)
def test_weak_models_are_protected_too(poison: str) -> None:
    found = run(Gate(), poison=poison, window=1000, spread=1.5)
    assert found.accuracies[2400 // (8 * EVERY) :].min() > found.mean(2000, 2400) - 2
    assert found.verdicts[-1] in {"rollback", "release"}


@pytest.mark.parametrize("spread", [0.6, 1.0])
def test_world_that_changes_for_good_is_followed_when_patience_is_over(spread: float) -> None:
    found = run(Gate(), batches=600, spread=spread, window=1000, changes_at=2400)
    assert found.verdicts == ["hold", "release"]
    assert 1000 <= found.deployment.alerts[-1].held <= 1100
    assert found.mean(4000, 4800) > found.mean(2000, 2400) - 2


def test_world_that_the_history_outweighs_is_followed_in_four_times_the_patience_at_most() -> None:
    found = run(Gate(patience=600), batches=700, spread=0.6, changes_at=2400)
    assert found.verdicts[0] == "hold"
    assert found.verdicts[-1] == "release"
    assert found.deployment.alerts[-1].held <= 4 * 600 + 8
    assert not found.deployment.excluded.any()
