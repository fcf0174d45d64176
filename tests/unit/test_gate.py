"""The gate holds a sudden loss, lets go when it passes, and gives in to a lasting change."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from evergrad.errors import ConfigError
from evergrad.gate import Gate


def noise(count: int, level: float = 1.0, seed: int = 0) -> list[float]:
    return (level * np.random.default_rng(seed).uniform(0.5, 1.5, count)).tolist()


def warm_gate(**settings: Any) -> Gate:
    gate = Gate(**{"baseline": 64.0, "patience": 16} | settings)
    assert all(gate.judge(loss) for loss in noise(int(gate.baseline)))
    return gate


def test_steady_noisy_and_falling_losses_pass() -> None:
    gate = warm_gate()
    assert all(gate.judge(loss) for loss in noise(2000, seed=1))
    assert all(gate.judge(loss / (1 + i / 50)) for i, loss in enumerate(noise(500, seed=2)))
    assert gate.held == 0


def test_anything_finite_passes_before_there_is_a_baseline() -> None:
    gate = Gate(baseline=64.0)
    assert all(gate.judge(loss) for loss in [1.0, 1e6, 0.0, 1e12] * 16)


def test_burst_is_held_and_let_go_when_the_loss_is_back() -> None:
    gate = warm_gate(patience=100)
    assert not any([gate.judge(loss) for loss in [50.0] * 4][1:])
    answers = [gate.judge(loss) for loss in noise(80, seed=3)]
    assert not answers[0]
    assert answers == sorted(answers), "once let go, it stays open"
    assert answers[-1]
    assert gate.held == 0


def test_held_counts_the_batches_of_this_hold() -> None:
    gate = warm_gate()
    gate.judge(1e6)
    assert [gate.held, gate.judge(1e6), gate.held] == [1, False, 2]


def test_lasting_change_is_held_for_patience_and_then_accepted_for_good() -> None:
    gate = warm_gate(patience=10)
    assert [gate.judge(1000.0) for _ in range(300)] == [False] * 10 + [True] * 290


def test_after_an_accepted_change_the_next_one_is_held_again() -> None:
    gate = warm_gate(patience=10)
    for _ in range(200):
        gate.judge(1000.0)
    assert not gate.judge(1e6)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("batches", [0, 64])
def test_loss_that_is_no_number_holds_its_own_batch_only(loss: float, batches: int) -> None:
    gate = warm_gate() if batches else Gate(baseline=64.0)
    assert not gate.judge(loss)
    assert gate.judge(1.0)
    assert gate.held == 0


def test_run_of_losses_that_are_no_number_is_held_for_patience_again_and_again() -> None:
    gate = warm_gate(patience=3)
    assert [gate.judge(math.nan) for _ in range(8)] == [False, False, False, True] * 2


def test_losses_below_zero_are_losses() -> None:
    gate = Gate(baseline=64.0)
    losses = [value - 2.0 for value in noise(500)]
    assert all(gate.judge(loss) for loss in losses)
    assert not gate.judge(100.0)


def test_no_patience_holds_nothing() -> None:
    gate = warm_gate(patience=0)
    assert all(gate.judge(1e6) for _ in range(20))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"ratio": 0.9}, "gate.ratio"),
        ({"ratio": math.nan}, "gate.ratio"),
        ({"sigmas": -1.0}, "gate.sigmas"),
        ({"sigmas": math.nan}, "gate.sigmas"),
        ({"fresh": 0.0}, "gate.fresh"),
        ({"fresh": 256.0}, "gate.fresh"),
        ({"baseline": 1.0}, "gate.fresh"),
        ({"patience": -1}, "gate.patience"),
    ],
)
def test_settings_out_of_range_are_refused_by_key(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Gate(**settings)
    assert caught.value.key == key
